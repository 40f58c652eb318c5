"""Parameters: plain arrays in a flat dict keyed by path, and the one idiom that names them.

The layers of a stack share a leaf with a leading layer axis: `blocks/attn/q/kernel` is `[L, D, N*H]`. Where layers
are treated differently (the last block trains, the others are frozen) the stack is cut into runs, and a leaf says
which layers it holds: `blocks/0:3/attn/q/kernel` and `blocks/3:4/attn/q/kernel`. The model takes either.

**Patterns** are an ordered list of regular expressions, matched whole. A leaf answers to its own name
(`blocks/attn/q/kernel`) and, layer by layer, to the name of each layer (`blocks/3/attn/q/kernel`).
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from limbeck.model.errors import UserError, nearest

Params = dict[str, jax.Array]

_BLOCK = re.compile(r"blocks/(?:(\d+):(\d+)/)?(.+)")


class Run(NamedTuple):
    """Consecutive layers whose leaves are stacked together; `leaves` are keyed by the path inside the block."""

    start: int
    stop: int
    leaves: Params


def block_path(path: str) -> tuple[tuple[int, int] | None, str] | None:
    """((start, stop) or None for the whole stack, path inside the block), or None for a leaf outside the blocks."""
    match = _BLOCK.fullmatch(path)
    if match is None:
        return None
    layers = (int(match[1]), int(match[2])) if match[1] else None
    return layers, match[3]


def runs(params: Mapping[str, jax.Array]) -> list[Run]:
    """The stack's runs of layers in order; raises UserError when they do not follow one another from layer 0."""
    found: dict[tuple[int, int], Params] = {}
    for path, leaf in params.items():
        if parsed := block_path(path):
            found.setdefault(parsed[0] or (0, leaf.shape[0]), {})[parsed[1]] = leaf
    ordered = [Run(*span, found[span]) for span in sorted(found)]
    stop = 0
    for run in ordered:
        if run.start != stop or any(leaf.shape[0] != run.stop - run.start for leaf in run.leaves.values()):
            raise UserError(
                f"the layers {[(r.start, r.stop) for r in ordered]} are not one stack: each leaf of a run "
                "needs its layers' number as first axis, and runs follow one another from layer 0"
            )
        stop = run.stop
    return ordered


def cut(params: Mapping[str, jax.Array], boundaries: Iterable[int]) -> Params:
    """The same parameters with the stack cut before each layer in `boundaries` (and wherever it was cut already)."""
    cuts = sorted(set(boundaries))
    out: Params = {}
    for path, leaf in params.items():
        parsed = block_path(path)
        if parsed is None:
            out[path] = leaf
            continue
        start, stop = parsed[0] or (0, leaf.shape[0])
        edges = [start, *(edge for edge in cuts if start < edge < stop), stop]
        if len(edges) == 2:
            out[path] = leaf
            continue
        for low, high in zip(edges, edges[1:], strict=False):
            out[f"blocks/{low}:{high}/{parsed[1]}"] = leaf[low - start : high - start]
    return out


def join(params: Mapping[str, jax.Array]) -> Params:
    """The same parameters with every cut leaf whole again: the canonical layout of files and digests."""
    out: Params = {}
    pieces: dict[str, list[tuple[int, jax.Array]]] = {}
    for path, leaf in params.items():
        parsed = block_path(path)
        if parsed and parsed[0]:
            pieces.setdefault(f"blocks/{parsed[1]}", []).append((parsed[0][0], leaf))
        else:
            out[path] = leaf
    for path, parts in pieces.items():
        out[path] = jax.numpy.concatenate([leaf for _, leaf in sorted(parts, key=lambda part: part[0])])
    return out


def layer_names(path: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> list[str]:
    """The names of a leaf, layer by layer; its own name alone outside the blocks."""
    parsed = block_path(path)
    if parsed is None:
        return [path]
    start, stop = parsed[0] or (0, leaf.shape[0])
    return [f"blocks/{layer}/{parsed[1]}" for layer in range(start, stop)]


def first_match(patterns: Sequence[str], params: Mapping[str, jax.Array]) -> dict[str, list[int | None]]:
    """For each leaf, layer by layer, the index of the first pattern that matches it, or None.

    Raises UserError for a pattern that is no regular expression, and for one that no leaf answers to (a dead one).
    """
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise UserError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    alive: set[int] = set()
    matches: dict[str, list[int | None]] = {}
    for path, leaf in params.items():
        parsed = block_path(path)
        own = f"blocks/{parsed[1]}" if parsed else path
        matches[path] = []
        for name in layer_names(path, leaf):
            hits = [i for i, regex in enumerate(compiled) if regex.fullmatch(name) or regex.fullmatch(own)]
            alive.update(hits)
            matches[path].append(hits[0] if hits else None)
    for index, pattern in enumerate(patterns):
        if index not in alive:
            names = {name for path, leaf in params.items() for name in (path, *layer_names(path, leaf))}
            hint = nearest(pattern, names) or f"; the first are {', '.join(sorted(params)[:6])}"
            raise UserError(f"pattern {pattern!r} matches no parameter{hint}")
    return matches


def split(params: Mapping[str, jax.Array], patterns: Sequence[str]) -> tuple[Params, Params]:
    """(trainable, frozen): the leaves that some pattern matches, and the others.

    A stack of which only some layers match is cut at the boundary. Raises UserError for a dead pattern.
    """
    matches = first_match(patterns, params)
    boundaries = set()
    for path, hits in matches.items():
        if parsed := block_path(path):
            start = parsed[0][0] if parsed[0] else 0
            boundaries |= {start + i for i in range(1, len(hits)) if (hits[i] is None) != (hits[i - 1] is None)}
    trainable: Params = {}
    frozen: Params = {}
    pieces = cut(params, boundaries)
    for path, hits in first_match(patterns, pieces).items():
        (frozen if hits[0] is None else trainable)[path] = pieces[path]
    return trainable, frozen


def merge(trainable: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> Params:
    """All parameters as one dict, as the model takes them."""
    return {**frozen, **trainable}


def count(params: Mapping[str, jax.Array]) -> int:
    """How many numbers the parameters are."""
    return sum(leaf.size for leaf in params.values())


def nbytes(params: Mapping[str, jax.Array]) -> int:
    """How many bytes the parameters take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in params.values())


def digest(params: Mapping[str, jax.Array]) -> str:
    """Hex SHA-256 over every leaf's path, dtype, shape and bytes in order of path, however the stack is cut."""
    sha = hashlib.sha256()
    for path, leaf in sorted(join(params).items()):
        array = np.asarray(leaf)
        header = f"{path}\0{array.dtype}\0{array.shape}\0".encode()
        sha.update(len(header).to_bytes(8, "little") + header)
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
