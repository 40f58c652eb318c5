"""Metrics of numbers against scipy and scikit-learn, and what becomes of text that is no number."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error

from limbeck.model.errors import UserError
from limbeck.tasks.intervals import Score
from limbeck.tasks.number_metrics import mse, number, pearson, spearman

VALUES = st.integers(-5, 5).map(lambda value: value / 2)  # few, so that there are ties and constants
GARBAGE = ["about two", "", "nan", "inf", "1e999", "1_000", "3.5.1", "50 %", "\u062f\u0648"]


def texts(values) -> list[str]:
    return [repr(float(value)) for value in values]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=40))
def test_scores_are_scipys(pairs: list[tuple[float, float]]) -> None:
    predictions, answers = (np.array(side) for side in zip(*pairs, strict=True))
    varies = np.ptp(predictions) > 0 and np.ptp(answers) > 0  # else scipy warns
    for metric, reference in ((pearson, pearsonr), (spearman, spearmanr)):
        score = metric(texts(predictions), texts(answers))
        expected = reference(predictions, answers)[0] if varies else 0.0
        assert score.value == pytest.approx(expected, abs=1e-9)
        assert score.n == len(pairs) and -1 <= score.ci95[0] <= score.ci95[1] <= 1
    assert mse(texts(predictions), texts(answers)).value == pytest.approx(mean_squared_error(answers, predictions))


def correlated(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    answers = rng.normal(size=n)
    return 0.6 * answers + 0.8 * rng.normal(size=n), answers  # r = 0.6


@pytest.mark.parametrize(("metric", "reference"), [(pearson, pearsonr), (spearman, spearmanr)])
def test_the_interval_is_that_of_resampled_scipy(metric, reference) -> None:
    predictions, answers = (np.round(side, 1) for side in correlated(np.random.default_rng(0), 80))  # ties
    draws = np.random.default_rng(0).integers(80, size=(2000, 80))  # the seed that the metrics use
    resampled = [reference(predictions[draw], answers[draw]).statistic for draw in draws]
    expected = np.quantile(resampled, (0.025, 0.975))
    assert metric(texts(predictions), texts(answers)).ci95 == pytest.approx(expected, abs=1e-9)


def test_the_interval_of_pearson_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    intervals = [pearson(*map(texts, correlated(rng, 100))).ci95 for _ in range(150)]
    assert 0.89 <= np.mean([low <= 0.6 <= high for low, high in intervals]) <= 0.99


@pytest.mark.parametrize("metric", [pearson, spearman])
@pytest.mark.parametrize(
    ("predictions", "answers"),
    [(["0.1"] * 3, ["1", "2", "3"]), (["1", "2", "3"], ["0.1"] * 3), (["0.1"] * 3, ["0.3"] * 3), (["2"], ["2"])],
)
def test_what_does_not_vary_has_no_correlation(metric, predictions: list[str], answers: list[str]) -> None:
    assert metric(predictions, answers) == Score(0.0, (0.0, 0.0), len(answers))


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_a_resample_that_does_not_vary_has_no_correlation(metric) -> None:
    """Every eighth resample lacks both ends, and the mean of what is left is the same but for rounding."""
    for largest in ("3", "10", "17", "30"):
        values = ["0", *["1"] * 22, largest]
        score = metric(values, values)
        assert score.value == pytest.approx(1.0) == score.ci95[1] and score.ci95[0] == 0.0


@given(st.floats(0.1, 100), st.floats(-1000, 1000))
def test_scale_and_origin_do_not_matter(scale: float, origin: float) -> None:
    predictions, answers = correlated(np.random.default_rng(0), 30)
    moved = texts(scale * predictions + origin)
    for metric in (pearson, spearman):
        assert metric(moved, texts(answers)).value == pytest.approx(metric(texts(predictions), texts(answers)).value)


def test_only_the_order_matters_to_spearman() -> None:
    predictions, answers = correlated(np.random.default_rng(0), 30)
    assert spearman(texts(np.exp(3 * predictions)), texts(answers)) == spearman(texts(predictions), texts(answers))


@pytest.mark.parametrize("extreme", ["1e308", "-1.7e308", "5e-324"])
def test_extremes_neither_warn_nor_overflow(extreme: str) -> None:
    answers = ["1", "2", "3", "4"]
    for metric in (pearson, spearman, mse):
        assert np.isfinite([(score := metric(["1", "2", "3", extreme], answers)).value, *score.ci95]).all()


@pytest.mark.parametrize("garbage", GARBAGE[:3])
@pytest.mark.parametrize("metric", [pearson, spearman, mse])
def test_a_malformed_prediction_is_as_bad_as_any(metric, garbage: str) -> None:
    """Whichever prediction is swapped for it, the score is no better than before, nor than with any other guess.

    But for a little: a guess moves the spread as well, which divides a correlation.
    """
    slack = 1e-9 if metric is mse else 0.02
    predictions, answers = (texts(np.round(side, 2)) for side in correlated(np.random.default_rng(3), 20))
    sign = -1 if metric is mse else 1
    untouched = sign * metric(predictions, answers).value
    guesses = sorted(predictions + answers, key=float)[::3]
    for i in range(0, 20, 3):
        swapped = [sign * metric([*predictions[:i], text, *predictions[i + 1 :]], answers).value for text in guesses]
        malformed = sign * metric([*predictions[:i], garbage, *predictions[i + 1 :]], answers).value
        assert malformed <= untouched + slack
        assert malformed <= min(swapped) + slack


@pytest.mark.parametrize("answers", [["2", "2"], ["0", "0"], ["1", "5"]])
def test_nothing_but_malformed_predictions(answers: list[str]) -> None:
    garbage = ["well", "let me see"]
    assert mse(garbage, answers).value >= 1.0
    for metric in (pearson, spearman):
        assert metric(garbage, answers).value <= 0.0


@pytest.mark.parametrize("answer", ["two", "", "nan", "-inf"])
@pytest.mark.parametrize("metric", [pearson, spearman, mse])
def test_an_answer_that_is_no_number_is_a_mistake(metric, answer: str) -> None:
    with pytest.raises(UserError, match=r"answer '.*' is no number: write it as 3.5") as error:
        metric(["1", "2"], ["1", answer])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 3.5\n", 3.5),
        ("-1e3", -1000.0),
        ("\u06f3\u066b\u06f5", 3.5),  # Persian digits and point
        ("\u06f1\u066c\u06f0\u06f0\u06f0", 1000.0),  # and thousands
        ("\u2212\u0662", -2.0),  # minus sign, Arabic digit
        ("\uff14", 4.0),
        ("1e308", 1e100),
        *((text, None) for text in GARBAGE),
    ],
)
def test_numbers_in_any_script(text: str, value: float | None) -> None:
    assert number(text) == value
