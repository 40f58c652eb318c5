"""How sure a measured value is: intervals and paired tests. Dimension key: `N` records, `R` resamples."""

import math
from collections.abc import Callable
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


def some(n: int) -> int:
    """`n` itself; no records is a UserError."""
    if n == 0:
        raise UserError("0 records have no score and no interval: give at least one record")
    return n


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (E. B. Wilson, JASA 22, 1927): closed form, sound near 0 and 1.

    n = 0 is a UserError.
    """
    some(n)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At no and at all successes the bounds are 0 and 1, which rounding may miss by a hair.
    return centre - half if successes else 0.0, centre + half if successes < n else 1.0


def share(hits: ArrayLike) -> Score:
    """The share of true values among hits [N], with Wilson's interval. No records is a UserError."""
    hits_N = np.asarray(hits, dtype=bool)
    return Score(float(hits_N.sum()) / some(hits_N.size), wilson(int(hits_N.sum()), hits_N.size), hits_N.size)


def share_difference(hits: ArrayLike, others: ArrayLike) -> Score:
    """The share of true values among hits [N] less that among other records' [M]; n is that of both.

    R. G. Newcombe (Statistics in Medicine 17, 1998, 873-890), method 10: Wilson's intervals of both, put together; it
    is sound where a share is 0 or 1. No records of either is a UserError.
    """
    a, b = share(hits), share(others)
    value = a.value - b.value
    low = value - math.hypot(a.value - a.ci95[0], b.ci95[1] - b.value)
    high = value + math.hypot(a.ci95[1] - a.value, b.value - b.ci95[0])
    return Score(value, (low, high), a.n + b.n)


def mean(values: ArrayLike) -> Score:
    """The mean of values [N], with a bootstrap interval. No records is a UserError."""
    values_N = np.asarray(values, dtype=np.float64)
    n = some(values_N.size)
    return Score(float(values_N.mean()), bootstrap_counts(n, lambda counts_RN: counts_RN @ values_N / n), n)


def bootstrap(
    values: ArrayLike, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0, n: int = 2000
) -> tuple[float, float]:
    """95 % percentile interval of a statistic over `n` resamples with replacement (Efron 1979).

    `values` is [N, ...]; `statistic` maps resamples [R, N, ...] to [R]. No values at all is a UserError.
    """
    array = np.asarray(values)
    size = some(len(array))
    rng = np.random.default_rng(seed)
    batch = max(1, _RESAMPLED_AT_ONCE // array.size)
    statistics = [
        statistic(array[rng.integers(size, size=(min(batch, n - done), size))]) for done in range(0, n, batch)
    ]
    return _percentiles(statistics)


def bootstrap_counts(
    records: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0, n: int = 2000, width: int = 1
) -> tuple[float, float]:
    """`bootstrap` for what can be said of how often each record was drawn, such as any function of sums.

    `statistic` maps float64 counts [R, N], each row's sum being N, to [R]. `width` is how many numbers it holds
    for one resample, where these are more than N. No records is a UserError.
    """
    if some(records) == 1:  # it is every resample
        value = float(statistic(np.ones((1, 1)))[0])
        return value, value
    rng = np.random.default_rng(seed)
    batch = max(1, _RESAMPLED_AT_ONCE // max(records, width))
    statistics = []
    for done in range(0, n, batch):
        rows = min(batch, n - done)
        drawn_RN = rng.integers(records, size=(rows, records)) + records * np.arange(rows)[:, None]
        counts_RN = np.bincount(drawn_RN.ravel(), minlength=rows * records).reshape(rows, records)
        statistics.append(statistic(counts_RN.astype(np.float64)))
    return _percentiles(statistics)


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


def _percentiles(statistics: list[np.ndarray]) -> tuple[float, float]:
    low, high = np.quantile(np.concatenate(statistics), (0.025, 0.975))
    return float(low), float(high)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a_N, b_N = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a_N.shape != b_N.shape or a_N.ndim != 1:
        raise ValueError(f"two systems on the same records: shapes {a_N.shape} and {b_N.shape}")
    some(a_N.size)
    return a_N, b_N
