"""Metrics of labels against scikit-learn and arithmetic by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.preprocessing import MultiLabelBinarizer

from limbeck.model.errors import UserError
from limbeck.tasks.intervals import Score, wilson
from limbeck.tasks.label_metrics import (
    accuracy,
    correct,
    join_labels,
    label_macro_f1,
    macro_f1,
    matthews,
    micro_f1,
    normalise,
    split_labels,
)

FRUITS = ("drupe", "pome", "pepo", "berry")
ANSWERS = st.sampled_from(FRUITS)
SETS = st.frozensets(ANSWERS)


def noisy(rng: np.random.Generator, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    answers = rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1])
    return np.where(rng.random(n) < 0.7, answers, rng.choice(["a", "b", "c"], n)), answers


def test_accuracy_by_hand() -> None:
    score = accuracy([" pome", "pome", "Pome", ""], ["pome", "drupe", "pome", "pome"])
    assert score == Score(0.25, wilson(1, 4), 4)


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9", "cafe\u0301"), ("\u0622\u0628", "\u0627\u0653\u0628"), ("pome", "\tpome \n"), ("0", "0 ")],
)
def test_spellings_of_one_answer_are_equal(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)
    assert correct([one], [other]).all()
    for metric in (macro_f1, micro_f1, label_macro_f1):
        assert metric([one], [other]).value == 1.0
    assert matthews([one, "x"], [other, "x"]).value == 1.0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=40))
def test_scores_of_classes_are_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    predictions, answers = zip(*pairs, strict=True)
    score = macro_f1(predictions, answers)
    assert score.value == pytest.approx(f1_score(answers, predictions, average="macro"))
    assert score.n == len(pairs)
    assert 0 <= score.ci95[0] <= score.ci95[1] <= 1
    several = len(set(answers) | set(predictions)) > 1  # of a single class scikit-learn warns
    expected = matthews_corrcoef(answers, predictions) if several else 0.0
    assert matthews(predictions, answers).value == pytest.approx(expected, abs=1e-12)
    assert accuracy(predictions, answers).value == pytest.approx(accuracy_score(answers, predictions))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(SETS, SETS), min_size=1, max_size=30))
def test_scores_of_sets_are_scikit_learns(pairs: list[tuple[frozenset[str], frozenset[str]]]) -> None:
    texts = [[join_labels(labels, FRUITS) for labels in side] for side in zip(*pairs, strict=True)]
    met = sorted(frozenset().union(*(p | a for p, a in pairs)))
    hot = MultiLabelBinarizer(classes=FRUITS)
    predicted_NL, right_NL = (hot.fit_transform(side) for side in zip(*pairs, strict=True))
    columns = [FRUITS.index(label) for label in met]
    for metric, average in ((micro_f1, "micro"), (label_macro_f1, "macro")):
        score = metric(*texts)
        expected = f1_score(right_NL, predicted_NL, labels=columns, average=average) if met else 1.0
        assert score.value == pytest.approx(expected)
        assert score.n == len(pairs) and 0 <= score.ci95[0] <= score.ci95[1] <= 1
    assert accuracy(*texts).value == pytest.approx(accuracy_score(right_NL, predicted_NL))


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (macro_f1, lambda right, predicted: f1_score(right, predicted, average="macro")),
        (label_macro_f1, lambda right, predicted: f1_score(right, predicted, average="macro")),
        (micro_f1, lambda right, predicted: f1_score(right, predicted, average="micro")),
        (matthews, matthews_corrcoef),
    ],
)
def test_the_interval_is_that_of_resampled_scikit_learn(metric, reference) -> None:
    predictions, answers = noisy(np.random.default_rng(1))
    draws = np.random.default_rng(0).integers(60, size=(2000, 60))  # the seed that the metrics use
    resampled = [reference(answers[draw], predictions[draw]) for draw in draws[:300]]
    low, high = metric(list(predictions), list(answers)).ci95
    assert (low, high) == pytest.approx(np.quantile(resampled, (0.025, 0.975)), abs=0.03)


def test_the_interval_of_matthews_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = matthews_corrcoef(*reversed(noisy(rng, 200_000)))
    intervals = [matthews(*map(list, noisy(rng, 150))).ci95 for _ in range(150)]
    assert 0.90 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99


def test_a_rare_class_missing_from_a_resample_does_not_count() -> None:
    answers = ["common"] * 20 + ["rare"]
    assert macro_f1(answers, answers) == Score(1.0, (1.0, 1.0), 21)


@pytest.mark.parametrize("metric", [accuracy, macro_f1, matthews])
def test_names_of_classes_do_not_matter(metric) -> None:
    predictions, answers = noisy(np.random.default_rng(2))
    renamed = {"a": "\u0633\u06cc\u0628", "b": "\u6797\u6a8e, 2", "c": "none"}
    before = metric(list(predictions), list(answers))
    after = metric([renamed[p] for p in predictions], [renamed[a] for a in answers])
    assert after.value == pytest.approx(before.value) and after.ci95 == pytest.approx(before.ci95)


def test_one_class_says_nothing() -> None:
    assert matthews(["a"] * 9, ["a"] * 9) == matthews(["a"] * 9, ["b"] * 9) == Score(0.0, (0.0, 0.0), 9)
    assert matthews(["a"] * 4, ["a", "b", "a", "b"]).value == 0.0


def test_nothing_said_where_nothing_is_right_is_right() -> None:
    for metric in (micro_f1, label_macro_f1):
        assert metric(["none", ""], ["none", "none"]) == Score(1.0, (1.0, 1.0), 2)
        assert metric(["none"], ["joy"]).value == metric(["joy"], ["none"]).value == 0.0


def test_labels_that_are_no_option_count_against() -> None:
    answers = ["joy, love", "fear", "none"]
    for metric in (micro_f1, label_macro_f1):
        assert metric(["joy, love, gibberish", "fear", "none"], answers).value < metric(answers, answers).value == 1.0


@given(st.frozensets(st.sampled_from(["joy", "\u0634\u0627\u062f\u06cc", "cafe\u0301", "New York", "1,000"])))
def test_sets_of_labels_come_back(labels: frozenset[str]) -> None:
    options = ["1,000", "cafe\u0301", "New York", "joy", "\u0634\u0627\u062f\u06cc"]
    text = join_labels(labels, options)
    assert split_labels(text) == {normalise(label) for label in labels}
    assert text == join_labels(reversed(sorted(labels)), options)
    assert text == ", ".join(option for option in options if option in labels) or text == "none"


def test_labels_by_hand() -> None:
    assert join_labels(["b", "a"], ("a", "b", "c")) == "a, b"
    assert join_labels([], ("a",)) == "none"
    assert split_labels(" b,  a, ") == {"a", "b"}
    assert split_labels("none") == split_labels(" ") == frozenset()


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        ("joi", ("joy", "love"), "unknown label 'joi': one of joy, love; did you mean 'joy'"),
        ("joy, love", ("joy, love",), "label 'joy, love' cannot stand.*rename it"),
        ("none", ("none", "joy"), "label 'none' cannot stand.*rename it"),
    ],
)
def test_a_label_that_would_not_come_back_is_refused(label: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        join_labels([label], options)
