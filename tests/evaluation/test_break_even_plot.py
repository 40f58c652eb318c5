"""Where the dearer start pays is marked, also where a prompt's prefix is kept."""

import re

from limbeck.evaluation import plots
from limbeck.evaluation.break_even_plot import break_even_lines


def entry(to: str, requests: float | None, unit: str = "seconds", each: float = 2.0, start: str = "few_shot") -> dict:
    costs = {"fixed_from": 0, "per_request_from": each, "fixed_to": 10, "per_request_to": 1.0}
    return {"from": start, "to": to, "unit": unit, "requests": requests, **costs}


def dotted(svg: str) -> int:
    """The lines from a crossing down to the axis."""
    return len(re.findall(r"stroke-dasharray: 1\.8[^\"]*stroke: " + plots.colour("full"), svg))


def dashed(svg: str, method: str) -> int:
    """The lines of what a method costs with its prefix kept."""
    return len(re.findall(r"stroke-dasharray: 6\.4[^\"]*stroke: " + plots.colour(method), svg))


def hollow(svg: str, method: str) -> int:
    return len(re.findall(r"<use [^>]*style=\"fill-opacity: 0; stroke: " + plots.colour(method), svg))


def test_no_numbers_no_plot():
    assert break_even_lines([], "seconds") == ""
    assert break_even_lines([entry("full", 10.0)], "FLOPs") == ""


def test_a_crossing_is_marked_and_a_method_that_never_pays_is_still_drawn():
    crossing = break_even_lines([entry("full", 10.0)], "seconds")
    assert dotted(crossing) == 1 and not dashed(crossing, "few_shot")
    never = break_even_lines([entry("full", None)], "seconds")
    assert not dotted(never)
    assert "few_shot" in never and "full" in never


def test_a_kept_prefix_is_a_dashed_line_with_a_crossing_of_its_own():
    kept = entry("full", 20.0, "seconds, prefix kept", each=1.5)
    svg = break_even_lines([entry("full", 10.0), kept], "seconds")
    assert dashed(svg, "few_shot") == 1 and not dashed(svg, "full")
    assert dotted(svg) == 2 and hollow(svg, "full") == 1 and svg.count("prefix kept") == 1
    never = break_even_lines([entry("full", 10.0), {**kept, "requests": None}], "seconds")
    assert dashed(never, "few_shot") == 1 and dotted(never) == 1 and not hollow(never, "full")


def test_what_no_prefix_changes_is_drawn_once():
    plain = [entry("full", 10.0), entry("distilled", 10.0, start="full")]
    same = [{**each, "unit": "seconds, prefix kept"} for each in plain]
    assert break_even_lines([*plain, *same], "seconds") == break_even_lines(plain, "seconds")
    of_others = entry("full", 5.0, "FLOPs, prefix kept", each=9.0)
    assert break_even_lines([*plain, of_others], "seconds") == break_even_lines(plain, "seconds")
