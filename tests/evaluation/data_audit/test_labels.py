"""Label rates by group, and what a teacher's labels shift, on hand-made tables."""

import numpy as np
import pytest

from limbeck.evaluation.data_audit.labels import (
    group_mentions,
    label_by_group,
    label_rates,
    label_shift,
)
from limbeck.evaluation.paired import tango
from limbeck.tasks.intervals import wilson


def one(names):
    return [(name,) for name in names]


def test_label_rates_are_shares_with_wilsons_interval():
    rates = label_rates(one("yynn" + "y" * 6), ("y", "n"))
    assert rates["y"] == {"value": 0.8, "ci95": list(wilson(8, 10)), "n": 10}
    assert rates["n"]["value"] == pytest.approx(0.2)


def test_labels_of_a_multi_label_task_are_counted_each():
    rates = label_rates([("a", "b"), ("a",), (), ("b",)], ("a", "b", "c"))
    assert [rates[name]["value"] for name in "abc"] == [0.5, 0.5, 0.0]


def test_label_rates_by_group_on_a_table_counted_by_hand():
    labels = one("yyynnnnyyn")
    counts = {"gender/female": np.array([1, 2, 1, 1, 0, 0, 0, 0, 0, 0]), "age/old": np.array([1] + 9 * [0])}
    rows = label_by_group(labels, ("y", "n"), counts)
    assert [(row["group"], row["label"]) for row in rows] == [("gender/female", "y"), ("gender/female", "n")]
    assert rows[0]["rate"] == {"value": 0.75, "ci95": list(wilson(3, 4)), "n": 4}
    assert rows[0]["others"]["value"] == pytest.approx(2 / 6)
    assert rows[0]["difference"]["value"] == pytest.approx(3 / 4 - 2 / 6)
    assert rows[0]["difference"]["value"] == pytest.approx(-rows[1]["difference"]["value"])


def test_rates_by_group_do_not_depend_on_the_order_of_the_records():
    rng = np.random.default_rng(0)
    labels, counts = one(rng.choice(list("abc"), 60)), rng.integers(0, 2, 60)
    order = rng.permutation(60)
    shuffled = label_by_group([labels[i] for i in order], "abc", {"g/x": counts[order]})
    assert shuffled == label_by_group(labels, "abc", {"g/x": counts})


def test_mentions_are_counted_by_record_and_by_thousand_words():
    found = group_mentions({"gender/male": np.array([0, 3, 1, 0])}, 200)
    assert found["gender/male"]["records"]["value"] == 0.5
    assert found["gender/male"]["mentions"] == 4 and found["gender/male"]["per_1000_words"] == 20


def test_a_planted_shift_of_the_teacher_is_found_where_it_is_and_nowhere_else():
    gold = one("yn" * 100)
    female = np.arange(200) < 80
    teacher = [[("y",)] if female[i] and i % 4 == 1 else [gold[i]] for i in range(200)]
    rows = {
        (row["group"], row["label"]): row
        for row in label_shift(gold, teacher, ("y", "n"), {"gender/female": female, "gender/male": ~female})
    }
    assert rows["gender/female", "y"]["gold"] == 0.5 and rows["gender/female", "y"]["teacher"] == 0.75
    shift = rows["gender/female", "y"]["shift"]
    assert shift == {"value": 0.25, "ci95": list(tango(20, 0, 80)), "n": 80} and shift["ci95"][0] > 0
    assert rows["gender/male", "y"]["shift"]["value"] == 0
    assert rows["", "y"]["shift"]["value"] == pytest.approx(0.1) and rows["", "n"]["shift"]["value"] < 0


def test_several_answers_of_a_teacher_count_by_their_mean():
    gold = one("yynn")
    teacher = [[("y",), ("n",)], [("y",)], [("n",), ("y",), ("n",), ("n",)], [("n",)]]
    [row] = label_shift(gold, teacher, ("y",), {})
    assert row["teacher"] == pytest.approx((0.5 + 1 + 0.25) / 4) and row["gold"] == 0.5
    assert row["shift"]["ci95"][0] <= row["shift"]["value"] <= row["shift"]["ci95"][1]
