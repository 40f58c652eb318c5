"""The stack of blocks: a plain loop over the runs of layers in the parameter dict (see `params.py`).

A stack that was cut where training begins is differentiated only from there on. The block is a Linen module.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from limbeck.model.added import with_shared
from limbeck.model.attention import ATTENDED, SEEN, Attention, Place
from limbeck.model.cache import Cache, LayerCache
from limbeck.model.chosen import filled, has_chosen, keeps
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.layers import Bottleneck, Mlp, Norm, Turn, turn
from limbeck.model.params import runs
from limbeck.model.prefix import USED, prefix_length
from limbeck.model.sharding import ROWS, constrain

CAPTURED = ("hidden", "q", "k", "v")  # what of every layer can be asked for


class Block(nn.Module):
    """One transformer block: attention and MLP, each normed before it, on what it adds to the stream, or both."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, place: Place, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        c = self.config

        def norm(x_BTD: jax.Array, name: str, here: bool) -> jax.Array:
            return Norm(c, name=name)(x_BTD) if here else x_BTD

        before, after = c.norm_placement != "post", c.norm_placement != "pre"
        def adapter(update_BTD: jax.Array, name: str) -> jax.Array:
            return Bottleneck(name=name)(update_BTD) if self.has_variable("params", name) else update_BTD

        update_BTD, cache = Attention(c, name="attn")(norm(x_BTD, "attn_norm", before), place, cache)
        middle_BTD = x_BTD + norm(adapter(update_BTD, "attn_adapter"), "attn_post_norm", after)
        update_BTD = Mlp(c, name="mlp")(norm(x_BTD if c.parallel_residual else middle_BTD, "mlp_norm", before))
        return middle_BTD + norm(adapter(update_BTD, "mlp_adapter"), "mlp_post_norm", after), cache


def stack(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array | None,
    cache: Cache | None,
    names: Sequence[str] = (),
) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
    """(x_BTD after the last block, the cache, what is captured): from what is looked up of the tokens to what the
    final norm takes.

    Captured is what `names` says, among CAPTURED (see `transformer.captured`). Raises UserError for parameters of
    another depth.
    """
    c = config
    prefix, before = prefix_length(params), params.get(USED)
    prefix = prefix if before is None else before
    places_BT = positions_BT + prefix
    if c.positions == "learned":
        x_BTD = x_BTD + params["positions/embedding"].astype(c.dtype)[places_BT]

    total_BT = _totals(c, places_BT, segments_BT) if cache is None else (cache.total_B + prefix)[:, None]
    turns, turn_of_layer_L = _turns(c, places_BT, total_BT)

    def block(carry, layer):
        x_BTD, k_piece, v_piece = carry
        # Between blocks a row's tokens lie over `tensor`, too (Korthikanti et al. 2022, arXiv 2205.05198): what is kept
        # of them for the backward pass would else be on every device of it.
        x_BTD = constrain(x_BTD, ROWS, None if cache is not None else "tensor", None)
        leaves, window, which, index = layer
        layer_cache = None if k_piece is None else LayerCache(k_piece, v_piece, index if c.scan else 0)
        here = jax.tree.map(lambda x: x[0] if x.shape[0] == 1 else x[which], turns)
        place = Place(positions_BT, segments_BT, window, here, before)
        own = unflatten_dict(with_shared(filled(leaves), params), sep="/")
        out, aside = Block(c).apply({"params": own}, x_BTD, place, layer_cache, mutable=[SEEN] if names else [])
        x_BTD, layer_cache = cast(tuple[jax.Array, LayerCache | None], out)
        seen = {"hidden": x_BTD, **(cast(Any, aside)[SEEN]["attn"]["qkv"][0] if names else {})}
        carry = (x_BTD, *(layer_cache[:2] if layer_cache else (None, None)))
        return carry, {name: seen[name] for name in names}

    if c.remat == "full":
        block = jax.checkpoint(block)
    elif c.remat == "dots":
        policies = jax.checkpoint_policies
        products = policies.dots_with_no_batch_dims_saveable
        kept = policies.save_from_both_policies(products, policies.save_only_these_names(ATTENDED))
        block = jax.checkpoint(block, policy=kept)
    elif has_chosen(params):
        block = jax.checkpoint(block, policy=keeps)
    windows_L = jnp.asarray(c.layer_windows(), jnp.int32)
    k: list[Any] = [None] if cache is None else list(cache.k)
    v: list[Any] = [None] if cache is None else list(cache.v)
    captured = {name: [x_BTD[None]] if name == "hidden" else [] for name in names}
    stop = 0
    for run in runs(params):
        span = slice(run.start, run.stop)
        layers = (run.leaves, windows_L[span], turn_of_layer_L[span], jnp.arange(run.start, run.stop))
        if c.scan:
            (x_BTD, k[0], v[0]), seen = jax.lax.scan(block, (x_BTD, k[0], v[0]), layers)
            for name in names:
                captured[name].append(seen[name])
        else:  # a plain loop: an unrolled scan would stack what the backward pass needs all the same
            for at, layer in enumerate(_layer_by_layer(layers, run.stop - run.start), run.start):
                piece = 0 if cache is None else at
                (x_BTD, k[piece], v[piece]), seen = block((x_BTD, k[piece], v[piece]), layer)
                for name in names:
                    captured[name].append(seen[name][None])
        stop = run.stop
    if stop != c.depth:
        raise UserError(f"the parameters hold {stop} layers, the config says depth={c.depth}: use their own config")
    if cache is not None:
        length_B = jnp.maximum(cache.length_B, positions_BT[:, -1] + 1)
        cache = Cache(tuple(k), tuple(v), length_B, cache.total_B)
    return x_BTD, cache, {name: jnp.concatenate(parts) for name, parts in captured.items()}


