"""How near predicted numbers are to the right ones. Dimension key: `N` records, `R` resamples, `U` distinct values.

Numbers come as text. An answer that is no number is a mistake in the data, a UserError. A prediction that is
none, such as a generated "about two", must not stop an evaluation, nor be a way out of a bad guess: it stands for
the worst guess in sight, the lowest of all numbers, predicted and right, where its answer is high, and the highest
where it is low. So a model that writes no numbers at all correlates negatively, rather than not at all.
"""

import math
import reprlib
from collections.abc import Callable, Sequence

import numpy as np

from limbeck.model.errors import UserError
from limbeck.tasks.intervals import Score, bootstrap_counts, mean, some

_LARGEST = 1e100  # beyond it, numbers are as far as it: their squares could not be summed
_ROUNDING = 1e-28  # a mean square, of numbers about 1, that is nothing but rounding
_SPELLINGS = str.maketrans({"\u066b": ".", "\u066c": None, "\u2212": "-"})  # Arabic point and thousands, minus sign


def number(text: str) -> float | None:
    """The number that a text is, in the decimal digits of any script, or None: "3.5", "\u06f3\u066b\u06f5", "-1e3"."""
    try:
        value = float("" if "_" in text else text.translate(_SPELLINGS))  # Python alone reads 1_000 as a number
    except ValueError:
        return None
    return max(-_LARGEST, min(value, _LARGEST)) if math.isfinite(value) else None


def mse(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The mean squared error, with a bootstrap interval; less is better. No records is a UserError."""
    values_N2 = _numbers(predictions, answers)
    return mean((values_N2[:, 0] - values_N2[:, 1]) ** 2)


def pearson(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The linear correlation, in [-1, 1], with a bootstrap interval over records.

    0 where predictions or answers do not vary. No records is a UserError.
    """
    values_N2 = _numbers(predictions, answers, np.mean)
    # In [0, 1] nothing overflows, and what is constant is so exactly.
    from_zero_N2 = values_N2 - values_N2.min(axis=0)
    range_2 = from_zero_N2.max(axis=0)
    scaled_N2 = from_zero_N2 / np.where(range_2 > 0, range_2, 1.0)
    n = len(scaled_N2)

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        means_R2 = counts_RN @ scaled_N2 / n
        return _correlation(counts_RN, *(scaled_N2[:, i] - means_R2[:, i, None] for i in (0, 1)))

    return Score(float(statistic(np.ones((1, n)))[0]), bootstrap_counts(n, statistic), n)


def spearman(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The correlation of ranks, ties by their average rank, in [-1, 1], with a bootstrap interval over records.

    0 where predictions or answers do not vary. No records is a UserError.
    """
    values_N2 = _numbers(predictions, answers, np.median)
    orders = [np.unique(values_N, return_inverse=True)[1] for values_N in values_N2.T]
    n = len(values_N2)

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        return _correlation(counts_RN, *(_ranks(counts_RN, code_N) - (n + 1) / 2 for code_N in orders))

    return Score(float(statistic(np.ones((1, n)))[0]), bootstrap_counts(n, statistic), n)


def _numbers(
    predictions: Sequence[str], answers: Sequence[str], middle: Callable[[np.ndarray], float] | None = None
) -> np.ndarray:
    """float64 [N, 2] of predictions and answers, every prediction that is no number replaced by the worst one.

    `middle` of the answers tells the high ones from the low ones; without it, they are told by the middle of the
    range, so that the worst is the furthest.
    """
    some(len(answers))
    pairs = [(number(p), number(a)) for p, a in zip(predictions, answers, strict=True)]
    for text, (_, right) in zip(answers, pairs, strict=True):
        if right is None:
            raise UserError(
                f"answer {reprlib.repr(text)} is no number: write it as 3.5, or give the task another metric"
            )
    values_N2 = np.array(pairs, dtype=np.float64)  # None becomes nan
    low, high = np.nanmin(values_N2), np.nanmax(values_N2)
    if low == high:  # whoever says nothing must be wrong here too
        low, high = low - max(1.0, abs(low)), high + max(1.0, abs(high))
    predicted_N, right_N = values_N2.T
    worst_N = np.where(right_N > (middle(right_N) if middle else low / 2 + high / 2), low, high)
    return np.stack([np.where(np.isnan(predicted_N), worst_N, predicted_N), right_N], axis=1)


def _correlation(counts_RN: np.ndarray, x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
    """Pearson's r [R] of what has mean 0 in each resample; 0 where one of them is constant but for rounding."""
    xx_R, yy_R, xy_R = (
        np.einsum("rn,rn,rn->r", counts_RN, *pair) for pair in ((x_RN, x_RN), (y_RN, y_RN), (x_RN, y_RN))
    )
    varies_R = np.minimum(xx_R, yy_R) > _ROUNDING * counts_RN.shape[1]
    return np.divide(xy_R, np.sqrt(xx_R * yy_R), out=np.zeros_like(xy_R), where=varies_R).clip(-1, 1)


def _ranks(counts_RN: np.ndarray, code_N: np.ndarray) -> np.ndarray:
    """The rank of each value in each resample, equal values sharing the average of theirs.

    `code_N` numbers the distinct values in their order.
    """
    sorted_N = np.argsort(code_N, kind="stable")
    starts_U = np.flatnonzero(np.diff(code_N[sorted_N], prepend=-1))
    counts_RU = np.add.reduceat(counts_RN[:, sorted_N], starts_U, axis=1)
    ranks_RU = counts_RU.cumsum(axis=1) - (counts_RU - 1) / 2
    return ranks_RU[:, code_N]
