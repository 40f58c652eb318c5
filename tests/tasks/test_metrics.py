"""Metrics against other implementations, enumeration and arithmetic by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from limbeck.model.errors import UserError
from limbeck.tasks.metrics import (
    METRICS,
    Score,
    accuracy,
    bootstrap,
    correct,
    macro_f1,
    mcnemar,
    normalise,
    paired_bootstrap,
    wilson,
)

ANSWERS = st.sampled_from(["drupe", "pome", "pepo", "berry"])


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


def test_accuracy_by_hand() -> None:
    score = accuracy([" pome", "pome", "Pome", ""], ["pome", "drupe", "pome", "pome"])
    assert score == Score(0.25, wilson(1, 4), 4)


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9", "cafe\u0301"), ("\u0622\u0628", "\u0627\u0653\u0628"), ("pome", "\tpome \n"), ("0", "0 ")],
)
def test_spellings_of_one_answer_are_equal(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)
    assert correct([one], [other]).all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=40))
def test_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    predictions, answers = zip(*pairs, strict=True)
    score = macro_f1(predictions, answers)
    assert score.value == pytest.approx(f1_score(answers, predictions, average="macro"))
    assert score.n == len(pairs)
    assert 0 <= score.ci95[0] <= score.ci95[1] <= 1


def test_the_interval_of_macro_f1_is_that_of_resampled_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    answers = rng.choice(["a", "b", "c"], 60, p=[0.6, 0.3, 0.1])
    predictions = np.where(rng.random(60) < 0.7, answers, rng.choice(["a", "b", "c"], 60))
    draws = np.random.default_rng(0).integers(60, size=(2000, 60))  # the seed that macro_f1 uses
    resampled = [f1_score(answers[draw], predictions[draw], average="macro") for draw in draws[:300]]
    low, high = macro_f1(list(predictions), list(answers)).ci95
    assert (low, high) == pytest.approx(np.quantile(resampled, (0.025, 0.975)), abs=0.03)


def test_a_rare_class_missing_from_a_resample_does_not_count() -> None:
    answers = ["common"] * 20 + ["rare"]
    assert macro_f1(answers, answers) == Score(1.0, (1.0, 1.0), 21)


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


def test_the_intervals_cover_the_truth() -> None:
    """Of 400 samples of a known share, about 95 % have it within Wilson's interval."""
    successes = np.random.default_rng(0).binomial(50, 0.9, 400)
    covered = [low <= 0.9 <= high for low, high in (wilson(int(count), 50) for count in successes)]
    assert 0.92 <= np.mean(covered) <= 0.99


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
        lambda: accuracy([], []),
        lambda: macro_f1([], []),
        lambda: correct([], []),
        lambda: paired_bootstrap([], []),
        lambda: mcnemar([], []),
        lambda: bootstrap([], np.mean, seed=0),
    ],
)
def test_no_records_have_no_score(measure) -> None:
    with pytest.raises(UserError, match="0 records"):
        measure()


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_missing_prediction_is_our_mistake(metric) -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        metric(["pome"], ["pome", "drupe"])


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@settings(deadline=None, max_examples=40)
@given(pairs=st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=20), seed=st.integers(0, 9))
def test_the_order_of_records_does_not_matter(metric, pairs: list[tuple[str, str]], seed: int) -> None:
    shuffled = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    one, other = (metric(*zip(*these, strict=True)) for these in (pairs, shuffled))
    assert one.value == pytest.approx(other.value)
