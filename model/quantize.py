"""A frozen base in few bits: the blocks' dense kernels as int8 or NF4 codes, and products with them as they are.

Instead of `M/kernel` [L, in, out] a dense module M has

- `M/kernel_int8` int8 [L, in, out] and `M/kernel_scale` [L, out]: a weight is code * scale; or
- `M/kernel_nf4` uint8 [L, in // 2, out], the codes of rows 2i (low bits) and 2i + 1 (high bits) in a byte, and
  `M/kernel_scale` [L, blocks, out], a scale for 64 rows (the last block may have fewer): a weight is
  LEVELS[code] * scale. The last row of an odd `in` is a block of its own without codes: its scales are its weights.

NF4 and training adapters over it are QLoRA's (Dettmers et al. 2023, arXiv 2305.14314). Embeddings, norms, biases, heads
and what a tuning method adds stay as they are. Letters as in `config.py`; `I` and `O` are a kernel's in and out.
"""

from collections.abc import Mapping
from functools import partial
from statistics import NormalDist

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from limbeck.model.errors import UserError, one_of
from limbeck.model.params import Params, block_path, split

KINDS = ("int8", "nf4")
BLOCK = 64  # weights that share an NF4 scale


def _nf4_levels() -> np.ndarray:
    """Sixteen quantiles of the normal distribution, from -1 to 1, zero among them (the paper's section 3)."""
    tail = (1 / 32 + 1 / 30) / 2  # of the probability, beyond the outermost level
    quantile = NormalDist().inv_cdf
    negative = [quantile(tail + (0.5 - tail) * step / 7) for step in range(7)]
    positive = [quantile(0.5 + (0.5 - tail) * step / 8) for step in range(9)]
    return (np.array(negative + positive) / positive[-1]).astype(np.float32)


LEVELS = _nf4_levels()


def quantize(params: Mapping[str, jax.Array], kind: str, targets: str = r"blocks/(attn|mlp)/.*/kernel") -> Params:
    """The parameters with the kernels that `targets` matches as codes and scales: `kind` is int8 or nf4.

    int8 is symmetric, by the largest magnitude of an output; NF4 by that of a block. Each is rounded to the nearest
    code, a layer at a time, so no more than a layer exists a third time. Raises UserError for another kind, a target
    that matches nothing or is no kernel of attention or MLP, one of which chosen entries train, and one with a weight
    that is not finite.
    """
    one_of("kind of base", kind, KINDS)
    chosen, out = split(params, [targets])
    others = {parsed[1] for path in out if (parsed := block_path(path))}
    for path, kernel in chosen.items():
        inner = (block_path(path) or (None, ""))[1]
        if not inner.startswith(("attn/", "mlp/")) or not inner.endswith("/kernel"):
            raise UserError(f"target {path!r}: only the kernels of a block's attention and MLP can be quantised")
        if f"{inner}_index" in others:
            raise UserError(f"target {path!r}: chosen entries of it train, so it cannot be quantised: leave it out")
        codes, scale = _quantized(kernel, kind)
        # Of mere shapes there is nothing to see.
        if not isinstance(scale, jax.core.Tracer) and not jnp.isfinite(scale).all():
            raise UserError(f"{path!r} has weights that are not finite and cannot be quantised: load the model again")
        out |= {f"{path}_{kind}": codes, f"{path}_scale": scale}
    return out


def is_quantized(path: str) -> bool:
    """Whether a leaf of that path (or name in its module) holds the codes of a quantised kernel."""
    return path.endswith(("kernel_int8", "kernel_nf4"))


