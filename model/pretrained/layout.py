"""Which stored tensor holds which part of which leaf, and the reading of the one and the making of the other."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax.errors import FlaxError

from limbeck.model.added import ADDED
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, nearest
from limbeck.model.hosts import on_host
from limbeck.model.params import block_path
from limbeck.model.pretrained.families import FAMILIES
from limbeck.model.pretrained.stored_tensor import StoredTensor, aligned
from limbeck.model.pretrained.weight_files import Unsaved
from limbeck.model.transformer import hidden, shapes

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]

# Buffers that older checkpoints carry and that follow from the config: masks and rotary frequencies.
_INERT = re.compile(r".*(\.attn\.bias|\.masked_bias|\.attention\.bias|rotary_emb\.inv_freq)")
_SUFFIXES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_BLOCK_BYTES = 2**25  # of a tensor that is turned or cast: so much of it exists twice


class Shaped(Protocol):
    """An array, a stored tensor, or the mere shape of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Source(NamedTuple):
    """Where a leaf's numbers are: a stored tensor for each layer of a stack, or one; and which part of it.

    Most keep a dense kernel output first, which is `transposed`. Of the outputs, `rows` are the leaf's, or, in each
    of `heads` heads, the `slot`-th of `slots`.
    """

    names: tuple[str, ...]
    rows: slice
    stacked: bool = False
    transposed: bool = False
    slot: int = 0
    slots: int = 1
    heads: int = 0


def sources(config: ModelConfig, leaves: Mapping[str, Shaped], bare: bool = False) -> dict[str, Source]:
    """The source of every leaf, in the names of `config.family`, or in our own where there is none.

    `bare` names lack the family's prefix, as those of a trunk that was saved without its head do.
    """
    if not config.family:
        return {path: Source((path,), slice(0, leaf.shape[-1])) for path, leaf in leaves.items()}
    family = FAMILIES[config.family]
    groups = {
        module: (group.split("+"), theirs) for group, theirs in family.modules.items() for module in group.split("+")
    }
    out = {}
    for path, leaf in leaves.items():
        parsed = block_path(path)
        module, _, kind = (parsed[1] if parsed else path).rpartition("/")
        together, theirs = groups[module]
        prefix = "" if bare or module in ("head", "score") else family.prefix
        layers = [family.layers.format(layer) for layer in range(config.depth)] if parsed else [""]
        names = tuple(f"{prefix}{layer}{theirs}.{_SUFFIXES[kind]}" for layer in layers)
        transposed = kind == "kernel" and not (family.input_first and parsed)
        source = Source(names, slice(0, leaf.shape[-1]), parsed is not None, transposed)
        if len(together) > 1 and family.fused_by_head:
            source = source._replace(slot=together.index(module), slots=len(together), heads=config.num_heads)
        elif len(together) > 1:
            before = [path.replace(module, other) for other in together[: together.index(module)]]
            start = sum(leaves[other].shape[-1] for other in before)
            source = source._replace(rows=slice(start, start + leaf.shape[-1]))
        out[path] = source
    return out


def locate(
    config: ModelConfig, stored: Mapping[str, StoredTensor], place: object
) -> tuple[ModelConfig, dict[str, Source]]:
    """(config, the source of every leaf): all of them are there, of the right shape, and nothing else is.

    The config comes back untied where the weights have a head that is not the embedding, whatever it said. Raises
    UserError for a tensor that is missing, surplus or of the wrong shape.
    """
    if not config.family:
        _check_own(config, stored, place)
        return config, sources(config, stored)
    expected = shapes(config)
    named, without = (sources(config, expected, bare)["embed/embedding"].names[0] for bare in (False, True))
    bare = named not in stored and without in stored
    tied = ""
    if config.tied_embedding and not config.labels:
        untied = dataclasses.replace(config, tied_embedding=False)
        tied = sources(untied, shapes(untied))["head/kernel"].names[0]
        embedding = stored.get(without if bare else named)
        if tied in stored and embedding and not _same(stored[tied], embedding):
            config, expected = untied, shapes(untied)
    located = sources(config, expected, bare)
    wanted: dict[str, tuple[int, ...]] = {}
    for path, source in located.items():
        shape = expected[path].shape[1:] if source.stacked else expected[path].shape
        for name in source.names:
            # Fused leaves add up along the output, which is the last axis of ours.
            outputs = shape[-1] + (wanted[name][-1] if name in wanted else 0)
            wanted[name] = (*shape[:-1], outputs)
    for name in wanted:
        if name not in stored:
            raise UserError(f"{place}: the tensor {name} is missing{nearest(name, stored)}")
    for source in located.values():
        for name in source.names:
            shape = wanted[name][::-1] if source.transposed else wanted[name]
            if stored[name].shape != shape:
                raise UserError(f"{place}: {name} has shape {stored[name].shape}, the config says {shape}")
    for name in stored.keys() - wanted.keys():
        if name != tied and not _INERT.fullmatch(f".{name}"):
            raise UserError(f"{place}: surplus tensor {name}{nearest(name, wanted)}; the config has no place for it")
    return config, located


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers, a block of each in memory at a time."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one[rows], other[rows]) for rows in _blocks(one, slice(0, one.shape[0])))


