"""Intervals and paired tests against scipy, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from limbeck.model.errors import UserError
from limbeck.tasks import intervals
from limbeck.tasks.intervals import (
    Score,
    bootstrap,
    bootstrap_counts,
    mcnemar,
    mean,
    paired_bootstrap,
    share,
    share_difference,
    wilson,
)


@given(st.integers(1, 300), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(n: int, data: st.DataObject, level: float) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson(successes, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_near_the_ends() -> None:
    z2 = 1.959963984540054**2
    assert wilson(0, 10) == pytest.approx((0.0, z2 / (10 + z2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + z2), 1.0))
    assert wilson(0, 10)[0] >= 0.0 and wilson(10, 10)[1] <= 1.0


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
    low, high = bootstrap(values, lambda values_RN: values_RN.mean(axis=1), seed=0, n=4000)
    half = 1.96 * values.std() / math.sqrt(1000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_bootstrap_hangs_on_its_seed_alone() -> None:
    values = np.arange(50.0)

    def interval(seed: int) -> tuple[float, float]:
        return bootstrap(values, lambda values_RN: values_RN.mean(axis=1), seed)

    assert interval(0) == interval(0) != interval(1)


@pytest.mark.parametrize("held", [1, 200, 1 << 20])
def test_counts_and_resamples_give_one_interval_in_batches_of_any_size(monkeypatch, held: int) -> None:
    values = np.random.default_rng(0).normal(size=60)
    expected = bootstrap(values, lambda values_RN: np.exp(values_RN.sum(axis=1) / 60), seed=3)
    monkeypatch.setattr(intervals, "_RESAMPLED_AT_ONCE", held)
    assert bootstrap_counts(60, lambda counts_RN: np.exp(counts_RN @ values / 60), seed=3) == pytest.approx(expected)


def test_one_record_is_every_resample_and_asked_once() -> None:
    """So that a record alone has its score for the price of one: a corpus metric takes long over a thousand."""
    asked = []

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        asked.append(counts_RN.tolist())
        return counts_RN @ np.array([0.1])

    assert bootstrap_counts(1, statistic) == (0.1, 0.1) == bootstrap([0.1], lambda values_RN: values_RN[:, 0])
    assert asked == [[[1.0]]]


def test_the_memory_of_a_bootstrap_is_bounded() -> None:
    shapes = []

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        shapes.append(counts_RN.shape)
        assert (counts_RN.sum(axis=1) == 3000).all()
        return counts_RN[:, 0]

    bootstrap_counts(3000, statistic, n=700, width=20_000)
    assert sum(resamples for resamples, _ in shapes) == 700
    assert max(resamples for resamples, _ in shapes) * 20_000 <= 1 << 20


def test_the_intervals_cover_the_truth() -> None:
    """Of 400 samples of a known share and a known mean, about 95 % have it in their interval."""
    rng = np.random.default_rng(0)
    shares = [share(np.arange(50) < hits).ci95 for hits in rng.binomial(50, 0.9, 400)]
    assert 0.92 <= np.mean([low <= 0.9 <= high for low, high in shares]) <= 0.99
    means = [mean(rng.normal(2.0, 1.0, 60)).ci95 for _ in range(400)]
    assert 0.91 <= np.mean([low <= 2.0 <= high for low, high in means]) <= 0.98


def test_a_paired_difference_is_tighter_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(500) < 0.6
    better = base | (rng.random(500) < 0.1)
    difference = paired_bootstrap(better, base)
    assert difference.value == pytest.approx(better.mean() - base.mean())
    assert 0 < difference.ci95[0] < difference.value < difference.ci95[1]
    assert difference.ci95[1] - difference.ci95[0] < 0.08
    assert paired_bootstrap(base, base) == Score(0.0, (0.0, 0.0), 500)
    swapped = paired_bootstrap(base, better)
    assert swapped.ci95 == pytest.approx((-difference.ci95[1], -difference.ci95[0]), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_exact_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    only_a, only_b = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected) == mcnemar(b, a)


def test_mcnemar_by_enumeration() -> None:
    """Five disagreements, all for a: of the 32 equally likely ways to split them, two are as lopsided."""
    splits = list(itertools.product([0, 1], repeat=5))
    lopsided = sum(sum(split) in (0, 5) for split in splits) / len(splits)
    assert mcnemar([1] * 5 + [1] * 9, [0] * 5 + [1] * 9) == lopsided


def test_mcnemar_of_many_records() -> None:
    assert mcnemar([1] * 5000 + [0] * 4800, [0] * 5000 + [1] * 4800) == pytest.approx(binomtest(5000, 9800).pvalue)


@pytest.mark.parametrize(
    "measure",
    [
        lambda: wilson(0, 0),
        lambda: share([]),
        lambda: mean([]),
        lambda: paired_bootstrap([], []),
        lambda: mcnemar([], []),
        lambda: bootstrap([], np.mean, seed=0),
        lambda: bootstrap_counts(0, np.mean),
    ],
)
def test_no_records_have_no_interval(measure) -> None:
    with pytest.raises(UserError, match="0 records"):
        measure()


@pytest.mark.parametrize("n", [1, 7, 20, 1000])
def test_wilsons_interval_holds_its_share_at_either_end(n):
    assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0
    assert 0 < wilson(0, n)[1] < 1 and 0 < wilson(n, n)[0] < 1


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
    ],
)
def test_a_difference_of_shares_has_newcombes_interval(counts: tuple[int, ...], interval: tuple[float, float]) -> None:
    """Table II of the paper, method 10."""
    hits, n, other_hits, other_n = counts
    found = share_difference(np.arange(n) < hits, np.arange(other_n) < other_hits)
    assert found.value == pytest.approx(hits / n - other_hits / other_n) and found.n == n + other_n
    assert found.ci95 == pytest.approx(interval, abs=6e-5)


def test_a_difference_of_shares_holds_the_true_one_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    drawn = zip(rng.binomial(40, 0.1, 4000), rng.binomial(30, 0.02, 4000), strict=True)
    found = (share_difference(np.arange(40) < a, np.arange(30) < b).ci95 for a, b in drawn)
    covered = [low <= 0.08 <= high for low, high in found]
    assert abs(np.mean(covered) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000) + 0.02
