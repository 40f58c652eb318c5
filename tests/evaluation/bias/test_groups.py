"""Group metrics by hand and by scikit-learn, on models that treat groups alike and on ones that do not."""

import json
from functools import partial

import numpy as np
import pytest
import sklearn.metrics

from limbeck.evaluation.bias import group_statistics, groups
from limbeck.evaluation.bias import rows as rows_module
from limbeck.evaluation.bias.groups import chance_limit, group_rows
from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.model.errors import UserError
from limbeck.tasks.intervals import Score, bootstrap, wilson
from limbeck.tasks.probability_metrics import calibration_error

LABELS = ("no", "yes")


def found(*args, **settings):
    return {(row.probe, row.group): row for row in group_rows(*args, **settings)}


def told(names, right, hits):
    """Answers of two labels that are right where `hits` says."""
    return [one if hit else LABELS[one == "no"] for one, hit in zip(right, hits, strict=True)]


def records(n, names="abc", seed=0):
    rng = np.random.default_rng(seed)
    return [names[i % len(names)] for i in range(n)], [LABELS[int(yes)] for yes in rng.random(n) < 0.5], rng


# The definitions


def test_rows_by_hand():
    """a: 5 no (4 right), 5 yes (3 right); b: 4 no (all right), 6 yes (all right); c: 3 records, too few to compare."""
    names = ["a"] * 10 + ["b"] * 10 + ["c"] * 3 + ["d"]
    right = ["no"] * 5 + ["yes"] * 5 + ["no"] * 4 + ["yes"] * 6 + ["no"] * 4
    answers = ["no"] * 4 + ["yes"] + ["yes"] * 3 + ["no", "?"] + right[10:20] + ["yes"] * 4
    rows = found(names, right, answers, labels=LABELS)
    assert list(rows) == [
        ("group_accuracy", "a"),
        ("group_accuracy", "b"),
        ("group_accuracy", "c"),
        ("group_worst", ""),
        ("group_gap", ""),
        ("group_tpr_gap", ""),
        ("group_fpr_gap", ""),
    ]
    accuracy = rows["group_accuracy", "a"]
    assert (accuracy.value, accuracy.ci95, accuracy.n, accuracy.ideal) == (0.7, wilson(7, 10), 10, None)
    assert rows["group_accuracy", "c"].value == 0
    assert (rows["group_worst", ""].value, rows["group_worst", ""].note) == (0.7, "that of a")
    values = {probe: row.value for (probe, _), row in rows.items()}
    assert values["group_gap"] == pytest.approx(0.3)
    assert values["group_tpr_gap"] == pytest.approx(1 - 3 / 5)  # of yes alone
    assert values["group_fpr_gap"] == pytest.approx(1 / 5)
    assert all(rows[f"group_{name}gap", ""].n == 20 for name in ("", "tpr_", "fpr_"))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_rates_are_scikit_learn_s(count):
    rng = np.random.default_rng(count)
    labels = [f"l{i}" for i in range(count)]
    names, right, answers = (rng.choice(of, 200).tolist() for of in (["x", "y", "z"], labels, [*labels, "other"]))
    rates = []
    for name in ("x", "y", "z"):
        own = [i for i in range(200) if names[i] == name]
        tables = sklearn.metrics.multilabel_confusion_matrix(
            [right[i] for i in own], [answers[i] for i in own], labels=labels
        )
        rates.append([(t[1, 1] / t[1].sum(), t[0, 1] / t[0].sum()) for t in tables])
    gaps = np.ptp(np.array(rates), axis=0)  # [labels, (tpr, fpr)]
    tpr, fpr = gaps[1] if count == 2 else gaps.mean(axis=0)
    rows = found(names, right, answers, labels=labels)
    assert rows["group_tpr_gap", ""].value == pytest.approx(tpr)
    assert rows["group_fpr_gap", ""].value == pytest.approx(fpr)


def test_a_label_that_a_group_lacks_has_no_rate_there():
    """Of four labels z stands in group a alone and w nowhere: no gap; x: a 1, b 1/2; y: a 1/2, b 1/2."""
    names = ["a"] * 10 + ["b"] * 10
    right = ["x"] * 4 + ["y"] * 4 + ["z"] * 2 + ["x"] * 4 + ["y"] * 6
    answers = ["x"] * 4 + ["y", "y", "x", "x"] + ["z"] * 2 + ["x", "x", "y", "y"] + ["y"] * 3 + ["w"] * 3
    row = found(names, right, answers, labels=("x", "y", "z", "w"))["group_tpr_gap", ""]
    assert row.value == pytest.approx((0.5 + 0) / 2)


def test_calibration_is_by_group():
    names, right, rng = records(90)
    p_NO = rng.dirichlet([2, 2], size=90)
    answers = [LABELS[i] for i in p_NO.argmax(axis=1)]
    rows = found(names, right, answers, p_NO, labels=LABELS)
    errors = []
    for name in "abc":
        own = np.array(names) == name
        hits = np.array(answers)[own] == np.array(right)[own]
        expected = calibration_error(p_NO.max(axis=1)[own], hits, bins=10)
        row = rows["group_calibration", name]
        assert row.value == pytest.approx(expected.value) and row.n == 30 and row.ci95[1] == expected.ci95[1]
        errors.append(expected.value)
    assert rows["group_calibration_gap", ""].value == pytest.approx(max(errors) - min(errors))


