"""Rows of any lengths in batches of few shapes: padded to powers of two, a batch always of the same number of rows."""

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

_SMALLEST = 16

Shape = TypeVar("Shape", bound=Hashable)


def bucket(length: int, most: int | None = None, smallest: int = _SMALLEST) -> int:
    """The power of two that `length` tokens are padded to, but never more than `most`."""
    size = max(smallest, 1 << max(0, length - 1).bit_length())
    return size if most is None else min(size, most)


def batches(shapes: Sequence[Shape], size: int) -> Iterator[tuple[Shape, list[int]]]:
    """Indices of equal shape together, at most `size` at a time."""
    groups: dict[Shape, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    for shape, members in groups.items():
        for start in range(0, len(members), size):
            yield shape, members[start : start + size]


def padded(rows: Sequence[Sequence[int]], length: int, size: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [size, length], lengths): a short batch is filled with rows of one token."""
    tokens_BT = np.full((size, length), fill, np.int32)
    lengths_B = np.ones(size, np.int32)
    for i, row in enumerate(rows):
        tokens_BT[i, : len(row)] = row
        lengths_B[i] = len(row)
    return tokens_BT, lengths_B
