"""Paired differences: Tango's interval against its definition, a published case and a quartic; the bootstrap."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from limbeck.evaluation.paired import paired_difference, tango
from limbeck.model.errors import UserError
from limbeck.tasks.intervals import Score, paired_bootstrap

Z2 = NormalDist().inv_cdf(0.975) ** 2


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[int], list[int]]:
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return a, b


def test_a_published_case() -> None:
    """Airway reactivity before and after a transplant (Fagerland et al., Statistics in Medicine 33, 2014)."""
    score = paired_difference(*pairs(1, 1, 7, 12))
    assert score.value == pytest.approx(-6 / 21)
    assert score.ci95 == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert score.n == 21


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 40))
def test_bounds_are_where_the_score_test_is_just_significant(only_a: int, only_b: int, alike: int) -> None:
    """Squaring Tango's equation twice gives a quartic: its roots, and +-1, are the only places for a bound."""
    n = only_a + only_b + alike
    if n == 0:
        return
    value = (only_a - only_b) / n
    low, high = tango(only_a, only_b, n)
    assert -1 <= low <= value <= high <= 1
    x = np.polynomial.Polynomial([0, 1])
    linear = (2 * n - only_a + only_b) * x - only_a - only_b
    # gap^2 = z^2 n (2 q + x (1 - x)) and 4 n q + linear = sqrt(linear^2 + 8 n only_b x (1 - x))
    rest = 2 * (only_a - only_b - n * x) ** 2 / Z2 - 2 * n * x * (1 - x) + linear
    quartic = rest**2 - (linear**2 + 8 * n * only_b * x * (1 - x))
    scale = np.abs(quartic.coef).max()
    for bound in (low, high):
        if 1e-6 < abs(bound) < 1 - 1e-6:
            assert abs(quartic(bound)) < 1e-6 * scale


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(12, 2, 50), (1, 7, 21), (9, 10, 40), (0, 5, 12), (86, 150, 1600)])
def test_bounds_by_likelihood(only_a: int, only_b: int, n: int) -> None:
    """At a bound the difference is sqrt(z^2) of its own standard errors under the likeliest proportions there."""
    for bound in tango(only_a, only_b, n):

        def loss(share_b: float, bound: float = bound) -> float:
            share_a = share_b + bound
            rest = 1 - share_a - share_b
            terms = zip((only_a, only_b, n - only_a - only_b), (share_a, share_b, rest), strict=True)
            return -sum(count * math.log(share) for count, share in terms if count)

        low, high = max(0.0, -bound), (1 - bound) / 2
        share_b = minimize_scalar(loss, (low, high), bounds=(low + 1e-12, high - 1e-12), method="bounded",
                                  options={"xatol": 1e-12}).x  # fmt: skip
        variance = (2 * share_b + bound - bound**2) / n
        assert ((only_a - only_b) / n - bound) ** 2 / variance == pytest.approx(Z2, rel=1e-3)


def test_ends_in_closed_form() -> None:
    assert tango(0, 0, 10) == pytest.approx((-Z2 / (10 + Z2), Z2 / (10 + Z2)))  # two that never disagree
    assert tango(10, 0, 10)[1] == 1.0 and tango(0, 10, 10)[0] == -1.0
    assert 0 < tango(10, 0, 10)[0] < 1
    assert tango(1, 0, 1)[0] > -1


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_nought_is_outside_where_mcnemars_test_says_so(only_a: int, only_b: int, alike: int) -> None:
    n = only_a + only_b + alike
    if n == 0:
        return
    low, high = tango(only_a, only_b, n)
    if abs((only_a - only_b) ** 2 - Z2 * (only_a + only_b)) > 1e-6:
        assert (low > 0 or high < 0) == ((only_a - only_b) ** 2 > Z2 * (only_a + only_b))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_methods_and_records_may_change_places(both: int, only_a: int, only_b: int, neither: int) -> None:
    a, b = pairs(both, only_a, only_b, neither)
    score, other = paired_difference(a, b), paired_difference(b, a)
    assert other.value == -score.value
    assert other.ci95 == pytest.approx((-score.ci95[1], -score.ci95[0]), abs=1e-9)
    assert paired_difference(a[::-1], b[::-1]) == score == paired_difference([x == 1 for x in a], np.array(b, bool))


def test_it_narrows_and_nears_the_normal_interval() -> None:
    a, b = pairs(500, 200, 100, 200)
    score = paired_difference(a, b)
    half = 1.96 * np.std(np.subtract(a, b)) / math.sqrt(1000)
    assert score.value == pytest.approx(0.1)
    assert score.ci95 == pytest.approx((0.1 - half, 0.1 + half), abs=5e-4)


def test_it_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(40, [0.5, 0.15, 0.05, 0.3], size=1000)
    covered = [low <= 0.1 <= high for low, high in (tango(int(row[1]), int(row[2]), 40) for row in drawn)]
    assert 0.93 <= np.mean(covered) <= 0.98


def test_other_numbers_are_resampled() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(80), rng.random(80)
    score = paired_difference(a.tolist(), b.tolist(), seed=3)
    assert score == paired_bootstrap(a, b, seed=3) != paired_difference(a.tolist(), b.tolist(), seed=4)
    assert isinstance(score, Score) and score.value == pytest.approx(a.mean() - b.mean())
    half = 1.96 * (a - b).std() / math.sqrt(80)
    assert score.ci95 == pytest.approx((score.value - half, score.value + half), abs=0.02)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="0 records"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="same records"):
        paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="not finite"):
        paired_difference([1.0, math.nan], [1.0, 0.0])
