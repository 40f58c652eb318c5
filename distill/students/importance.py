"""What of a model matters: heads, channels and layers by how large their activations are, in forward passes alone.

Letters as in `config.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from limbeck.distill.students.shape import axes
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.hosts import on_host
from limbeck.model.layers import Norm
from limbeck.model.params import Params, join
from limbeck.model.progress import progress
from limbeck.model.transformer import Block, hidden


class Importance(NamedTuple):
    """How much each part of a model matters; means over tokens, float64.

    `energy` is the mean square of what each norm over the width, or over all heads, is given (what layer norm is
    given less its mean): [L, D] by the norm's path inside a block, [D] of "norm", the last one.
    """

    layers_L: np.ndarray  # 1 - cosine between what goes in and what comes out
    heads_LN: np.ndarray  # norm of what a query head adds to the stream
    channels_LF: np.ndarray  # norm of what a channel of the MLP adds to it
    width_LD: np.ndarray  # |x| of what attention and MLP are given
    last_D: np.ndarray  # |x| of what the model's head is given
    energy: dict[str, np.ndarray]


def importance(
    config: ModelConfig, params: Mapping[str, jax.Array], batches: Sequence[Mapping[str, Any]]
) -> Importance:
    """Measures a plain model on `tokens_BT` (with `positions_BT` and `segments_BT`, if any; segment 0 is padding).

    Channels of the width as in Minitron (Muralidharan et al. 2024, arXiv 2407.14679, section 2.2). Its norm of a head's
    output and size of an MLP channel are taken behind the product that they go into: so they do not depend on how a
    model shares a factor between the two sides, and what the product leaves out counts as nothing. Layers by block
    influence (Men et al. 2024, arXiv 2403.03853). Raises UserError for no tokens, and for a model that has more
    than its plain parameters.
    """
    for path in params:
        axes(config, path)
    config = dataclasses.replace(config, scan=False, remat="none")
    names = ("tokens_BT", "positions_BT", "segments_BT")
    sums: Any = None
    with progress("importance", len(batches), "portion") as advance:
        for batch in batches:
            some = _sums(config, dict(params), {name: jnp.asarray(batch[name]) for name in names if name in batch})
            some = jax.tree.map(lambda x: np.asarray(x, np.float64), on_host(some))
            sums = some if sums is None else jax.tree.map(np.add, sums, some)
            advance(1)
    if sums is None or not sums["tokens"]:
        raise UserError("importance: no tokens to measure it on; give at least one batch of text")
    means = jax.tree.map(lambda total: total / sums["tokens"], sums)
    of = means["layers"]
    energy = {path.removeprefix("energy/"): mean for path, mean in of.items() if path.startswith("energy/")}
    return Importance(
        of["influence"], of["heads"], of["channels"], of["width"], means["last"], energy | {"norm": means["energy"]}
    )


@partial(jax.jit, static_argnums=0)
def _sums(config: ModelConfig, params: Params, batch: dict[str, jax.Array]) -> dict[str, Any]:
    """Sums over tokens. A listener sees the calls of all modules, in order: each block, and then what is in it."""
    layers: list[dict[str, jax.Array]] = []
    last: dict[str, jax.Array] = {}
    real_BT = batch.get("segments_BT", jnp.ones_like(batch["tokens_BT"])) > 0

    def total(x_BT: jax.Array) -> jax.Array:
        x_BT = x_BT.astype(jnp.float32)
        return jnp.where(real_BT.reshape(*real_BT.shape, *(1,) * (x_BT.ndim - 2)), x_BT, 0).sum((0, 1))

    def listen(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, x = context.module, args[0]
        path = "/".join(module.path)
        if isinstance(module, Block):
            layers.append({})
            out = call(*args, **kwargs)
            layers[-1]["influence"] = total(1 - _cosine(x, out[0]))
            return out
        out = call(*args, **kwargs)
        if isinstance(module, Norm) and x.ndim == 3:
            y_BTD = x.astype(jnp.float32)
            centred_BTD = y_BTD - y_BTD.mean(-1, keepdims=True) if config.norm == "layer" else y_BTD
            energy = total(jnp.square(centred_BTD))
            if path:
                layers[-1][f"energy/{path}"] = energy
            else:
                last.update(last=total(jnp.abs(out)), energy=energy)
        elif path in ("attn", "mlp"):
            layers[-1]["width"] = layers[-1].get("width", 0) + total(jnp.abs(x)) / 2
        elif path == "attn/o":
            layers[-1]["heads"] = total(_added(x, module.variables["params"]["kernel"], config.num_heads))
        elif path == "mlp/down":
            kernel_FD = module.variables["params"]["kernel"].astype(jnp.float32)
            layers[-1]["channels"] = total(jnp.abs(x)) * jnp.linalg.norm(kernel_FD, axis=-1)
        return out

    with nn.intercept_methods(listen):
        hidden(
            config,
            join(params),
            batch["tokens_BT"],
            positions_BT=batch.get("positions_BT"),
            segments_BT=batch.get("segments_BT"),
        )
    return {
        "tokens": real_BT.sum(),
        "layers": {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]},
        **last,
    }


def _added(x_BTF: jax.Array, kernel_FD: jax.Array, heads: int) -> jax.Array:
    """norm_BTN of each head's part of x @ kernel, by the products of the kernel with itself: no [B, T, N, D] exists."""
    x_BTNH = x_BTF.astype(jnp.float32).reshape(*x_BTF.shape[:2], heads, -1)
    kernel_NHD = kernel_FD.astype(jnp.float32).reshape(heads, -1, kernel_FD.shape[-1])
    gram_NHH = jnp.einsum("nhd,ngd->nhg", kernel_NHD, kernel_NHD)
    return jnp.sqrt(jnp.maximum(jnp.einsum("btnh,nhg,btng->btn", x_BTNH, gram_NHH, x_BTNH), 0))


def _cosine(x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
    x_BTD, y_BTD = x_BTD.astype(jnp.float32), y_BTD.astype(jnp.float32)
    lengths_BT = jnp.linalg.norm(x_BTD, axis=-1) * jnp.linalg.norm(y_BTD, axis=-1)
    return (x_BTD * y_BTD).sum(-1) / jnp.maximum(lengths_BT, 1e-30)
