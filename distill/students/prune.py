"""A smaller model out of a larger one's own parameters: chosen layers, or what matters most of every axis.

Letters of axes as in `shape.py`. What is taken keeps its place in the order.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.distill.students.config import SIZES
from limbeck.distill.students.importance import Importance
from limbeck.distill.students.shape import axes, of_layers
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.params import Params, block_path, join

# What a target may differ in: the sizes; what follows from them or from the layers; and how it is run.
_FREE = (*SIZES, "embedding_scale", "window", "global_layers", "unrotated_layers", "norm_eps", "scan", "remat", "dtype")


def picked(pick: str, depth: int, of: int) -> tuple[int, ...]:
    """Which `depth` layers of `of` a name means: the "first", the "last", or "spread" evenly from first to last.

    Raises UserError for another name, and for more layers than there are.
    """
    one_of("pick", pick, ("first", "last", "spread"))
    if not 1 <= depth <= of:
        raise UserError(f"depth={depth}: the teacher has {of} layers to choose from, so say 1 to {of}")
    if pick == "spread":
        last = max(depth - 1, 1)
        return tuple((2 * place * (of - 1) + last) // (2 * last) for place in range(depth))
    return tuple(range(depth)) if pick == "first" else tuple(range(of - depth, of))


def from_layers(
    config: ModelConfig, params: Mapping[str, jax.Array], layers: Sequence[int]
) -> tuple[ModelConfig, Params]:
    """The model of these layers alone, with all that is outside the blocks (as DistilBERT starts, arXiv 1910.01108).

    Each keeps its window and its rotation. Raises UserError as `of_layers` does, and for a parameter that only some
    layers have.
    """
    shape = of_layers(config, layers)
    params = _whole(params)
    index = np.asarray(layers)
    return shape, _taken(params, {path: {0: index} if block_path(path) else {} for path in params})


def pruned(
    config: ModelConfig, params: Mapping[str, jax.Array], importance: Importance, to: ModelConfig
) -> tuple[ModelConfig, Params]:
    """(config, params) of the shape `to`, cut out of a plain model; of each axis what matters most is kept.

    Layers go first; those that stay keep their windows and rotations, whatever `to` says of them. Then each layer gives
    up its own heads and MLP channels: whole groups of a key-value head and its queries, and of every group that stays
    as many queries. The width is cut alike in all layers. A norm over fewer numbers divides by another root mean
    square: its scale is multiplied by sqrt(mean energy of what stays / mean energy of all), so that what stays is as
    large as it was on average. (LLM-Pruner, arXiv 2305.11627, for what hangs together.)

    Heads, MLP channels and layers that add nothing to the stream of any token, and channels of the stream that are zero
    for every token, go without any change to what the model says, but for the place of `norm_eps`: it is exact with
    to.norm_eps = norm_eps * config.width / to.width. (Under layer norm a dead channel is one that is always the mean of
    all channels, with a bias of zero in the norms. Under a norm over all heads as one, dead heads have no queries and
    keys either, and `norm_eps` would have to follow the heads.)

    Raises UserError for a shape that is larger somewhere, or that differs in more than sizes, and for parameters that
    are none of a plain model's.
    """
    _check(config, to)
    # (group, query): the groups by what would stay of them, then the queries in each.
    layers = _top(importance.layers_L, to.depth)
    heads_LKG = importance.heads_LN[layers].reshape(to.depth, config.num_kv_heads, -1)
    queries = to.num_heads // to.num_kv_heads
    groups_LK = _top(np.sort(heads_LKG, -1)[..., -queries:].sum(-1), to.num_kv_heads)
    queries_LKG = _top(np.take_along_axis(heads_LKG, groups_LK[..., None], 1), queries)
    heads_LN = (groups_LK[..., None] * heads_LKG.shape[-1] + queries_LKG).reshape(to.depth, -1)
    kept = {
        "L": layers,
        "N": _numbers(heads_LN, config.head_dim),
        "K": _numbers(groups_LK, config.head_dim),
        "F": _top(importance.channels_LF[layers], to.mlp_dim),
        "D": _top(importance.width_LD[layers].sum(0) + importance.last_D, to.width),
    }
    final = of_layers(config, layers.tolist())
    params = _whole(params)
    letters = {path: axes(config, path) for path in params}
    out = _taken(
        params, {path: {i: kept[each] for i, each in enumerate(its) if each in kept} for path, its in letters.items()}
    )
    for path, leaf in out.items():
        module, _, name = ((block_path(path) or (None, path))[1]).rpartition("/")
        if name == "scale" and letters[path][-1] in kept:
            energy = importance.energy[module]
            energy = energy[layers] if block_path(path) else energy
            out[path] = _scaled(config, leaf, _growth(energy, kept[letters[path][-1]]))
    shrunk = config.embedding_scale / to.embedding_scale
    if shrunk != 1:
        out["embed/embedding"] = out["embed/embedding"] * shrunk
        if not out.keys() & {"head/kernel", "score/kernel"}:  # what is read of a tied embedding grew as well
            out |= {path: _scaled(config, leaf, 1 / shrunk) for path, leaf in out.items() if path == "norm/scale"}
            out |= {path: leaf / shrunk for path, leaf in out.items() if path == "norm/bias"}
    kinds = {name: getattr(final, name) for name in ("window", "global_layers", "unrotated_layers")}
    return dataclasses.replace(to, **kinds), out


def pruned_in_cuts(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    shapes: Sequence[ModelConfig],
    measure: Callable[[ModelConfig, Params], Importance],
    train: Callable[[ModelConfig, Params], Params] | None = None,
) -> tuple[ModelConfig, Params]:
    """`pruned` through one shape after the other, with what is left measured anew (and trained before, if at all)."""
    params = dict(params)
    for number, shape in enumerate(shapes):
        if number and train:
            params = train(config, params)
        config, params = pruned(config, params, measure(config, params), shape)
    return config, params


def _whole(params: Mapping[str, jax.Array]) -> Params:
    """The stack in one run. Raises UserError for a leaf that is not of all layers alike."""
    params = join(params)
    for path in params:
        if (parsed := block_path(path)) and parsed[0] or path.startswith("prefix/"):
            raise UserError(f"{path!r} is not a leaf of all layers alike: put what tuning added into the kernels first")
    return params


def _check(config: ModelConfig, to: ModelConfig) -> None:
    same = dataclasses.replace(to, **{name: getattr(config, name) for name in _FREE})
    for field in dataclasses.fields(config):
        ours, theirs = getattr(same, field.name), getattr(config, field.name)
        if field.compare and ours != theirs:
            raise UserError(f"{field.name}={ours!r}, but the teacher's is {theirs!r}: pruning changes sizes alone")
    for name in SIZES:
        ours, theirs = getattr(to, name), getattr(config, name)
        if ours > theirs:
            raise UserError(f"{name}={ours} is more than the teacher's {theirs}: pruning only takes away, so say less")
    if to.head_dim != config.head_dim:
        raise UserError(f"head_dim={to.head_dim}: pruning takes whole heads, so keep the teacher's {config.head_dim}")
    queries, of = to.num_heads // to.num_kv_heads, config.num_heads // config.num_kv_heads
    if queries > of:
        raise UserError(
            f"num_heads={to.num_heads} are {queries} to each of num_kv_heads={to.num_kv_heads}, but the teacher has "
            f"{of}: say at most {of * to.num_kv_heads} heads, or more num_kv_heads"
        )


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Where along the last axis the largest are, in ascending order; of equal ones the first."""
    return np.sort(np.argsort(-scores, -1, kind="stable")[..., :count], -1)