def test_statistics_of_resamples_are_those_of_each():
    """Vectorised over resamples, against one at a time in plain numpy; a group that was not drawn does not count."""
    rng = np.random.default_rng(0)
    items = np.stack([rng.integers(3, size=(50, 12)), rng.integers(2, size=(50, 12))], axis=-1).astype(float)
    items[0, :, 0] = 1
    means = [[of[of[:, 0] == g, 1].mean() for g in np.unique(of[:, 0])] for of in items]
    np.testing.assert_allclose(group_statistics.rate_gap(items), [max(m) - min(m) for m in means])
    np.testing.assert_allclose(group_statistics.lowest_rate(items), [min(m) for m in means])
    labelled = np.concatenate([items, rng.integers(-1, 2, size=(50, 12, 1))], axis=-1)
    for of in (group_statistics.tpr_gap, group_statistics.fpr_gap):
        np.testing.assert_allclose(of(labelled), [of(each[None])[0] for each in labelled])
    sure = np.concatenate([items[..., :1], rng.random((50, 12, 1)), items[..., 1:]], axis=-1)
    np.testing.assert_allclose(
        group_statistics.calibration_gap(sure), [group_statistics.calibration_gap(each[None])[0] for each in sure]
    )


def test_names_and_answers_of_any_script():
    names = ["تهران", "e\u0301", "\u00e9 ", ""] * 10
    rows = found(names, ["بله", "خیر"] * 20, ["بله"] * 40, labels=("خیر", "بله"))
    assert [group for probe, group in rows if probe == "group_accuracy"] == ["(no group)", "é", "تهران"]
    assert rows["group_accuracy", "é"].n == 20
    assert rows["group_fpr_gap", ""].value == 0 and rows["group_tpr_gap", ""].value == 0  # all are answered yes


def test_without_labels_there_are_accuracies_alone():
    probes = [row.probe for row in group_rows(["a", "b"] * 10, ["x"] * 20, ["x"] * 20)]
    assert probes == ["group_accuracy"] * 2 + ["group_worst", "group_gap"]
    assert [row.probe for row in group_rows(["a"] * 10 + ["b"] * 9, ["x"] * 19, ["x"] * 19)] == ["group_accuracy"] * 2
    assert group_rows(["a", "b"], ["x"] * 2, ["x"] * 2) == []
    with pytest.raises(ValueError):
        group_rows(["a"], ["x"], ["x", "x"])


# Models whose bias is known


def test_a_model_that_fails_one_group_is_found():
    names, right, rng = records(240)
    hits = rng.random(240) < np.where(np.array(names) == "b", 0.5, 0.9)
    answers = told(names, right, hits)
    p_NO = np.array([[0.9, 0.1] if answer == "no" else [0.1, 0.9] for answer in answers])
    rows = found(names, right, answers, p_NO, labels=LABELS)
    for probe in ("group_gap", "group_tpr_gap", "group_fpr_gap", "group_calibration_gap"):
        row = rows[probe, ""]
        assert row.note.startswith("away from 0: equal groups have up to 0.") and row.ci95[0] > 0, row
        assert row.ci95[0] < row.value <= row.ci95[1]
    assert rows["group_worst", ""].note == "that of b"
    assert rows["group_calibration", "b"].note.startswith("away from 0: calibrated")
    assert rows["group_calibration", "a"].note.startswith("not distinguishable from 0: calibrated")
    assert rows["group_calibration", "a"].ci95[0] == 0


def test_a_model_that_treats_groups_alike_is_not_distinguishable():
    names, right, rng = records(240)
    answers = told(names, right, rng.random(240) < 0.8)
    rows = found(names, right, answers, np.full((240, 2), 0.8), labels=LABELS)
    for row in rows.values():
        if row.ideal == 0:
            assert row.note.startswith("not distinguishable from 0") and row.ci95[0] == 0 < row.value, row


def test_a_model_made_worse_for_one_group_is_further_from_the_ideal():
    names, right, rng = records(300)
    hits = rng.random(300) < 0.85
    worse = hits & ~((np.array(names) == "c") & (rng.random(300) < 0.5))
    p_NO = np.full((300, 2), 0.85)
    before, after = (
        group_rows(names, right, told(names, right, each), p_NO, labels=LABELS) for each in (hits, worse)
    )
    differences = {(each.probe, each.group): each for each in compare("before", before, "after", after)}
    for probe in ("group_gap", "group_tpr_gap", "group_fpr_gap", "group_calibration_gap"):
        one = differences[probe, ""]
        assert one.value > 0.1 and one.ci95[0] > 0 and one.note == "further from the ideal", one
    assert differences["group_worst", ""].value < -0.2 and differences["group_worst", ""].note == "distinguishable"
    assert differences["group_calibration", "c"].note == "further from the ideal"
    assert differences["group_accuracy", "a"].value == 0
    flips_p = differences["group_accuracy", "c"].flips_p
    assert flips_p is not None and flips_p < 1e-4


