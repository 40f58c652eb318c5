"""How often the computations of a program run, by its text alone."""

import pytest
from hlo_texts import CHIP, loop

from limbeck.model.compiled import cost


@pytest.mark.parametrize(
    ("asked", "trips"),
    [
        ({"limit": 5}, 5),
        ({"limit": 5, "direction": "LE"}, 6),
        ({"limit": 5, "start": 2, "step": 2}, 2),
        ({"limit": 0, "start": 5, "step": -2, "direction": "GT"}, 3),
        ({"limit": 6, "direction": "NE"}, 6),
        ({"limit": 0, "start": 3, "direction": "LT"}, 0),
        ({"limit": 5, "condition": "ROOT %f = pred[] fusion(%i.1, %limit), kind=kLoop, calls=%compares"}, 5),
        ({"limit": 5, "condition": "ROOT %lt = pred[] compare(%limit, %i.1), direction=GT"}, 5),
        # What the loop carries along unchanged is as good as a constant.
        ({"limit": 5, "condition": "ROOT %lt = pred[] compare(%i.1, %n.1), direction=LT"}, 7),
    ],
)
def test_a_loop_that_does_not_say_how_often_is_counted_by_its_condition(asked, trips):
    found = cost(loop(**asked), CHIP)
    assert found.compute_seconds == pytest.approx(0.5 * trips)
    assert found.unknown_loops == ()


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": 5, "condition": "ROOT %lt = pred[] compare(%i.1, %n.1), direction=LT", "times": "k"},
        {"limit": 5, "condition": "%c = pred[] compare(%i.1, %limit), direction=LT\n  ROOT %q = pred[] and(%c, %c)"},
        {"limit": 5, "step": 0},
        {"limit": 5, "step": -1},
        {"limit": 5, "direction": "EQ"},
    ],
)
def test_a_loop_nobody_knows_the_count_of_is_counted_once_and_named(asked):
    found = cost(loop(**asked), CHIP)
    assert found.unknown_loops == ("body",)
    assert found.compute_seconds == pytest.approx(0.5)
