"""A tensor in a file, read whole or in part when it is asked for.

With plain reads, into a buffer that belongs to the array: a mapped file counts as resident memory beside the arrays
that are made of it, and ends the process (SIGBUS) when it shrinks; and the safetensors library's way without a mapping
reads the whole tensor for any slice of it.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from limbeck.model.errors import UserError

WEIGHT_DTYPES = tuple(np.dtype(kind) for kind in (np.float32, ml_dtypes.bfloat16, np.float16))
LEGAL = ", ".join(str(dtype) for dtype in WEIGHT_DTYPES)
AGAIN = "copy or download it again"
PICKLE = (
    "is a pickle, which can run code and is not opened: "
    "save the model again as safetensors, with save_pretrained of transformers"
)

_ALIGNMENT = 64  # what jax asks of a buffer before it takes it over without a copy


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `tensor[index]` reads that part alone, into a buffer aligned to 64 bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    path: Path
    offset: int
    stamp: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The whole tensor. Raises UserError for a dtype that is none of weights, or a file that has changed."""
        return self[()]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The part that numpy would give for ints and slices without a step. Raises as `read` does."""
        if self.dtype not in WEIGHT_DTYPES:
            raise UserError(f"{self.path}: {quoted(self.name)} is {self.dtype}, weights are {LEGAL}: convert it first")
        index = index if isinstance(index, tuple) else (index,)
        items = index + (slice(None),) * (len(self.shape) - len(index))
        taken = [range(size)[item] for size, item in zip(self.shape, items, strict=True)]
        if any(isinstance(span, range) and span.step != 1 for span in taken):
            raise IndexError(f"{self.name}: slices of a stored tensor have no step")
        spans = [span if isinstance(span, range) else range(span, span + 1) for span in taken]
        out = aligned([len(span) for span in taken if isinstance(span, range)], self.dtype)
        if out.size:
            with reading(self.path), open(self.path, "rb", buffering=0) as file:
                if stamp(file) != self.stamp:
                    raise UserError(f"{self.path} has changed since it was opened: load the model again")
                _fill(out.reshape(-1).view(np.uint8), file, self, spans)
        return out


def _fill(out: np.ndarray, file: BinaryIO, tensor: StoredTensor, spans: Sequence[range]) -> None:
    partial = [axis for axis, span in enumerate(spans) if len(span) != tensor.shape[axis]]
    inner = partial[-1] if partial else 0  # the axes behind it are whole: from here on the bytes lie together
    strides = [math.prod(tensor.shape[axis + 1 :]) * tensor.dtype.itemsize for axis in range(len(spans))]
    first = tensor.offset + sum(span.start * stride for span, stride in zip(spans, strides, strict=True))
    run = math.prod(len(span) for span in spans[inner:]) * tensor.dtype.itemsize
    done = 0
    for outer in np.ndindex(*(len(span) for span in spans[:inner])):
        file.seek(first + sum(i * stride for i, stride in zip(outer, strides, strict=False)))
        stop = done + run
        while done < stop:
            count = file.readinto(out[done:stop])  # type: ignore[attr-defined]
            if not count:
                raise UserError(f"{tensor.path} ends within {quoted(tensor.name)}: {AGAIN}")
            done += count


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array of no particular content in a buffer that jax takes over as it is."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def stamp(file: BinaryIO) -> tuple[int, ...]:
    """What changes when a file is written anew."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a file into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {AGAIN}") from error


def quoted(value: object) -> str:
    """A name out of a file, in quotation marks and on one line, cut where it is too long to be read."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return repr(value if len(value) <= 100 else value[:90] + "...")
