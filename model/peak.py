"""How much arithmetic the machine can do: published for accelerators, measured where there is none."""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOPs a second of one chip, as JAX counts devices, from the makers' data sheets.
_PUBLISHED = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


class Peak(NamedTuple):
    """FLOPs a second of one device, and where the figure comes from."""

    flops_per_second: float
    source: str


def peak() -> Peak | None:
    """The rate of the default device: published in bfloat16, measured in float32 on a CPU, None for a stranger."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return Peak(matmul_rate(), "float32 matmul, measured")
    for kind, rate in _PUBLISHED.items():
        # In whole words: an L40S is no L4, and does not compute like one.
        if f"{device.device_kind} ".startswith((f"{kind} ", f"{kind}-")):
            return Peak(rate, f"{kind}, bfloat16, published")
    return None


@functools.cache
def matmul_rate(size: int = 1536, repeats: int = 5) -> float:
    """FLOPs a second of the best of a few float32 products of two square matrices on the default device."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
