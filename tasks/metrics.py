"""Quality with its interval. Dimension key: `N` records, `R` resamples, `C` classes."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from limbeck.model.errors import UserError

_RESAMPLED_AT_ONCE = 1 << 20  # numbers held by one batch of resamples: 8 MiB instead of R * N


@dataclass(frozen=True)
class Score:
    """A measured value, its 95 % interval and the number of records behind it."""

    value: float
    ci95: tuple[float, float]
    n: int


def normalise(answer: str) -> str:
    """The form in which two answers are compared: Unicode NFC, no white space around it."""
    return unicodedata.normalize("NFC", answer).strip()


def correct(predictions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """bool [N]: which predictions equal their answers, both normalised. No records is a UserError."""
    _some(len(answers))
    return np.array([normalise(p) == normalise(a) for p, a in zip(predictions, answers, strict=True)])


def accuracy(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The share of exact matches after `normalise`, with Wilson's interval. No records is a UserError."""
    hits_N = correct(predictions, answers)
    return Score(float(hits_N.mean()), wilson(int(hits_N.sum()), hits_N.size), hits_N.size)


def macro_f1(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The unweighted mean of F1 over the classes met in predictions or answers, with a bootstrap interval.

    No records is a UserError.
    """
    n = _some(len(answers))
    pairs = [(normalise(p), normalise(a)) for p, a in zip(predictions, answers, strict=True)]
    classes, codes = np.unique(np.array(pairs, dtype=object), return_inverse=True)
    codes_N2 = codes.reshape(n, 2)

    def statistic(codes_RN2: np.ndarray) -> np.ndarray:
        return _f1_of_each(codes_RN2, len(classes))

    return Score(float(statistic(codes_N2[None])[0]), bootstrap(codes_N2, statistic, seed=0), n)


METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Score]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
}


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (E. B. Wilson, JASA 22, 1927): closed form, sound near 0 and 1.

    n = 0 is a UserError.
    """
    _some(n)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    values: ArrayLike, statistic: Callable[[np.ndarray], np.ndarray], seed: int, n: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of a statistic over `n` resamples with replacement (Efron 1979).

    `values` is [N, ...]; `statistic` maps resamples [R, N, ...] to [R]. No values at all is a UserError.
    """
    array = np.asarray(values)
    size = _some(len(array))
    rng = np.random.default_rng(seed)
    batch = max(1, _RESAMPLED_AT_ONCE // array.size)
    statistics = [
        statistic(array[rng.integers(size, size=(min(batch, n - done), size))]) for done in range(0, n, batch)
    ]
    low, high = np.quantile(np.concatenate(statistics), (0.025, 0.975))
    return float(low), float(high)


def paired_bootstrap(a: ArrayLike, b: ArrayLike, seed: int = 0, n: int = 2000) -> Score:
    """mean(a) - mean(b) with its interval, for two systems measured [N] on the same records, same order.

    No records is a UserError.
    """
    a_N, b_N = _paired(a, b)
    difference_N = a_N - b_N
    low_high = bootstrap(difference_N, lambda values_RN: values_RN.mean(axis=1), seed, n)
    return Score(float(difference_N.mean()), low_high, difference_N.size)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p that a and b, right or wrong [N] on the same records, are equally often right.

    The binomial form of Q. McNemar (Psychometrika 12, 1947). No records is a UserError.
    """
    a_N, b_N = _paired(a, b)
    only_a, only_b = int(((a_N > 0) & (b_N == 0)).sum()), int(((a_N == 0) & (b_N > 0)).sum())
    disagreements = only_a + only_b
    ways = term = 1  # whole numbers: exact for any count
    for i in range(min(only_a, only_b)):
        term = term * (disagreements - i) // (i + 1)
        ways += term
    return min(1.0, 2 * ways / 2**disagreements)


def _some(n: int) -> int:
    if n == 0:
        raise UserError("0 records have no score and no interval: give at least one record")
    return n


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_N.shape != b_N.shape or a_N.ndim != 1:
        raise ValueError(f"two systems on the same records: shapes {a_N.shape} and {b_N.shape}")
    _some(a_N.size)
    return a_N, b_N


def _f1_of_each(codes_RN2: np.ndarray, classes: int) -> np.ndarray:
    """Macro F1 [R] of each resample of (prediction, answer) codes, over the classes that are in it."""
    resamples = codes_RN2.shape[0]
    offset_R1 = np.arange(resamples)[:, None] * classes

    def counts(codes_RN: np.ndarray, weights_RN: np.ndarray | None = None) -> np.ndarray:
        weights = None if weights_RN is None else weights_RN.ravel()
        flat = np.bincount((codes_RN + offset_R1).ravel(), weights, minlength=resamples * classes)
        return flat.reshape(resamples, classes)

    predicted_RN, right_RN = codes_RN2[..., 0], codes_RN2[..., 1]
    hits_RC = counts(right_RN, (predicted_RN == right_RN).astype(np.float64))
    met_RC = counts(predicted_RN) + counts(right_RN)
    f1_RC = 2 * hits_RC / np.maximum(met_RC, 1)
    return f1_RC.sum(axis=1) / (met_RC > 0).sum(axis=1)
