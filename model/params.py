"""Parameters: plain arrays in a flat dict keyed by path, and the one idiom that names them.

The layers of a stack share a leaf with a leading layer axis: `blocks/attn/q/kernel` is `[L, D, N*H]`. Where layers
are treated differently (the last block trains, the others are frozen) the stack is cut into runs, and a leaf says
which layers it holds: `blocks/0:3/attn/q/kernel` and `blocks/3:4/attn/q/kernel`. A leaf that only some layers have (an
adapter in the upper half) is such a piece beside whole ones. The model takes any of it.

**Patterns** are an ordered list of regular expressions, matched whole. A leaf answers to its own name
(`blocks/attn/q/kernel`) and, layer by layer, to the name of each layer (`blocks/3/attn/q/kernel`).
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from limbeck.model.errors import UserError, nearest
from limbeck.model.hosts import on_host

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
    """The stack's runs of layers in order, cut wherever any leaf is.

    Raises UserError when they do not follow one another from layer 0.
    """
    found: dict[tuple[int, int], Params] = {}
    for path, leaf in cut(params, ()).items():
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
    """The same parameters with the stack cut before each layer in `boundaries`, and wherever any leaf is cut already.

    Raises UserError for a layer's leaf that is there twice.
    """
    spans = [parsed[0] for parsed in map(block_path, params) if parsed and parsed[0]]
    cuts = sorted({*boundaries, *(edge for span in spans for edge in span)})
    out: Params = {}
    for path, leaf in params.items():
        parsed = block_path(path)
        pieces = {path: leaf}
        if parsed is not None:
            start, stop = parsed[0] or (0, leaf.shape[0])
            edges = [start, *(edge for edge in cuts if start < edge < stop), stop]
            if len(edges) > 2:
                pieces = {
                    f"blocks/{low}:{high}/{parsed[1]}": leaf[low - start : high - start]
                    for low, high in zip(edges, edges[1:], strict=False)
                }
        if twice := pieces.keys() & out.keys():
            raise UserError(f"{min(twice)} is there twice: in a piece of the stack and in the whole of it")
        out |= pieces
    return out


def apart(params: Mapping[str, jax.Array]) -> Params:
    """The same parameters, every layer a piece of its own: on a CPU a view of the same memory."""
    out: Params = {}
    for path, leaf in params.items():
        if block_path(path) is None:
            out[path] = leaf
            continue
        whole = np.asarray(leaf)
        for at, piece in enumerate(layer_paths(path, leaf)):
            out[piece] = jax.device_put(whole[at : at + 1])  # `asarray` would copy it
    return out


def layer_paths(path: str, leaf: jax.Array) -> list[str]:
    """The paths of a leaf that is taken apart, layer by layer; its own alone outside the blocks."""
    parsed = block_path(path)
    if parsed is None:
        return [path]
    start, stop = parsed[0] or (0, leaf.shape[0])
    return [f"blocks/{layer}:{layer + 1}/{parsed[1]}" for layer in range(start, stop)]


def join(params: Mapping[str, jax.Array]) -> Params:
    """The same parameters with neighbouring pieces of a cut leaf put together: the layout of files and digests.

    A leaf that all layers have is whole again. One that only some have, or that has other sizes in some (an adapter's
    rank), stays in as few pieces as can be.
    """
    out: Params = {}
    pieces: dict[str, list[tuple[int, int, list[jax.Array]]]] = {}
    depth = 0
    for path, leaf in params.items():
        parsed = block_path(path)
        if parsed is None:
            out[path] = leaf
            continue
        start, stop = parsed[0] or (0, leaf.shape[0])
        pieces.setdefault(parsed[1], []).append((start, stop, [leaf]))
        depth = max(depth, stop)
    for name, found in pieces.items():
        together: list[tuple[int, int, list[jax.Array]]] = []
        for start, stop, leaves in sorted(found, key=lambda piece: piece[:2]):
            last = together[-1] if together else None
            if last and last[1] == start and last[2][0].shape[1:] == leaves[0].shape[1:]:
                together[-1] = (last[0], stop, [*last[2], *leaves])
            else:
                together.append((start, stop, leaves))
        for start, stop, leaves in together:
            path = f"blocks/{name}" if (start, stop) == (0, depth) else f"blocks/{start}:{stop}/{name}"
            out[path] = leaves[0] if len(leaves) == 1 else jax.numpy.concatenate(leaves)
    return out


def layer_names(path: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> list[str]:
    """The names of a leaf, layer by layer; its own name alone outside the blocks."""
    parsed = block_path(path)
    if parsed is None:
        return [path]
    start, stop = parsed[0] or (0, leaf.shape[0])
    return [f"blocks/{layer}/{parsed[1]}" for layer in range(start, stop)]


Dead = Literal["refused", "allowed"]  # of patterns that no leaf answers to


def first_match(
    patterns: Sequence[str], params: Mapping[str, jax.Array], dead: Dead = "refused"
) -> dict[str, list[int | None]]:
    """For each leaf, layer by layer, the index of the first pattern that matches it, or None.

    Raises UserError for a pattern that is no regular expression, and for one that no leaf answers to (a `dead` one).
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
        if index not in alive and dead == "refused":
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


def weights(path: str, shape: Sequence[int]) -> int:
    """How many weights a leaf of that path holds: a byte of NF4 codes two, the scales of a quantised kernel none."""
    return math.prod(shape) * (2 if path.endswith("/kernel_nf4") else 0 if path.endswith("/kernel_scale") else 1)


def count(params: Mapping[str, jax.Array]) -> int:
    """How many weights the parameters are, in however few bits each is kept (see `quantize.py`)."""
    return sum(weights(path, leaf.shape) for path, leaf in params.items())


def nbytes(params: Mapping[str, jax.Array]) -> int:
    """How many bytes the parameters take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in params.values())


def digest(params: Mapping[str, jax.Array]) -> str:
    """Hex SHA-256 over every leaf's path, dtype, shape and bytes in order of path, however the stack is cut."""
    sha = hashlib.sha256()
    for path, leaf in sorted(join(params).items()):
        array = np.asarray(on_host(leaf))
        header = f"{path}\0{array.dtype}\0{array.shape}\0".encode()
        sha.update(len(header).to_bytes(8, "little") + header)
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
