"""The files that hold a model's weights: safetensors, one file or shards with an index, replaced as a whole."""

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, sync_folder
from limbeck.model.hosts import leads
from limbeck.model.pretrained.stored_tensor import AGAIN, LEGAL, PICKLE, StoredTensor, quoted, reading, stamp

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_WEIGHTS = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
_DTYPES = {name: np.dtype(kind) for name, kind in _WEIGHTS.items()} | {
    # What a published file may carry besides: listed, so that it can be told by its name, and refused when read.
    "BOOL": np.dtype(bool),
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {np.dtype(kind): name for name, kind in _WEIGHTS.items()}
_LARGEST_JSON = 100_000_000  # the library's own limit for a header
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model folder by name; nothing but the headers is read.

    Raises UserError, naming the file, when there are no weights, only pickles, or two sets of weights, and when an
    index or a header is not exactly what it has to be or leads out of the folder.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / INDEX):
        if not os.path.lexists(folder / SINGLE):
            raise UserError(_no_weights(folder))
        return {tensor.name: tensor for tensor in open_file(folder, SINGLE)}
    placed = _read_index(folder)
    if SINGLE not in placed.values() and os.path.lexists(folder / SINGLE):
        raise UserError(f"{folder} holds {SINGLE} and {INDEX}, which does not name it: remove the one that is stale")
    tensors: dict[str, StoredTensor] = {}
    for shard in dict.fromkeys(placed.values()):
        for tensor in open_file(folder, shard):
            if placed.get(tensor.name) != shard:
                where = f"in {quoted(placed[tensor.name])}" if tensor.name in placed else "nowhere"
                raise UserError(f"{folder / shard} holds {quoted(tensor.name)}, which the index has {where}: {AGAIN}")
            tensors[tensor.name] = tensor
    for name, shard in placed.items():
        if name not in tensors:
            raise UserError(f"{folder / INDEX} has {quoted(name)} in {quoted(shard)}, which does not hold it: {AGAIN}")
    return {name: tensors[name] for name in placed}


def _read_index(folder: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    path = folder / INDEX
    with reading(path), open(inside(folder, INDEX), "rb") as file:
        content = parse_json(path, file.read(_LARGEST_JSON + 1))
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{path} has no weight_map from tensors to files: {AGAIN}")
    for shard in placed.values():
        # Not printable: a NUL or half a surrogate pair, which no call of the operating system takes.
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\:]+\.safetensors", shard) or not shard.isprintable():
            raise UserError(f"{path} names {quoted(shard)}: a shard is a .safetensors file in the same folder")
    return placed


def open_file(folder: Path, name: str) -> list[StoredTensor]:
    """The tensors of one file as its header has them."""
    path = folder / name
    real = inside(folder, name)
    with reading(path), open(real, "rb") as file:
        seen = stamp(file)
        try:
            with safe_open(real, "np"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path} is no whole safetensors file ({_one_line(error)}): {AGAIN}") from error
        length = int.from_bytes(file.read(8), "little")
        # The library has checked types, sizes, and that the tensors follow each other from the header to the end.
        # It keeps the last of two tensors of one name (parse_json refuses them), and takes other spellings of an entry.
        header = parse_json(path, file.read(min(length, _LARGEST_JSON)))
    header.pop("__metadata__", None)
    tensors = []
    for tensor, entry in header.items():
        kind = entry["dtype"] if isinstance(entry, dict) else None
        if not isinstance(kind, str) or kind not in _DTYPES:
            raise UserError(f"{path}: {quoted(tensor)} is {quoted(kind)}, weights are {LEGAL}: convert it first")
        shape = tuple(entry["shape"])
        if len(shape) > 32 or math.prod(max(size, 1) for size in shape) > 2**59:  # possible where one axis is 0
            raise UserError(f"{path}: {quoted(tensor)} has a shape that no array can have: {AGAIN}")
        tensors.append(StoredTensor(tensor, shape, _DTYPES[kind], path, 8 + length + entry["data_offsets"][0], seen))
    return tensors


def inside(folder: Path, name: str) -> Path:
    """The real path of a file of the folder; raises UserError where a link leads out of it, or there is no file."""
    path = folder / name
    with reading(path):
        real, root = Path(os.path.realpath(path, strict=True)), Path(os.path.realpath(folder, strict=True))
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            root = root.parent.parent  # Hugging Face's cache: a snapshot is made of links to the model's blobs
        if not real.is_relative_to(root):
            raise UserError(f"{path} is a link that leads out of the folder: put the file itself in its place")
        if not real.is_file():
            raise UserError(f"{path} is not a file: {AGAIN}")
    return real


def parse_json(path: Path, data: bytes) -> Any:
    """Parses JSON in which no object has two values for one name."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for name, value in pairs:
            if name in content:
                raise ValueError(f"{quoted(name)} is there twice")
            content[name] = value
        return content

    try:
        return json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not to be understood ({_one_line(error)}): {AGAIN}") from error


def _one_line(error: Exception) -> str:
    """An error's words, on one line and cut where they are too many."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:190] + "..."


