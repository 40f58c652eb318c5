"""Arrays that are long to make, on disk: made span of rows by span, kept when the run is killed, read memory-mapped.

An entry is a folder. Each array is one file of plain numbers, row after row; for each span of rows that is there a
small file `GROUP.START-STOP.json` holds the SHA-256 of its part of the group's arrays. A span is there whole or not at
all: its numbers are on disk before that file is.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from limbeck.model.files import disk_errors, locked, write_atomic
from limbeck.model.hosts import from_leader, leads, together
from limbeck.model.progress import progress

Arrays = dict[str, np.ndarray]
_SPAN_BYTES = 16 << 20  # what a kill costs at most: of a small teacher on CPU some ten seconds

# make(group, start, stop, advance) gives the arrays of those rows, and tells `advance` how many are done.
Make = Callable[[int, int, int, Callable[[int], None]], Arrays]


class Sheet(NamedTuple):
    """A group's arrays: how many rows, and of each array the shape of a row and the type."""

    rows: int
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of an array."""
        shape, dtype = self.arrays[name]
        return int(np.prod(shape)) * dtype.itemsize


def kept(entry: Path, sheets: Sequence[Sheet], make: Make, batch_size: int, what: str) -> list[Arrays]:
    """The arrays of all sheets, memory-mapped: what is in `entry` and sound is not made again.

    Spans are of whole batches. `what` is named beside the progress. Of several processes that ask at once, one makes
    them; of those that hold a model together (`hosts.py`) all make them, and the one that leads writes. What is damaged
    is said on stderr and made again. Raises UserError where the disk does not take them; it is asked for all the room
    before the first span is made.
    """
    if not from_leader(leads() and all(done_B.all() for done_B in _done(entry, sheets)[0])):
        alone = locked(entry.with_name(f".{entry.name}.lock"), wait=True) if leads() else contextlib.nullcontext()
        with alone:
            spans, had = [], 0
            if leads():
                done, damaged = _done(entry, sheets)  # another process may have made them meanwhile
                _prepare(entry, sheets, damaged)
                had = sum(int(done_B.sum()) for done_B in done)
                for number, sheet in enumerate(sheets):
                    most = batch_size * _batches(sheet, batch_size)
                    spans += [(number, *gap) for gap in _gaps(done[number], most)]
            with progress(what, sum(sheet.rows for sheet in sheets), "row", done=had) as advance:
                for number, start, stop in from_leader(spans):
                    made = make(number, start, stop, advance)
                    if leads():
                        _write(entry, number, sheets[number], start, made)
        together(f"{entry.name} is written")
    return [
        {name: np.asarray(_mapped(entry, number, sheet, name)) for name in sheet.arrays}
        for number, sheet in enumerate(sheets)
    ]


def _batches(sheet: Sheet, batch_size: int) -> int:
    """How many batches make a span."""
    return max(1, _SPAN_BYTES // (batch_size * sum(map(sheet.row_bytes, sheet.arrays))))


def bytes_of(array: np.ndarray) -> memoryview:
    """An array's numbers as bytes, for a digest."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _path(entry: Path, number: int, name: str) -> Path:
    return entry / f"{number}.{name}"


def _mapped(entry: Path, number: int, sheet: Sheet, name: str) -> np.memmap:
    shape, dtype = sheet.arrays[name]
    return np.memmap(_path(entry, number, name), dtype, "r", shape=(sheet.rows, *shape))


def _done(entry: Path, sheets: Sequence[Sheet]) -> tuple[list[np.ndarray], list[Path]]:
    """(which rows of each sheet are there, the files of spans that are not what was written)."""
    done, damaged = [np.zeros(sheet.rows, bool) for sheet in sheets], []
    for path in sorted(entry.iterdir()) if entry.is_dir() else []:
        if match := re.fullmatch(r"(\d+)\.(\d+)-(\d+)\.json", path.name):
            number, start, stop = map(int, match.groups())
            if number < len(sheets) and _sound(path, number, sheets[number], start, stop):
                done[number][start:stop] = True
            else:
                damaged.append(path)
    return done, damaged


def _sound(path: Path, number: int, sheet: Sheet, start: int, stop: int) -> bool:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: _mapped(path.parent, number, sheet, name)[start:stop] for name in sheet.arrays}
        return written == {name: hashlib.sha256(bytes_of(part)).hexdigest() for name, part in parts.items()}
    except (ValueError, FileNotFoundError):  # no JSON, no UTF-8, a file that is short or gone
        return False


def _prepare(entry: Path, sheets: Sequence[Sheet], damaged: Sequence[Path]) -> None:
    """Files of their full size, and nothing beside them that is no good."""
    for path in damaged:
        print(f"note: {path} is not what was written: its rows are made again", file=sys.stderr)
    with disk_errors(entry):
        entry.mkdir(parents=True, exist_ok=True)
        for path in [*damaged, *entry.glob(".*")]:  # the latter of a process that was killed
            path.unlink()
        try:
            for number, sheet in enumerate(sheets):
                for name in sheet.arrays:
                    size = sheet.rows * sheet.row_bytes(name)
                    with open(_path(entry, number, name), "ab") as file:
                        file.truncate(size)
                        if hasattr(os, "posix_fallocate"):  # not on macOS, which finds out as it writes
                            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            if not list(entry.glob("*.json")):
                shutil.rmtree(entry, ignore_errors=True)  # nothing is lost, and its space may be what is wanted
            raise


def _gaps(done_B: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """The stretches of rows that are not there, at most so many at a time."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], done_B, [True]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        for low in range(start, stop, most):
            yield low, min(low + most, stop)


def _write(entry: Path, number: int, sheet: Sheet, start: int, arrays: Arrays) -> None:
    digests = {}
    with disk_errors(entry):
        for name in sheet.arrays:
            data = bytes_of(arrays[name])
            with open(_path(entry, number, name), "r+b") as file:
                file.seek(start * sheet.row_bytes(name))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            digests[name] = hashlib.sha256(data).hexdigest()
            stop = start + len(arrays[name])
        write_atomic(entry / f"{number}.{start}-{stop}.json", json.dumps(digests))
