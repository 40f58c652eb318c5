import re

import pytest

from limbeck.evaluation import plots

ROWS = [
    {"method": "few_shot", "metrics": {"accuracy": {"value": 0.8, "ci95": [0.7, 0.9]}}, "latency_ms_p50": 9.0},
    {"method": "full", "metrics": {"accuracy": {"value": 0.9}}, "latency_ms_p50": 6.0},
    {"method": "student_alone", "metrics": {"accuracy": None}, "latency_ms_p50": 2.0},
]


def test_no_numbers_no_plot():
    assert plots.quality(ROWS, "accuracy", "params_total", "parameters") == ""
    assert plots.quality(ROWS[1:], "accuracy", "latency_ms_p50", "latency, ms") == ""  # one point says nothing


def test_only_what_was_measured_is_named():
    svg = plots.quality(ROWS, "accuracy", "latency_ms_p50", "latency, ms")
    assert "few_shot" in svg and "full" in svg and "student_alone" not in svg


def test_colours_tell_methods_apart_and_follow_a_model_known_by_another_name():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert plots.colour("tuned") == plots.colour("full") != plots.colour("anything else")


@pytest.mark.parametrize("page", ["#ffffff", "#1a1d22"])
def test_every_colour_stands_out_on_the_page(page):
    def luminance(shade):
        channels = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for method, shade in plots.COLOURS.items():
        light, dark = sorted([luminance(shade), luminance(page)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, method


def test_stages_stand_in_the_order_of_the_lesson():
    stages = ["pretrain", "full", "distilled", "mine"]
    assert plots.in_order(stages[::-1]) == stages


def test_text_is_text_in_any_script_and_never_markup():
    answers = [["$\\frac$ <b>", 0.5], ["سیب", 0.3], ["苹果", 0.2]]
    svg = plots.ambiguity_bars({"no examples": answers})
    assert "$\\frac$ &lt;b&gt;" in svg and "سیب" in svg and "苹果" in svg
    assert "<b>" not in svg


def filled(svg: str) -> set[str]:
    """The colours of the filled marks, which are the Pareto front."""
    return set(re.findall(r'<use [^>]*style="fill: (#[0-9a-f]+)', svg))


@pytest.mark.parametrize(("metric", "front"), [("pearson", {"full"}), ("mse", {"few_shot", "full"})])
def test_the_front_follows_the_better_direction(metric, front):
    """`few_shot` has the lower value and costs more: on the front only where lower is better."""
    scores = {"few_shot": (0.2, 9.0), "full": (0.9, 6.0)}
    rows = [{"method": m, "metrics": {metric: {"value": v}}, "latency_ms_p50": ms} for m, (v, ms) in scores.items()]
    svg = plots.quality(rows, metric, "latency_ms_p50", "latency, ms")
    assert filled(svg) == {plots.colour(method) for method in front}
    assert ("lower is better" in svg) == (metric == "mse")