def _no_weights(folder: Path) -> str:
    with reading(folder):
        found = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    if shards := [path for path in found if _SHARD.fullmatch(path.name)]:
        return f"{folder} holds {shards[0].name} but no {INDEX}, which names the shards: {AGAIN}"
    pickles = [path for path in found if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl") and path.is_file()]
    if pickles:
        return f"{pickles[0]} {PICKLE}"
    return f"no weights in {folder}: a model folder holds {SINGLE}, or {INDEX} and its shards"


class Unsaved(NamedTuple):
    """A tensor to be written; `make` is called once, when its turn has come."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def save_weights(folder: Path, tensors: Iterable[Unsaved], max_shard_bytes: int = 5 * 10**9) -> list[str]:
    """Writes float32, bfloat16 or float16 tensors, one in memory at a time, and returns the names of the files.

    That is one file, or shards of at most `max_shard_bytes` (but at least one tensor) and their index. Until all are
    written the folder keeps its old weights; then they change places, and a kill meanwhile leaves the old, the new, or
    a folder that `open_weights` refuses, never a mixture. One writer at a time: of processes that hold the tensors
    together all must call this, and the one that leads writes. Raises UserError on a full disk.
    """
    shards = _cut(tensors, max_shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    placed = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    if len(placed) != sum(map(len, shards)):
        raise ValueError("two tensors of one name")
    contents = {name: _parts(shard) for name, shard in zip(names, shards, strict=True)}
    if len(shards) > 1:
        total = sum(_size(tensor) for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        contents[INDEX] = [lambda: json.dumps(index, indent=2).encode()]
    if not leads():  # the process that does takes the others' parts of every tensor
        for parts in contents.values():
            for part in parts:
                part()
        return list(contents)
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in folder.glob(".model*.safetensors*.new"):
            left_by_a_kill.unlink()
        with contextlib.ExitStack() as temporaries:
            _exchange(folder, {name: _stage(folder, name, parts, temporaries) for name, parts in contents.items()})
    return list(contents)


def _cut(tensors: Iterable[Unsaved], max_shard_bytes: int) -> list[list[Unsaved]]:
    shards: list[list[Unsaved]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + _size(tensor) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += _size(tensor)
    return shards


def _exchange(folder: Path, staged: dict[str, Path]) -> None:
    """Puts the new files in place of the old. An index is gone before a file it names changes, and comes last."""
    index = staged.pop(INDEX, None)
    if index:
        (folder / INDEX).unlink(missing_ok=True)
        sync_folder(folder)
    for name, path in staged.items():
        os.replace(path, folder / name)
    sync_folder(folder)
    if index:
        os.replace(index, folder / INDEX)
        sync_folder(folder)
    stale = [] if index else [folder / INDEX]
    stale += [path for path in folder.iterdir() if path.name == SINGLE or _SHARD.fullmatch(path.name)]
    for path in stale:
        if path.name not in staged:
            path.unlink(missing_ok=True)
    sync_folder(folder)


def _stage(folder: Path, name: str, parts: list[Callable[[], Any]], temporaries: contextlib.ExitStack) -> Path:
    """Writes a file under a name of its own, which goes when `temporaries` ends unless it was moved before."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".new")
    temporaries.callback(Path(path).unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as file:
        for part in parts:
            file.write(part())
        file.flush()
        os.fsync(file.fileno())
    os.chmod(path, 0o644)
    return Path(path)


def file_bytes(tensors: list[Unsaved]) -> bytes:
    """A whole safetensors file, for tensors that are small together."""
    return b"".join(memoryview(part()).cast("B") for part in _parts(tensors))


def _parts(tensors: list[Unsaved]) -> list[Callable[[], Any]]:
    """What a safetensors file is made of: its header, then each tensor's bytes."""
    # Wide numbers first: so each starts at a multiple of its size.
    ordered = sorted(tensors, key=lambda tensor: -np.dtype(tensor.dtype).itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    stop = 0
    for tensor in ordered:
        if np.dtype(tensor.dtype) not in _NAMES:
            raise UserError(f"{tensor.name} is {np.dtype(tensor.dtype)}, weights are written as {LEGAL}: cast it first")
        if tensor.name in header:
            raise ValueError(f"{tensor.name} cannot be a tensor's name")
        start, stop = stop, stop + _size(tensor)
        kind = _NAMES[np.dtype(tensor.dtype)]
        header[tensor.name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [lambda: len(text).to_bytes(8, "little") + text, *(lambda t=tensor: _bytes(t) for tensor in ordered)]


def _bytes(tensor: Unsaved) -> np.ndarray:
    array = tensor.make()
    if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
        raise ValueError(f"{tensor.name} was to be {tensor.dtype}{tensor.shape}, is {array.dtype}{array.shape}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _size(tensor: Unsaved) -> int:
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