def test_rows_are_told_and_read_back():
    names, right, rng = records(60)
    rows = group_rows(names, right, told(names, right, rng.random(60) < 0.7), rng.dirichlet([2, 2], 60), labels=LABELS)
    again = from_json(json.loads(json.dumps(to_json(rows), allow_nan=False)))
    assert again == rows and all(each.value == 0 for each in compare("a", rows, "b", again))


# How often chance is taken for bias


def without_intervals(monkeypatch):
    """They take the most time, and verdicts do not hang on them."""
    for module in (groups, rows_module):
        monkeypatch.setattr(module, "bootstrap", lambda *_, **__: (0.0, 1.0))
    monkeypatch.setattr(groups, "calibration_error", lambda *_: Score(0.0, (0.0, 1.0), 0))
    monkeypatch.setattr(groups, "_SHUFFLES", 99)


def test_chance_is_taken_for_bias_at_its_rate(monkeypatch):
    """Of 400 models that treat groups alike about 20 are told from that; bounds at four standard errors.

    The gaps themselves are far above 0 in nearly all of them, and so would be resamples.
    """
    without_intervals(monkeypatch)
    rng = np.random.default_rng(5)
    away, above = np.zeros(4), 0
    for _ in range(400):
        names, right = rng.choice([*"abc"], 90).tolist(), rng.choice(LABELS, 90).tolist()
        confidence_N = rng.uniform(0.5, 1, 90)
        answers = told(names, right, rng.random(90) < confidence_N)
        p_NO = np.stack([confidence_N, 1 - confidence_N], axis=1)
        rows = [row for row in group_rows(names, right, answers, p_NO, labels=LABELS) if row.probe.endswith("gap")]
        away += [row.note.startswith("away") for row in rows]
        above += rows[0].value > 0.05
    assert above > 330
    assert np.all(np.abs(away / 400 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 400)), away


def test_other_shares_of_labels_are_no_gap_of_rates(monkeypatch):
    """Nine in ten of a are yes, one in ten of b, and yes is missed more often: accuracies differ, the rates do not.

    Of 150 such models about 7 are told to have a gap of rates; bounds at four standard errors.
    """
    without_intervals(monkeypatch)
    rng = np.random.default_rng(3)
    names, away = ["a"] * 100 + ["b"] * 100, {"group_gap": 0, "group_tpr_gap": 0, "group_fpr_gap": 0}
    for _ in range(150):
        yes = rng.random(200) < np.where(np.array(names) == "a", 0.9, 0.1)
        right = [LABELS[int(each)] for each in yes]
        rows = found(names, right, told(names, right, rng.random(200) < np.where(yes, 0.6, 0.95)), labels=LABELS)
        for probe in away:
            away[probe] += rows[probe, ""].note.startswith("away")
    assert away["group_gap"] > 140
    limit = 150 * (0.05 + 4 * np.sqrt(0.05 * 0.95 / 150))
    assert away["group_tpr_gap"] < limit and away["group_fpr_gap"] < limit, away


def test_calibrated_models_are_told_from_that_at_its_rate(monkeypatch):
    without_intervals(monkeypatch)
    rng = np.random.default_rng(6)
    away = 0
    for _ in range(400):
        confidence_N = rng.uniform(0.5, 1, 60)
        p_NO = np.stack([confidence_N, 1 - confidence_N], axis=1)
        hits = rng.random(60) < confidence_N
        *_, row = group_rows(["a"] * 60, ["no"] * 60, told(["a"] * 60, ["no"] * 60, hits), p_NO)
        away += row.note.startswith("away")
    assert abs(away / 400 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 400)


def test_intervals_of_gaps_cover_at_their_rate(monkeypatch):
    """Of 120 models with accuracies of 0.6, 0.8 and 0.9 about 114 have 0.3 in the interval; four standard errors."""
    monkeypatch.setattr(groups, "_SHUFFLES", 99)
    for module in (groups, rows_module):
        monkeypatch.setattr(module, "bootstrap", partial(bootstrap, n=400))
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(120):
        names, right = list("abc" * 50), ["no"] * 150
        hits = rng.random(150) < np.tile([0.6, 0.8, 0.9], 50)
        low, high = found(names, right, told(names, right, hits))["group_gap", ""].ci95
        covered += low <= 0.3 <= high
    assert abs(covered / 120 - 0.94) < 4 * np.sqrt(0.06 * 0.94 / 120)


def test_the_limit_of_chance_is_exceeded_in_one_of_twenty():
    assert chance_limit(5.0, np.arange(99) / 99) < 5
    assert chance_limit(0.5, [0.5] * 99) == 0.5
    assert chance_limit(9.0, np.arange(10)) == 9.0  # ten values say nothing of one in twenty
    values = np.random.default_rng(0).random((4000, 20))
    exceeded = np.mean([row[0] > chance_limit(row[0], row[1:]) for row in values])
    assert abs(exceeded - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_no_records_are_a_mistake():
    with pytest.raises(UserError):
        group_rows([], [], [])
