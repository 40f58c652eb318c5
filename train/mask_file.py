"""Masks out of a file: a NumPy `.npz` or a safetensors file that says which entries of which leaves are to train.

Each array bears the path of a leaf and is either a mask, booleans of the leaf's shape, or flat indices, [L, k] inside
the blocks and [k] elsewhere. Nothing is unpickled, no name becomes a path, and no more is read than a leaf can have.
"""

import contextlib
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from limbeck.model.chosen import check_index, layout, piece
from limbeck.model.errors import UserError, nearest
from limbeck.model.params import block_path
from limbeck.model.pretrained.stored_tensor import AGAIN, quoted, reading

_SAFETENSORS = {f"{kind.upper()}{8 * size}": np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}
_SAFETENSORS["BOOL"] = np.dtype(bool)
_HEADER = re.compile(r"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \}\s*")
# What the readers of zip, deflate and safetensors raise on bytes that are none.
_TORN = (
    zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, SyntaxError, TypeError, MemoryError,
    SafetensorError,
)  # fmt: skip


class _Stored(NamedTuple):
    """An array of a file: `dtype` is None where it is of another kind than booleans and integers."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def entries_of_file(params: Mapping[str, jax.Array], path: str | Path) -> dict[str, np.ndarray]:
    """The indices that `model.chosen.choose` takes, by leaf: int32, ascending, [L, k] or [k].

    Raises UserError for a file that is no such archive or torn, an array of no leaf of the model, of another kind or
    shape, with an entry that stands twice or outside, and for a mask with more entries in one layer than in another.
    """
    path = Path(path)
    kinds = {".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in kinds:
        raise UserError(f"{path}: masks are read from {' or '.join(kinds)}: save them as one of these")
    found: dict[str, np.ndarray] = {}
    with reading(path):
        for stored in kinds[path.suffix](path):
            if stored.name in found:
                raise UserError(f"{path}: {quoted(stored.name)} is there twice: save each mask once")
            found[stored.name] = _entries(f"{path}: {quoted(stored.name)}", params, stored)
    if not found:
        raise UserError(f"{path} holds no arrays: save a mask for each leaf under its path")
    return found


def _entries(where: str, params: Mapping[str, jax.Array], stored: _Stored) -> np.ndarray:
    leaf = piece(params, stored.name)
    if leaf is None:
        raise UserError(f"{where} is no parameter of the model{nearest(stored.name[:200], params)}")
    if stored.dtype is None or stored.dtype.kind not in "biu":
        raise UserError(f"{where} is of another kind: a mask is of booleans, indices are integers")
    stacked = block_path(stored.name) is not None
    layers, entries = layout(where, leaf.shape, stacked=stacked)
    if stored.dtype.kind == "b":
        if stored.shape != leaf.shape:
            raise UserError(f"{where} is a mask of {list(stored.shape)}, the parameter is {list(leaf.shape)}")
        rows = stored.read().reshape(layers, entries)
        counts = rows.sum(-1)
        if counts.min() != counts.max() or not counts.min():
            raise UserError(
                f"{where} has {counts.min()} to {counts.max()} entries in a layer: choose as many in every layer"
            )
        index = np.nonzero(rows)[1].reshape(layers, -1)
        return (index if stacked else index[0]).astype(np.int32)
    # Before anything is read: a few bytes of a compressed file may claim to be any number of zeros.
    if not stored.shape or math.prod(stored.shape) > layers * entries:
        raise UserError(f"{where} is {list(stored.shape)}: more indices than the parameter has entries, or none")
    index = np.sort(stored.read(), -1)
    check_index(where, leaf.shape, index, stacked=stacked)
    return index.astype(np.int32)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except _TORN as error:
        raise UserError(f"{path} is no whole {path.suffix} file of plain arrays: {AGAIN}") from error


def _npz(path: Path) -> Iterator[_Stored]:
    with _whole(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield _npy(path, archive, info)


def _npy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Stored:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{path} is compressed in a way that NumPy does not write: save it with numpy.savez")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file)

    def read() -> np.ndarray:
        assert dtype is not None
        size = math.prod(shape) * dtype.itemsize
        with _whole(path), archive.open(info) as file:
            _header(file)
            data = file.read(size + 1)  # one more: the end is where the sum of all bytes is compared
            if len(data) != size:
                raise ValueError(len(data))
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")

    return _Stored(info.filename.removesuffix(".npy"), dtype, shape, read)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype | None]:
    """Shape, whether in Fortran's order, and dtype of an array that NumPy wrote; its own reader evaluates the text."""
    start = file.read(10)
    text = file.read(int.from_bytes(start[8:], "little")).decode("ascii")
    match = _HEADER.fullmatch(text)
    if not start.startswith(b"\x93NUMPY\x01\x00") or match is None:
        raise ValueError(text)
    dtype = np.dtype(match[1]) if re.fullmatch(r"[|<>][biu][1248]", match[1]) else None
    return tuple(int(size) for size in re.findall(r"\d+", match[3])), match[2] == "True", dtype


def _safetensors(path: Path) -> Iterator[_Stored]:
    with _whole(path), safe_open(path, "np") as file:

        def read(name: str) -> np.ndarray:
            with _whole(path):
                return file.get_tensor(name)

        for name in file.keys():  # noqa: SIM118 - the library's object is no dict
            part = file.get_slice(name)
            dtype = _SAFETENSORS.get(part.get_dtype())
            yield _Stored(name, dtype, tuple(part.get_shape()), partial(read, name))