def _numbers(heads: np.ndarray, head_dim: int) -> np.ndarray:
    """Of the heads [L, N], the places of their numbers [L, N*H]."""
    return (heads[..., None] * head_dim + np.arange(head_dim)).reshape(len(heads), -1)


@jax.jit
def _taken(params: Params, index: dict[str, dict[int, np.ndarray]]) -> Params:
    """Of each leaf the entries along some of its axes: [n], or [L, n] with places of their own in each layer."""
    out = dict(params)
    for path, of_axis in index.items():
        for axis, places in sorted(of_axis.items()):  # the layers' first
            leaf = out[path]
            if places.ndim == 2:
                out[path] = jax.vmap(partial(jnp.take, axis=axis - 1))(leaf, places)
            else:
                out[path] = jnp.take(leaf, places, axis)
    return out


def _growth(energy: np.ndarray, index: np.ndarray) -> np.ndarray:
    """sqrt(mean energy of what stays / mean energy of all): [L, 1], or [1] for a norm outside the blocks."""
    here = np.broadcast_to(index, (*energy.shape[:-1], index.shape[-1]))
    stays, whole = np.take_along_axis(energy, here, -1).mean(-1, keepdims=True), energy.mean(-1, keepdims=True)
    return np.sqrt(np.where(whole > 0, stays / np.where(whole > 0, whole, 1), 1))


def _scaled(config: ModelConfig, scale: jax.Array, factor: np.ndarray | float) -> jax.Array:
    """A norm's scale times a factor, as it is kept."""
    one = 1.0 if config.norm_plus_one else 0.0
    return ((scale.astype(jnp.float32) + one) * jnp.asarray(factor, jnp.float32) - one).astype(scale.dtype)
