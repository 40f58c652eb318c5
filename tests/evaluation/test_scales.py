import pytest

from limbeck.evaluation import scales
from limbeck.tasks.metrics import METRICS


def test_every_metric_has_words_and_a_direction():
    for name, metric in METRICS.items():
        assert "_" not in scales.words(name)
        assert scales.higher_is_better(name) == metric.higher_is_better
        assert scales.heading(name).endswith("↓") != metric.higher_is_better
    assert not scales.higher_is_better("perplexity") and scales.higher_is_better("reward")
    assert scales.heading("bits_per_byte") == "bits per byte ↓"


@pytest.mark.parametrize(
    ("metric", "values", "ends"),
    [
        ("accuracy", [0.2, 0.3], (0, 1)),
        ("pearson", [0.2, 0.3], (0, 1)),
        ("pearson", [-0.2, 0.3], (-1, 1)),
        ("chrf", [50.0], (0, 100)),
        ("mse", [2.0, 3.0], (0, 3)),
        ("log_likelihood", [-3.0, -2.0], (-3, 0)),
        ("perplexity", [], (0, 1)),
        ("mse", [0.0], (0, 1)),
    ],
)
def test_limits_hold_every_value_and_zero(metric, values, ends):
    assert scales.limits(metric, values) == ends


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("accuracy", [0.876], "0.88"),
        ("matthews", [-0.876], "-0.88"),
        ("bleu", [24.361], "24.4"),
        ("mse", [0.021344], "0.02134"),
        ("mse", [0.5, 3.25], "0.500"),
        ("perplexity", [112.345], "112.3"),
        ("mse", [1234567.0], "1.23 M"),
        ("mse", [0.0], "0.00"),
    ],
)
def test_figures(metric, values, text):
    assert scales.figure(values[0], scales.digits(metric, values)) == text


def test_a_score_without_a_value_is_none():
    rows = [{"metrics": {"mse": {"value": 1.0, "ci95": [0.5, 2.0]}}}, {"metrics": {"mse": {"value": None}}}, {}]
    assert [scales.score_of(row, "mse") is None for row in rows] == [False, True, True]
    assert scales.seen(rows, "mse") == [1.0, 0.5, 2.0]