def dequantized(params: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
    """The plain model of a quantised one: `kernel` leaves of `dtype`; the other leaves are as they were."""
    out = dict(params)
    for path in filter(is_quantized, params):
        stem = path.rpartition("_")[0]
        out[stem] = _dequantized(out.pop(path), out.pop(f"{stem}_scale"), dtype)
    return out


def kernel_of(leaves: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """kernel_IO of one module in one layer, from the leaves `kernel_int8` or `kernel_nf4` and `kernel_scale`."""
    return _kernel(_codes(leaves), leaves["kernel_scale"], jnp.dtype(dtype))


def product(x_ND: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """x_ND @ kernel_DF in x's type, from the leaves `kernel_int8` or `kernel_nf4` and `kernel_scale` of one layer.

    The kernel exists in x's type while it is multiplied; the backward pass makes it again from the codes. Codes and
    scales get no gradient.
    """
    return _product(x_ND, _codes(leaves), leaves["kernel_scale"])


def _codes(leaves: Mapping[str, jax.Array]) -> jax.Array:
    return leaves["kernel_int8"] if "kernel_int8" in leaves else leaves["kernel_nf4"]


@jax.custom_vjp
def _product(x_ND, codes, scale):
    return _product_forward(x_ND, codes, scale)[0]


def _product_forward(x_ND, codes, scale):
    own = _after(x_ND, codes, scale)
    if codes.dtype == jnp.int8:
        # Scaled after the product: every int8 is exact in bfloat16, its product with a scale is not.
        sums_NF = jnp.dot(x_ND, own.astype(x_ND.dtype), preferred_element_type=jnp.float32)
        return (sums_NF * scale).astype(x_ND.dtype), (codes, scale)
    return x_ND @ _kernel(own, scale, x_ND.dtype), (codes, scale)


def _product_backward(kept, gradient_NF):
    codes, scale = kept
    own = _after(gradient_NF, codes, scale)
    if codes.dtype == jnp.int8:
        gradient_NF = (gradient_NF * scale).astype(gradient_NF.dtype)
        return gradient_NF @ own.astype(gradient_NF.dtype).T, None, None
    return gradient_NF @ _kernel(own, scale, gradient_NF.dtype).T, None, None


def _after(operand: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """The codes, as far as the compiler can see only known when the operand is.

    Else it makes the kernels of all layers before the first product, or keeps those of the forward pass for the
    backward pass. An `optimization_barrier` does not stop it on CPU.
    """
    never = jnp.isnan(operand[0, 0]) & (scale.reshape(-1)[0] < 0)
    return codes ^ never.astype(codes.dtype)


_product.defvjp(_product_forward, _product_backward)


def _kernel(codes: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """kernel_IO: codes times scales in float32, cast once."""
    if codes.dtype == jnp.int8:
        return (codes * scale.astype(jnp.float32)).astype(dtype)
    paired = 2 * codes.shape[0]
    # A table and not 15 selections: XLA keeps what those choose between as arrays of the kernel's size.
    halves = jnp.stack([codes & 15, codes >> 4], 1).reshape(paired, codes.shape[1])
    by_row = jnp.asarray(LEVELS).at[halves].get(mode="promise_in_bounds")
    blocks = -(-paired // BLOCK)
    kernel = by_row * jnp.repeat(scale[:blocks].astype(jnp.float32), BLOCK, 0)[:paired]
    return jnp.concatenate([kernel.astype(dtype), scale[blocks:].astype(dtype)])


@partial(jax.jit, static_argnums=1)
def _quantized(kernel_LIO: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    one = _to_int8 if kind == "int8" else _to_nf4
    return jax.lax.map(lambda kernel_IO: one(kernel_IO.astype(jnp.float32)), kernel_LIO)


@partial(jax.jit, static_argnums=2)
def _dequantized(codes: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    return jax.lax.map(lambda layer: _kernel(layer[0], layer[1], jnp.dtype(dtype)), (codes, scale))


def _to_int8(kernel_IO: jax.Array) -> tuple[jax.Array, jax.Array]:
    scale_O = _normal(jnp.abs(kernel_IO).max(0) / 127)
    steps_IO = jnp.round(kernel_IO / jnp.where(scale_O == 0, 1, scale_O))
    return jnp.clip(steps_IO, -127, 127).astype(jnp.int8), scale_O


def _to_nf4(kernel_IO: jax.Array) -> tuple[jax.Array, jax.Array]:
    odd = kernel_IO.shape[0] % 2
    paired_IO, last_IO = kernel_IO[: kernel_IO.shape[0] - odd], kernel_IO[kernel_IO.shape[0] - odd :]
    padded = jnp.pad(paired_IO, ((0, -paired_IO.shape[0] % BLOCK), (0, 0)))
    blocks = padded.reshape(-1, BLOCK, padded.shape[1])
    scale = _normal(jnp.abs(blocks).max(1))
    shares = blocks / jnp.where(scale == 0, 1, scale)[:, None]
    middles = (LEVELS[1:] + LEVELS[:-1]) / 2
    codes_IO = sum((shares > middle).astype(jnp.uint8) for middle in middles)
    codes_IO = jnp.asarray(codes_IO).reshape(padded.shape)[: paired_IO.shape[0]]
    return codes_IO[::2] | codes_IO[1::2] << 4, jnp.concatenate([scale, last_IO])


def _normal(scale: jax.Array) -> jax.Array:
    """Scales that are too small to divide by (below 1e-38) as zero, which all their weights then are."""
    return jnp.where(scale < jnp.finfo(jnp.float32).tiny, 0, scale)