def turned_by_length(config: ModelConfig) -> bool:
    """Whether a token turns by how long its text is, and not by its place alone (longrope)."""
    return any(rope is not None and rope.scaling == "longrope" for rope in config.layer_ropes())


def _totals(config: ModelConfig, places_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """How long each token's text is, virtual tokens included: [B, 1] of whole rows, [B, T] of packed documents."""
    if segments_BT is None or not turned_by_length(config):
        return places_BT.max(1, keepdims=True) + 1

    def row(places_T: jax.Array, segments_T: jax.Array) -> jax.Array:
        # A document's number is any: where it begins among the sorted ones is below T. Comparing all pairs takes T^2.
        number_T = jnp.searchsorted(jnp.sort(segments_T), segments_T)
        return jnp.zeros_like(places_T).at[number_T].max(places_T)[number_T]

    return jax.vmap(row)(places_BT, segments_BT) + 1


def _layer_by_layer(stacked: Any, count: int) -> list[Any]:
    """The slices of a tree of leaves along their first axis; split once, so that gradients are put together once."""
    leaves, tree = jax.tree.flatten(stacked)
    pieces = [jax.lax.split(leaf, (1,) * count) for leaf in leaves]
    return [jax.tree.unflatten(tree, [piece[0] for piece in row]) for row in zip(*pieces, strict=True)]


def _turns(config: ModelConfig, positions_BT: jax.Array, total_BT: jax.Array) -> tuple[Turn | None, jax.Array]:
    """(the distinct rotations of the layers, stacked, and which of them each layer has), worked out once for all."""
    of_layer = config.layer_ropes()
    distinct = list(dict.fromkeys(of_layer))
    which_L = jnp.asarray([distinct.index(rope) for rope in of_layer], jnp.int32)
    if distinct == [None]:
        return None, which_L
    turns = [None if rope is None else turn(rope, config.head_dim, positions_BT, total_BT) for rope in distinct]
    some = next(each for each in turns if each is not None)
    still = Turn(jnp.ones_like(some.cos_BTR), jnp.zeros_like(some.sin_BTR))
    return jax.tree.map(lambda *x: jnp.stack(x), *(each or still for each in turns)), which_L
