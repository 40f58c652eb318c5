"""Two methods on the same records: by how much one is better, and how sure that is."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from limbeck.tasks.intervals import Score, paired_bootstrap


def paired_difference(right_a: ArrayLike, right_b: ArrayLike, seed: int = 0) -> Score:
    """mean(a) - mean(b) of [N] scores of the same records in the same order, with its 95 % interval.

    Of right and wrong (1 and 0) it is Tango's score interval, which has 0 in it exactly where McNemar's test without
    continuity correction finds no difference; of any other numbers the bootstrap's by `seed`. No records is a
    UserError; a score that is not finite, or shapes that differ, a ValueError.
    """
    a_N, b_N = np.asarray(right_a, np.float64), np.asarray(right_b, np.float64)
    if not (np.isfinite(a_N).all() and np.isfinite(b_N).all()):
        raise ValueError("scores of two methods have a value that is not finite")
    if a_N.shape != b_N.shape or not a_N.size or not np.isin((a_N, b_N), (0, 1)).all():
        return paired_bootstrap(a_N, b_N, seed)  # which says what is wrong with the shapes
    only_a, only_b = int((a_N > b_N).sum()), int((a_N < b_N).sum())
    return Score((only_a - only_b) / a_N.size, tango(only_a, only_b, a_N.size), a_N.size)


def tango(only_a: int, only_b: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of the difference of two paired proportions (T. Tango, Statistics in Medicine 17, 1998).

    `only_a` of `n` records were right by a alone, `only_b` by b alone. It is sound where few or none disagree. The
    bounds are the differences whose score test, by the likeliest proportions that have them, is just `level`.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)

    def score(difference: float) -> float:
        # The likeliest share of records right by b alone, given the difference: the root of a quadratic.
        linear = (2 * n - only_a + only_b) * difference - only_a - only_b
        constant = -only_b * difference * (1 - difference)
        share_b = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * share_b + difference * (1 - difference))))
        gap = only_a - only_b - n * difference
        return gap / spread if spread else math.copysign(math.inf, gap) if gap else 0.0

    value = (only_a - only_b) / n
    return _crossing(score, z, -1.0, value), _crossing(score, -z, value, 1.0)


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function passes `level` between low and high; the end that is nearer if it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return (low + high) / 2
