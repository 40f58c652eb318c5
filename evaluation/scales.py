"""How a metric is shown: its name in words, which way is better, where its values can lie, how many digits."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from limbeck.evaluation.quantities import quantity
from limbeck.tasks.metrics import METRICS

_NAMES = {
    "macro_f1": "macro F1", "micro_f1": "micro F1", "label_macro_f1": "macro F1 of labels", "token_f1": "token F1",
    "matthews": "Matthews", "pearson": "Pearson", "spearman": "Spearman", "mse": "squared error",
    "rouge_l": "ROUGE-L", "bleu": "BLEU", "chrf": "chrF",
}
# Beside the metrics of tasks, a run may report what a language model is measured by.
_LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "calibration_error", "loss", "validation_loss")
_BOUNDS = {
    **dict.fromkeys((name for name, metric in METRICS.items() if metric.higher_is_better), (0.0, 1.0)),
    **dict.fromkeys(("matthews", "pearson", "spearman"), (-1.0, 1.0)),
    **dict.fromkeys(("bleu", "chrf"), (0.0, 100.0)),
    "calibration_error": (0.0, 1.0),
}
# By what one answer alone is measured, of metrics that are no mean over records. BLEU of a text of fewer than four
# words is 0 even where it is right.
BY_RECORD: dict[str, str] = {
    **dict.fromkeys(("macro_f1", "matthews", "micro_f1", "label_macro_f1"), "accuracy"), "bleu": "chrf",
}
_COUNTS_HITS = ("accuracy", "macro_f1", "matthews", "micro_f1", "label_macro_f1", "exact_match")


def words(metric: str) -> str:
    """`macro F1` for "macro_f1"; an unknown name with spaces for underscores."""
    return _NAMES.get(metric, metric.replace("_", " "))


def heading(metric: str) -> str:
    """The name in words, with an arrow where lower is better."""
    return words(metric) if higher_is_better(metric) else f"{words(metric)} ↓"


def higher_is_better(metric: str) -> bool:
    """Also of metrics that no task has, such as perplexity."""
    return METRICS[metric].higher_is_better if metric in METRICS else metric not in _LOWER_IS_BETTER


def counts_hits(metric: str) -> bool:
    """Whether one answer is right or wrong by the metric, and nothing in between."""
    return metric in _COUNTS_HITS


def score_of(row: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """The row's {"value", "ci95", "n"} for the metric, None where it was not measured."""
    score = (row.get("metrics") or {}).get(metric)
    return None if score is None or score.get("value") is None else score


def seen(rows: Sequence[dict[str, Any]], metric: str) -> list[float]:
    """Every value of the metric in the rows, and the ends of its intervals."""
    scores = [score for row in rows if (score := score_of(row, metric)) is not None]
    return [value for score in scores for value in (score["value"], *(score.get("ci95") or ()))]


def limits(metric: str, values: Iterable[float]) -> tuple[float, float]:
    """The ends of an axis: zero, or -1 where values are negative and may be; the highest possible value, or seen."""
    values = [0.0, *values]
    low, high = min(values), max(values)
    if metric in _BOUNDS:
        lowest, highest = _BOUNDS[metric]
        return (min(lowest, low) if low < 0 else 0.0), max(highest, high)
    return (low, high) if low < high else (0.0, 1.0)


def digits(metric: str, values: Iterable[float]) -> int:
    """Decimals for all values of one column: two of a share, one of a percentage, else four figures of the largest."""
    if metric in _BOUNDS:
        return 2 if _BOUNDS[metric][1] == 1 else 1
    largest = max(map(abs, values), default=0.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 6) if largest else 2


def figure(value: float, decimals: int) -> str:
    """A value with so many decimals; from 100,000 on with a prefix, `1.23 M`."""
    return quantity(value) if abs(value) >= 1e5 else f"{value:.{decimals}f}"
