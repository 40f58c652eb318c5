"""Pictures of variants and of votes: every value once, names as text, nothing where nothing was measured."""

import re

from limbeck.evaluation import plots
from limbeck.evaluation.prompt_plots import accuracy_lines, variant_strips


def tried(*values: float | None) -> list[dict]:
    return [{"changes": {}, "error": "too long"} if v is None else {"changes": {}, "value": v, "n": 9} for v in values]


def marks(svg: str, method: str) -> int:
    """Dots and rings in a method's colour."""
    shade = plots.colour(method)
    return len(re.findall(rf'<use [^>]*style="(?:fill: {shade}|fill-opacity: 0;)[^"]*stroke: {shade}', svg))


def test_every_variant_is_a_dot_of_its_prompt_s_line():
    rows = [
        {"method": "zero_shot", "variants": tried(0.25, 0.5, None, 0.75)},
        {"method": "few_shot", "variants": tried(0.5, 0.5)},
        {"method": "full"},
    ]
    svg = variant_strips(rows, "accuracy")
    assert marks(svg, "zero_shot") == 3 and marks(svg, "few_shot") == 2
    assert "zero_shot" in svg and "few_shot" in svg and "full" not in svg
    assert "accuracy" in svg and "lower is better" not in svg
    assert "lower is better" in variant_strips(rows, "mse")


def test_accuracy_has_a_point_for_every_number_of_samples():
    points = [{"samples": n, "value": 0.5 + n / 10, "ci95": [0.4, 0.95], "n": 9} for n in (1, 2, 3, 4)]
    svg = accuracy_lines([{"method": "few_shot", "by_samples": points}, {"method": "<b>full"}])
    assert marks(svg, "few_shot") == 4
    assert "few_shot" in svg and "full" not in svg and "samples that vote" in svg


def test_nothing_measured_nothing_drawn():
    rows = [{"method": "few_shot"}, {"method": "full", "variants": [], "by_samples": None}]
    assert variant_strips(rows, "accuracy") == accuracy_lines(rows) == variant_strips([], "accuracy") == ""
