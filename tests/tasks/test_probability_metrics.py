"""Calibration error and perplexity against definitions written out, known truths and simulation."""

import math

import numpy as np
import pytest

from limbeck.model.errors import UserError
from limbeck.tasks.intervals import Score
from limbeck.tasks.probability_metrics import calibration_error, perplexity


def by_bins(confidences: np.ndarray, hits: np.ndarray, bins: int) -> float:
    """The sum over bins of their share times |accuracy - mean confidence|, as Guo et al. write it."""
    total = 0.0
    for b in range(bins):
        inside = (confidences > b / bins) & (confidences <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(hits[inside].mean() - confidences[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_calibration_error_is_its_definition(bins: int) -> None:
    rng = np.random.default_rng(bins)
    confidences = rng.uniform(0.01, 1, 300)
    hits = rng.random(300) < confidences**2
    score = calibration_error(confidences, hits, bins)
    assert score.value == pytest.approx(by_bins(confidences, hits, bins))
    assert 0 <= score.ci95[0] <= score.value <= score.ci95[1] and score.n == 300


def test_calibration_error_by_hand() -> None:
    assert calibration_error([0.8] * 10, [True] * 8 + [False] * 2).value == pytest.approx(0.0)
    assert calibration_error([1.0] * 4, [0, 0, 0, 0]) == Score(1.0, (1.0, 1.0), 4)
    assert calibration_error([0.0, 1.0], [0, 1]) == Score(0.0, (0.0, 0.0), 2)


def test_the_interval_of_the_calibration_error_covers_the_truth() -> None:
    """Half the records at 0.9 are right in 0.7 of cases, half at 0.6 in 0.6: an error of 0.1."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        confidences = rng.choice([0.9, 0.6], 300)
        low, high = calibration_error(confidences, rng.random(300) < np.where(confidences > 0.8, 0.7, 0.6)).ci95
        covered.append(low <= 0.1 <= high)
    assert 0.9 <= np.mean(covered) <= 1.0


def test_a_calibrated_model_may_have_no_error() -> None:
    """Resampling adds error to error: an interval of plain percentiles would hardly ever come near 0."""
    rng = np.random.default_rng(0)
    lows = []
    for _ in range(50):
        confidences = rng.uniform(0, 1, 300)
        lows.append(calibration_error(confidences, rng.random(300) < confidences).ci95[0])
    assert np.mean(lows) < 0.02


def test_perplexity_by_hand() -> None:
    score = perplexity([2 * math.log(8), 6 * math.log(2)], [2, 6])
    assert score.value == pytest.approx(math.exp((2 * math.log(8) + 6 * math.log(2)) / 8))
    assert score.ci95 == pytest.approx((2.0, 8.0)) and score.n == 2
    assert perplexity([5 * math.log(7)] * 3, [5] * 3).ci95 == pytest.approx((7.0, 7.0))


def test_perplexity_is_that_of_the_text_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 100, 40)
    nll = tokens * rng.uniform(1, 3, 40)
    score = perplexity(nll, tokens)
    assert score.value == pytest.approx(perplexity([nll.sum()], [tokens.sum()]).value)
    draws = np.random.default_rng(0).integers(40, size=(2000, 40))  # the seed that it uses
    resampled = [math.exp(nll[draw].sum() / tokens[draw].sum()) for draw in draws]
    assert score.ci95 == pytest.approx(np.quantile(resampled, (0.025, 0.975)))


def test_an_absurd_loss_is_finite_without_a_warning() -> None:
    assert 1e300 < perplexity([1e5, 1e9], [1, 1]).ci95[0] < math.inf


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: calibration_error([0.5], [1, 0]), "shapes"),
        (lambda: calibration_error([1.5], [1]), "from 0 to 1"),
        (lambda: calibration_error([math.nan], [1]), "from 0 to 1"),
        (lambda: perplexity([1.0, 2.0], [1]), "shapes"),
        (lambda: perplexity([math.nan], [1]), "finite"),
        (lambda: perplexity([1.0], [0]), "at least one token"),
    ],
)
def test_what_cannot_be_is_our_mistake(measure, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure()


@pytest.mark.parametrize("measure", [calibration_error, perplexity])
def test_no_records_have_no_score(measure) -> None:
    with pytest.raises(UserError, match="0 records"):
        measure([], [])
