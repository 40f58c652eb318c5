"""Leaves that are added to a model: low-rank adapters, and folding them back in; a head that answers in labels."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params, block_path, first_match


def add_lora(
    params: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    rank: int,
    alpha: float | None = None,
    targets: str = r"blocks/attn/(q|v)/kernel",
) -> Params:
    """The parameters with `lora_a` [.., in, R], `lora_b` [.., R, out] and `lora_scale` [..] beside each target kernel.

    Hu et al. 2021 (arXiv 2106.09685): a is random, b is zero, the scale is alpha / rank (alpha defaults to rank), so
    the new model equals the old one bitwise until b moves. `targets` is a pattern over whole leaves. Raises UserError
    for a rank below 1, a target that matches nothing, or one that is no kernel.
    """
    if rank < 1:
        raise UserError(f"rank={rank}: must be at least 1")
    matches = first_match([targets], params)
    out = dict(params)
    for path, hits in sorted(matches.items()):
        if hits[0] is None:
            continue
        if not path.endswith("/kernel") or block_path(path) is None:
            raise UserError(f"target {path!r}: low-rank adapters go beside the kernels inside the blocks")
        layers, fan_in, fan_out = params[path].shape
        stem = path.removesuffix("kernel")
        key, leaf_key = jax.random.split(key)
        out[f"{stem}lora_a"] = fan_in**-0.5 * jax.random.normal(leaf_key, (layers, fan_in, rank))
        out[f"{stem}lora_b"] = jnp.zeros((layers, rank, fan_out))
        out[f"{stem}lora_scale"] = jnp.full((layers,), (rank if alpha is None else alpha) / rank)
    return out


def fold_lora(params: Mapping[str, jax.Array]) -> Params:
    """The plain model that computes the same: kernel + scale * a @ b, added in float32 and cast once."""
    out = {path: leaf for path, leaf in params.items() if not re.search(r"/lora_(a|b|scale)$", path)}
    for path, a in params.items():
        if path.endswith("/lora_a"):
            stem = path.removesuffix("lora_a")
            kernel = params[f"{stem}kernel"]
            scale = params[f"{stem}lora_scale"].astype(jnp.float32)[:, None, None]
            delta = scale * jnp.matmul(a.astype(jnp.float32), params[f"{stem}lora_b"].astype(jnp.float32))
            out[f"{stem}kernel"] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return out


def add_head(
    config: ModelConfig, params: Mapping[str, jax.Array], labels: Sequence[str], key: jax.Array
) -> tuple[ModelConfig, Params]:
    """The model with an output for each label, or one for a regression, in the place of the vocabulary's head.

    The new leaf `score/kernel` [D, C] begins small (0.02), so that the first answers are near to undecided. Raises
    UserError for no labels, or one that stands twice.
    """
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"labels {list(labels)}: a head needs one or more, each listed once")
    trunk = {path: leaf for path, leaf in params.items() if not path.startswith(("head/", "score/"))}
    trunk["score/kernel"] = 0.02 * jax.random.normal(key, (config.width, len(labels)))
    return dataclasses.replace(config, labels=tuple(labels)), trunk
