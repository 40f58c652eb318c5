"""Chosen entries: a few numbers of a frozen leaf that train, kept as values and positions instead of a dense mask.

Beside a leaf `X` stand `X_chosen`, their float32 values, and `X_index`, their int32 positions in the flattened leaf,
ascending: [L, k] inside the blocks, where every layer has k entries of its own, and [k] elsewhere. `X` stays as it is;
the model computes with the values in its place. Gradient and optimiser state are those of the values alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.errors import UserError, nearest
from limbeck.model.params import Params, block_path, cut, join

CHOSEN, INDEX = "_chosen", "_index"
LARGEST = 2**31 - 1  # entries of a layer's leaf that an int32 can count


def filled(leaves: Mapping[str, jax.Array]) -> Params:
    """The leaves with the chosen values in their places, each cast to its leaf's dtype; the pairs are gone.

    Of one layer, of leaves outside the blocks, or of whole stacks, whose index is [L, k].
    """
    out = dict(leaves)
    for path in leaves:
        if path.endswith(CHOSEN):
            stem = path.removesuffix(CHOSEN)
            out[stem] = _put(leaves[stem], out.pop(path), out.pop(stem + INDEX))
    return out


def _put(leaf: jax.Array, values: jax.Array, index: jax.Array) -> jax.Array:
    if index.ndim == 2:
        return jax.vmap(_put)(leaf, values, index)
    places = leaf.reshape(-1).at[index]
    # Told that no place comes twice, the gradient of the values is one gather.
    new = places.set(values.astype(leaf.dtype), mode="drop", unique_indices=True, indices_are_sorted=True)
    return new.reshape(leaf.shape)


def filled_outside(params: Mapping[str, jax.Array]) -> Params:
    """All parameters, filled outside the blocks: a block's are filled in the block, one layer at a time."""
    blocks = {path: leaf for path, leaf in params.items() if block_path(path)}
    return filled({path: leaf for path, leaf in params.items() if path not in blocks}) | blocks


def has_chosen(params: Mapping[str, jax.Array]) -> bool:
    """Whether any leaf has chosen entries."""
    return any(path.endswith(CHOSEN) for path in params)


def keeps(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint` under which no filled leaf is kept for the backward pass.

    A scan would keep one for every layer: the whole stack a second time. What is only put in place or rounded is
    worked out again; everything else is kept, as without a policy.
    """
    return primitive not in (jax.lax.scatter_p, jax.lax.reshape_p, jax.lax.convert_element_type_p)


def choose(params: Mapping[str, jax.Array], indices: Mapping[str, np.ndarray | jax.Array]) -> Params:
    """The parameters with `X_chosen`, the present values, and `X_index` for each X of `indices`.

    X may be a piece of a stack, `blocks/2:4/attn/q/kernel`, of which the whole is there. Raises UserError for a path
    that is no leaf, a leaf that is not of floats or has chosen entries already, and for an index that is not what
    `check_index` asks for.
    """
    out = dict(params)
    for path, index in indices.items():
        leaf = piece(params, path)
        if leaf is None:
            raise UserError(f"chosen entries of {path!r}: no such parameter{nearest(path, params)}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"chosen entries of {path!r}: it is {leaf.dtype}; choose among leaves of floats")
        if path + CHOSEN in params:
            raise UserError(f"{path!r} has chosen entries already: put them in with `unchosen` first")
        index = np.asarray(index)
        check_index(path, leaf.shape, index, stacked=block_path(path) is not None)
        flat = leaf.reshape(*index.shape[:-1], -1)
        own = jnp.asarray(index, jnp.int32)
        out[path + CHOSEN] = jnp.take_along_axis(flat, own, -1).astype(jnp.float32)
        out[path + INDEX] = own
    return out


def unchosen(params: Mapping[str, jax.Array]) -> Params:
    """The plain model that computes the same: the chosen values put in, the stack joined as in files."""
    stems = {_inner(path.removesuffix(CHOSEN)) for path in params if path.endswith(CHOSEN)}
    touched = {stem + suffix for stem in stems for suffix in ("", CHOSEN, INDEX)}
    some = {path: leaf for path, leaf in params.items() if _inner(path) in touched}
    others = {path: leaf for path, leaf in params.items() if path not in some}
    return join(others | filled(cut(join(some), ())))


def check_index(where: str, shape: tuple[int, ...], index: np.ndarray, *, stacked: bool) -> None:
    """Raises UserError unless `index` is of integers, [L, k] or [k], k at least 1, ascending, within a leaf of `shape`.

    `stacked`: the leaf's first axis is the layers', and entries are counted within a layer.
    """
    layers, entries = layout(where, shape, stacked=stacked)
    if index.dtype.kind not in "iu":
        raise UserError(f"chosen entries of {where!r}: the index is {index.dtype}, not of integers")
    wanted = f"[{layers}, k]" if stacked else "[k]"
    if index.ndim != 1 + stacked or (stacked and index.shape[0] != layers) or not index.shape[-1]:
        raise UserError(f"chosen entries of {where!r}: the index is {list(index.shape)}, asked is {wanted}")
    if index.size and (int(index.min()) < 0 or int(index.max()) >= entries):
        raise UserError(
            f"chosen entries of {where!r}: {int(index.min())} to {int(index.max())}, but a layer's leaf has "
            f"{entries:,} entries, counted from 0"
        )
    if not (index[..., 1:] > index[..., :-1]).all():
        raise UserError(f"chosen entries of {where!r}: list each once, in ascending order")


def layout(where: str, shape: tuple[int, ...], *, stacked: bool) -> tuple[int, int]:
    """(layers, entries of a layer) of a leaf; outside the blocks it is one layer.

    Raises UserError for a leaf of so many entries that an int32 cannot count them.
    """
    layers, entries = (shape[0], math.prod(shape[1:])) if stacked else (1, math.prod(shape))
    if entries > LARGEST:
        raise UserError(
            f"chosen entries of {where!r}: {entries:,} in a layer are more than {LARGEST:,}: take another leaf"
        )
    return layers, entries


def piece(params: Mapping[str, jax.Array], path: str) -> jax.Array | None:
    """The leaf of that path, cut out of a larger piece of the stack if need be; None where there is none."""
    if path in params:
        return params[path]
    parsed = block_path(path)
    if parsed is None or parsed[0] is None:
        return None
    same = {other: leaf for other, leaf in params.items() if _inner(other) == _inner(path)}
    return cut(same, parsed[0]).get(path)


def _inner(path: str) -> str:
    """The path without the layers that a piece of a stack holds."""
    parsed = block_path(path)
    return f"blocks/{parsed[1]}" if parsed else path
