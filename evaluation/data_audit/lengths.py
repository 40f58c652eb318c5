"""How long texts are: words, characters."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.evaluation.data_audit.normal import words


def lengths(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{"words", "characters"}: each {"min", "median", "p95", "max", "total"}.

    A character of a script without spaces is a word. Nothing where there are no texts.
    """
    counts = {
        "words": [len(words(text)) for text in texts],
        "characters": [len(text) for text in texts],
    }
    return {unit: summary(each) for unit, each in counts.items()} if texts else {}


def summary(numbers: Sequence[float]) -> dict[str, float]:
    """{"min", "median", "p95", "max", "total"} of one or more numbers; whole ones stay whole where they can."""
    low, middle, high, most = np.quantile(numbers, (0, 0.5, 0.95, 1)).tolist()
    found = {"min": low, "median": middle, "p95": high, "max": most, "total": float(np.sum(numbers))}
    return {name: int(value) if value == int(value) else value for name, value in found.items()}