def _blocks(tensor: StoredTensor, rows: slice) -> Iterator[slice]:
    """The rows in stretches of at most `_BLOCK_BYTES` of the tensor."""
    step = max(1, _BLOCK_BYTES * tensor.shape[0] // max(1, tensor.nbytes))
    for start in range(rows.start, rows.stop, step):
        yield slice(start, min(start + step, rows.stop))


def _check_own(config: ModelConfig, stored: Mapping[str, StoredTensor], place: object) -> None:
    """Our own names are the leaves'; what a tuning method adds may come on top."""
    expected = shapes(config)
    for name, leaf in expected.items():
        if name not in stored:
            raise UserError(f"{place}: the parameter {name} is missing{nearest(name, stored)}")
        if stored[name].shape != leaf.shape:
            raise UserError(f"{place}: {name} has shape {stored[name].shape}, the config says {leaf.shape}")
    for name in stored.keys() - expected.keys():
        if not ADDED.fullmatch(name):
            raise UserError(f"{place}: surplus parameter {name}{nearest(name, expected)}")
    if stored.keys() - expected.keys():
        leaves = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in stored.items()}
        token_B1 = jax.ShapeDtypeStruct((1, 1), np.int32)
        try:
            jax.eval_shape(lambda params, tokens_BT: hidden(config, params, tokens_BT), leaves, token_B1)
        except (TypeError, ValueError, LookupError, AttributeError, FlaxError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{place}: the added parameters do not fit the model or each other: {reason}") from error


def leaf_shape(source: Source, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf whose tensors have the shape `stored`."""
    inner = stored[::-1] if source.transposed else stored
    inner = (*inner[:-1], source.rows.stop - source.rows.start)
    return (len(source.names), *inner) if source.stacked else inner


def read_leaf(
    path: str, source: Source, stored: Mapping[str, StoredTensor], dtype: Any, sharding: Sharding | None
) -> jax.Array:
    """One leaf, read into a buffer that jax takes over as it is; `dtype` casts on the way."""
    tensors = [stored[name] for name in source.names]
    kinds = {tensor.dtype for tensor in tensors}
    if dtype is None and len(kinds) > 1:
        raise UserError(f"{path}: its layers are stored as {', '.join(sorted(map(str, kinds)))}: load with a dtype")
    kind = np.dtype(dtype or tensors[0].dtype)
    shape = leaf_shape(source, tensors[0].shape)

    def read(index: Any) -> np.ndarray:
        spans = [slice(*span.indices(size)[:2]) for span, size in zip(index, shape, strict=True)]
        out = aligned([span.stop - span.start for span in spans], kind)
        if source.stacked:
            for place, layer in zip(out, range(spans[0].start, spans[0].stop), strict=True):
                _fill(place, tensors[layer], source, spans[1:])
        else:
            _fill(out, tensors[0], source, spans)
        return out

    if sharding is None:
        return jax.device_put(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding(path, shape), read)


def _fill(out: np.ndarray, tensor: StoredTensor, source: Source, spans: Sequence[slice]) -> None:
    """Reads the part at `spans` of one layer of a leaf, in blocks of the stored tensor's rows."""
    if source.slots > 1:
        whole = tensor.read()
        out_first = whole if source.transposed or whole.ndim == 1 else whole.T
        split = out_first.reshape(source.heads, source.slots, -1, *out_first.shape[1:])[:, source.slot]
        mine = split.reshape(-1, *out_first.shape[1:])
        out[...] = (mine.T if mine.ndim == 2 else mine)[tuple(spans)]
        return
    outputs = slice(source.rows.start + spans[-1].start, source.rows.start + spans[-1].stop)
    theirs = [outputs, *spans[:-1]] if source.transposed else [*spans[:-1], outputs]
    first = theirs[0]
    for rows in _blocks(tensor, first):
        block = tensor[(rows, *theirs[1:])]
        here = slice(rows.start - first.start, rows.stop - first.start)
        if source.transposed:
            _turn(block, out[:, here])
        else:
            out[here] = block


def _turn(x: np.ndarray, out: np.ndarray) -> None:
    """Writes the transpose of `x` into `out`, a cache line of each row at a time: three times as fast as at once."""
    lines, columns = 64 // out.dtype.itemsize, 512
    for row in range(0, x.shape[0], lines):
        for column in range(0, x.shape[1], columns):
            tile = x[row : row + lines, column : column + columns]
            out[column : column + columns, row : row + lines] = tile.T


def tensors(config: ModelConfig, params: Mapping[str, jax.Array]) -> Iterator[Unsaved]:
    """The tensors to be written, in the names of `config.family` or in ours; each is made when its turn comes."""
    located = sources(config, params)
    holders: dict[str, list[str]] = {}
    for path, source in located.items():
        for name in source.names:
            holders.setdefault(name, []).append(path)
    for name, paths in holders.items():
        paths = sorted(paths, key=lambda path: (located[path].slot, located[path].rows.start))
        source = located[paths[0]]
        leaves = [params[path] for path in paths]
        layer = source.names.index(name) if source.stacked else None
        shape = leaves[0].shape[1:] if source.stacked else leaves[0].shape
        shape = (*shape[:-1], sum(leaf.shape[-1] for leaf in leaves))
        yield _unsaved(name, shape[::-1] if source.transposed else shape, leaves, layer, source)


def _unsaved(
    name: str, shape: tuple[int, ...], leaves: Sequence[jax.Array], layer: int | None, source: Source
) -> Unsaved:
    def make() -> np.ndarray:
        parts = [np.asarray(on_host(leaf if layer is None else leaf[layer])) for leaf in leaves]
        if source.slots > 1:
            split = [(x.T if x.ndim == 2 else x).reshape(source.heads, -1, *x.shape[:-1]) for x in parts]
            whole = np.stack(split, 1).reshape(-1, *parts[0].shape[:-1])
            return whole if source.transposed or whole.ndim == 1 else whole.T
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, -1)
        if not source.transposed:
            return whole
        turned = np.empty(whole.shape[::-1], whole.dtype)
        _turn(whole, turned)
        return turned

    return Unsaved(name, shape, np.dtype(leaves[0].dtype), make)
