"""Points of a sweep, dicts from dotted field names to values, and three ways to combine lists of them.

chain(product(axis("seed", range(3)), axis("lora.rank", [4, 8])), [{"method": "full"}])  # 3 x 2 + 1 points
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

Point = dict[str, Any]


def axis(name: str, values: Iterable[Any]) -> list[Point]:
    """One point a value of one field."""
    return [{name: value} for value in values]


def product(*sweeps: Sequence[Point]) -> list[Point]:
    """Every combination of one point from each sweep; the last sweep turns fastest.

    Raises ValueError if two of them set the same field.
    """
    return [_merge(points) for points in itertools.product(*sweeps)]


def zipped(*sweeps: Sequence[Point]) -> list[Point]:
    """The first points together, the second ones together, and so on.

    Raises ValueError if the sweeps differ in length, or if two of them set the same field.
    """
    return [_merge(points) for points in zip(*sweeps, strict=True)]


def chain(*sweeps: Sequence[Point]) -> list[Point]:
    """All points of the first sweep, then all of the second, and so on."""
    return list(itertools.chain(*sweeps))


def _merge(points: Iterable[Point]) -> Point:
    merged: Point = {}
    for point in points:
        for name, value in point.items():
            if name in merged:
                raise ValueError(f"two sweeps set {name!r}")
            merged[name] = value
    return merged
