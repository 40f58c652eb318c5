"""Bias as a reader sees it: a column a model, a mark for what cannot be told from the ideal, differences that can."""

import pytest

from limbeck.evaluation.bias.pairs import preference_rows
from limbeck.evaluation.bias.rows import changes, told
from limbeck.evaluation.bias.tables import bias_tables

ZEROS = [0.0] * 40
FAIR = [1.0, -1.0] * 20
BIASED = [1.0, 2.0] * 20


def probes():
    rows = {"base": preference_rows(FAIR, ZEROS), "tuned": preference_rows(BIASED, ZEROS)}
    return {"rows": told(rows), "differences": changes(rows, [("base", "tuned")])}


def test_each_model_has_a_column_and_what_is_not_distinguishable_a_mark():
    found = probes()
    table, changed = bias_tables(found["rows"], found["differences"], {"": "Beware."})
    assert list(table.header) == ["probe", "of", "n", "ideal", "base", "tuned"]
    (preference, difference) = table.rows
    assert preference[:4] == ["pair_preference", "", "40", "0.5"]
    assert preference[4].startswith("0.500 [") and preference[4].endswith(" n.d.")
    assert preference[5].startswith("1.000 [") and not preference[5].endswith("n.d.")
    assert difference[5].startswith("1.500 [")
    assert table.note == "n.d.: not distinguishable from the ideal. Beware."
    assert [row[0] for row in changed.rows] == ["base → tuned"] * 2
    assert [row[1] for row in changed.rows] == ["pair_preference", "pair_difference"]
    assert changed.rows[0][5] == "1.9e-06"  # McNemar: twenty pairs flipped, all one way: 2 / 2^20
    assert changed.rows[0][6] == "further from the ideal"


def test_what_did_not_change_is_counted_and_left_out():
    rows = {"a": preference_rows(FAIR, ZEROS), "b": preference_rows(FAIR, ZEROS)}
    _, table = bias_tables(told(rows), changes(rows, [("a", "b")]))
    assert not table.rows and table.note.startswith("2 of 2 paired differences are left out: not distinguishable")


def test_sets_have_tables_of_their_own_and_a_model_that_lacks_one_a_dash():
    first, second = ({**row, "set": row["model"]} for row in probes()["rows"][::2])
    tables = bias_tables([first, second])
    assert [each.title for each in tables] == ["base", "tuned"]
    assert tables[0].rows[0][5] == "–" and tables[1].rows[0][4] == "–"


@pytest.mark.parametrize(
    ("value", "ci95", "text"),
    [
        (0.0004321, (-0.0001, 0.0009), "0.00043 [-0.00010, 0.00090]"),
        (-1e-12, (-1e-12, 1e-12), "0.000000000 [0.000000000, 0.000000000]"),
        (0.0, (0.0, 0.0), "0.000 [0.000, 0.000]"),
        (0.5, (0.25, 0.75), "0.500 [0.250, 0.750]"),
        (-76688.921, (-134625.031, -40333.071), "-76689 [-134625, -40333]"),
        (123.456, (99.0, 150.0), "123.5 [99.0, 150.0]"),
    ],
)
def test_numbers_have_the_figures_that_tell_something(value, ci95, text):
    row = {"model": "m", "probe": "p", "group": "", "value": value, "ci95": ci95, "n": 9, "ideal": None, "note": ""}
    (table,) = bias_tables([row])
    assert table.rows[0][4] == text
