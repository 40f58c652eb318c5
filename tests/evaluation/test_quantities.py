import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluation.quantities import compact, duration, printable, quantity, with_interval

FACTOR = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (999.6, "", "1 k"),
        (4215808, "", "4.22 M"),
        (4215808, "B", "4.22 MB"),
        (0.0031, "s", "3.1 ms"),
        (8.1e-6, "s", "8.1 µs"),
        (0.25, "", "0.25"),
        (-1500, "", "-1.5 k"),
    ],
)
def test_quantity(value, unit, text):
    assert quantity(value, unit) == text


@given(st.floats(1, 9e17))
def test_quantity_is_within_half_a_percent(value):
    number, _, prefix = quantity(value).partition(" ")
    assert float(number) * FACTOR[prefix] == pytest.approx(value, rel=0.00501)
    assert abs(float(number)) < 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (35.2, "35 s"),
        (59.7, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.8, "1 h 00 min"),
        (4350, "1 h 12 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_interval():
    assert with_interval(0.912, [0.88, 0.94], 2) == "0.91 [0.88, 0.94]"
    assert with_interval(0.912, None, 3) == "0.912"


def test_compact_is_one_line_of_words():
    value = {"a": [1, 0.123456], "b": True, "c": None, "d": "x"}
    assert compact(value) == "{a: [1, 0.1235], b: yes, c: not measured, d: x}"


def test_printable_text_keeps_its_lines_and_commands_nothing():
    assert printable(" a\tb\n\nسلام\u200c\n") == " a\tb\n\nسلام\u200c\n"
    assert printable("\x1b[2Jx\r\x07\x9b1m\x7f") == "\ufffd[2Jx\ufffd\ufffd\ufffd1m\ufffd"
