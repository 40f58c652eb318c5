"""How much arithmetic the machine can do: published for accelerators, measured where there is none."""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from limbeck.model.chips import known


class Peak(NamedTuple):
    """FLOPs a second of one device, and where the figure comes from."""

    flops_per_second: float
    source: str


def peak() -> Peak | None:
    """The rate of the default device: published in bfloat16, measured in float32 on a CPU, None for a stranger."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return Peak(matmul_rate(), "float32 matmul, measured")
    chip = known(device.device_kind)
    return Peak(chip.flops_per_second, f"{chip.kind}, bfloat16, published") if chip else None


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
