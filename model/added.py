"""What a dense module computes with the leaves that a tuning method added beside its kernel.

The leaves, of a module of [in, out]: `lora_a` [in, R], `lora_b` [R, out], `lora_scale` [], `lora_bias` [out],
`lora_magnitude` [out]; `vera_d` [R], `vera_b` [out] with the shared `vera_a` [in, R], `vera_p` [R, out]; `ia3_in` [in],
`ia3_out` [out]. A module has whichever of them are among the parameters.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from limbeck.model.quantize import kernel_of

Leaves = Mapping[str, jax.Array]

# The paths of all leaves that a tuning method may add to a model on disk: these, bottlenecks, biases, virtual tokens.
ADDED = re.compile(
    r"blocks/(\d+:\d+/)?((attn|mlp)/\w+/(lora_(a|b|scale|bias|magnitude)|vera_[db]|ia3_(in|out)|bias)"
    r"|attn/prefix_[kv]|(attn|mlp)_adapter/(down|up)/(kernel|bias))"
    r"|embed/lora_(a|b|scale)|vera/[ap]|prompt/embedding|(prompt/encoder|prefix)/\d/(kernel|bias)|prefix/embedding"
)


def beside(flat_ND: jax.Array, y_NF: jax.Array, leaves: Leaves) -> jax.Array:
    """The module's output: `y_NF`, the kernel's product, and what its other leaves make of it, the bias included.

    LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3); DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5, its norm without a
    gradient as in section 4.3); VeRA (Kopiczko et al. 2023, arXiv 2310.11454, eq. 2).
    """
    if "lora_a" in leaves:
        a, b, scale = (leaves[f"lora_{part}"].astype(y_NF.dtype) for part in ("a", "b", "scale"))
        side_NF = (flat_ND @ a) @ b
        if "lora_bias" in leaves:
            side_NF = side_NF + leaves["lora_bias"].astype(y_NF.dtype)
        y_NF = y_NF + side_NF * scale
        if "lora_magnitude" in leaves:
            kernel = leaves["kernel"] if "kernel" in leaves else kernel_of(leaves)
            y_NF = y_NF * (leaves["lora_magnitude"] / column_norms(kernel, leaves)).astype(y_NF.dtype)
    if "bias" in leaves:
        y_NF = y_NF + leaves["bias"].astype(y_NF.dtype)
    if "vera_d" in leaves:
        fan_in, features = flat_ND.shape[-1], y_NF.shape[-1]
        a, p = leaves["vera_a"][:fan_in].astype(y_NF.dtype), leaves["vera_p"][:, :features].astype(y_NF.dtype)
        y_NF = y_NF + ((flat_ND @ a) * leaves["vera_d"].astype(y_NF.dtype)) @ p * leaves["vera_b"].astype(y_NF.dtype)
    return y_NF * leaves["ia3_out"].astype(y_NF.dtype) if "ia3_out" in leaves else y_NF


def column_norms(kernel: jax.Array, leaves: Leaves) -> jax.Array:
    """norm_F of the columns of kernel + scale * a @ b, in float32, a constant to the gradient."""
    low_rank = jnp.matmul(leaves["lora_a"].astype(jnp.float32), leaves["lora_b"].astype(jnp.float32))
    scale = leaves["lora_scale"].astype(jnp.float32)[..., None, None]
    return jax.lax.stop_gradient(jnp.linalg.norm(kernel.astype(jnp.float32) + scale * low_rank, axis=-2))


def with_shared(leaves: Leaves, params: Leaves) -> dict[str, jax.Array]:
    """A block's leaves, and beside each `vera_d` the two matrices that all modules share."""
    stems = [path.removesuffix("vera_d") for path in leaves if path.endswith("/vera_d")]
    return {**leaves, **{f"{stem}vera_{which}": params[f"vera/{which}"] for stem in stems for which in "ap"}}
