"""Points of a sweep: dicts from dotted field names to values."""

from collections.abc import Iterable
from typing import Any

Point = dict[str, Any]


def axis(name: str, values: Iterable[Any]) -> list[Point]:
    """One point a value of one field."""
    return [{name: value} for value in values]
