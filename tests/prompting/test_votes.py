"""Votes on hand-made tables, and accuracy by samples against every subset in every order."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.prompting.scores import best
from limbeck.prompting.votes import accuracy_by_samples, ensemble, majority, shares, weighted
from limbeck.tasks.intervals import wilson


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["a"], "a"),
        (["a", "b", "b"], "b"),
        (["b", "a", "a", "b"], "b"),  # a tie: the first that appeared
        (["c", "a", "b"], "c"),
        (["", "", "", "a"], "a"),  # nothing was read from three
        ([" ", "\n", "b", "a"], "b"),
        (["", ""], ""),
        (["0", "", "1", "0"], "0"),  # a label, not a false one
        (["", "0"], "0"),
        (["None", "none", "none"], "none"),
        (["e\u0301", "x", "x", "\u00e9", " é "], "e\u0301"),  # one answer, written in three ways
        (["سلام", "درود", "درود"], "درود"),
        (["۱۸", "18", "۱۸"], "۱۸"),
    ],
)
def test_the_commonest_answer(answers: list[str], winner: str) -> None:
    assert majority([answers]) == (winner,)


def test_records_vote_by_themselves_with_as_many_answers_as_they_have() -> None:
    assert majority([["a", "b", "b"], ["a"], ["", "b"]]) == ("b", "a", "b")
    assert majority([]) == ()


def test_votes_by_probability() -> None:
    answers = ["a", "b", "b", "c"]
    assert weighted([answers], [np.log([0.5, 0.2, 0.2, 0.1]).tolist()]) == ("a",)
    assert weighted([answers], [np.log([0.3, 0.2, 0.2, 0.3]).tolist()]) == ("b",)
    assert weighted([answers], [np.log([0.4, 0.2, 0.2, 0.2]).tolist()]) == ("a",)  # a tie of exact halves
    assert weighted([["", "a"]], [np.log([0.99, 0.01]).tolist()]) == ("a",)
    assert weighted([["", " "]], [np.log([0.1, 0.9]).tolist()]) == ("",)


def test_a_tie_is_one_in_whatever_order_its_parts_came() -> None:
    down, up = [-0.1, -0.1, -2.0], [-2.0, -0.1, -0.1]  # added one after the other, up comes out greater
    assert weighted([["a"] * 3 + ["b"] * 3], [down + up]) == weighted([["a"] * 3 + ["b"] * 3], [up + down]) == ("a",)


def test_no_log_probability_is_too_small_or_too_far() -> None:
    assert weighted([["a", "b", "b"]], [[-2000.0, -2000.5, -2000.5]]) == ("b",)  # exp of each is 0 in float64
    assert weighted([["a", "b", "b"]], [[-2000.0, -2000.7, -2000.7]]) == ("a",)  # 1 against 0.993
    assert weighted([["a", "b", "b"]], [[-2000.0, -9000.0, -9000.0]]) == ("a",)
    assert weighted([["a", "b"]], [[-math.inf, -5000.0]]) == ("b",)
    assert weighted([["a", "b"]], [[-math.inf, -math.inf]]) == ("a",)
    assert weighted([["", "b", "c", "c"]], [[0.0, -9000.0, -9000.5, -9000.5]]) == ("c",)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "0", ""]), st.floats(-30, 0)), min_size=1, max_size=8), st.data())
def test_the_order_of_votes_matters_to_ties_alone(votes: list[tuple[str, float]], data: st.DataObject) -> None:
    moved = data.draw(st.permutations(votes))
    sums = {answer: sum(math.exp(x) for key, x in votes if key == answer) for answer, _ in votes if answer}
    top = sorted(sums.values())[-2:]
    results = [weighted([[a for a, _ in part]], [[x for _, x in part]])[0] for part in (votes, moved)]
    if not sums:
        assert results == ["", ""]
    elif len(top) == 1 or top[1] > top[0] * (1 + 1e-9):
        assert results[0] == results[1] == max(sums, key=lambda answer: sums[answer])


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=6), max_size=4), st.floats(-9, 0))
def test_equal_weights_are_the_majority(answers_NS: list[list[str]], level: float) -> None:
    assert weighted(answers_NS, [[level] * len(answers) for answers in answers_NS]) == majority(answers_NS)


def test_shares_of_a_vote() -> None:
    told = shares(["b ", "a", "", "b", "a", "b"], [0.0] * 6)
    assert told == {"b ": 3 / 5, "a": 2 / 5} and list(told) == ["b ", "a"]
    weighed = shares(["a", "b", "b"], np.log([0.5, 0.2, 0.1]).tolist())
    assert weighed == pytest.approx({"a": 0.625, "b": 0.375})
    assert shares(["", " "], [0.0, -1.0]) == {}
    assert shares(["a", "b"], [-math.inf] * 2) == {"a": 0, "b": 0}


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "0", ""]), st.floats(-9, 0)), min_size=1, max_size=8))
def test_the_greatest_share_wins(votes: list[tuple[str, float]]) -> None:
    answers, logprobs = [answer for answer, _ in votes], [logprob for _, logprob in votes]
    told = shares(answers, logprobs)
    assert weighted([answers], [logprobs]) == (max(told, key=lambda answer: told[answer], default=""),)
    assert not told or sum(told.values()) == pytest.approx(1)


def test_votes_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="0 answers"):
        majority([["a"], []])
    with pytest.raises(ValueError, match="2 answers, 1"):
        weighted([["a", "b"]], [[0.0]])
    with pytest.raises(ValueError, match="no size"):
        weighted([["a", "b"]], [[0.0, math.nan]])
    with pytest.raises(ValueError):
        weighted([["a"]], [])


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    one, other = np.log([[0.9, 0.1], [0.5, 0.5]]), np.log([[0.2, 0.8], [0.4, 0.6]])
    np.testing.assert_allclose(np.exp(ensemble([one, other - 7])), [[0.55, 0.45], [0.45, 0.55]])  # of any scale
    np.testing.assert_allclose(ensemble([one]), one, atol=1e-12)
    np.testing.assert_allclose(ensemble([other, one]), ensemble([one, other]))
    assert best(ensemble([[[-1.0, -1.0]], [[-5.0, -5.0]]])).tolist() == [0]
    far = ensemble([[[-3000.0, 0.0]], [[-2000.0, 0.0]]])
    np.testing.assert_allclose(far, [[-2000 - math.log(2), 0.0]])
    with pytest.raises(ValueError, match="without prompts"):
        ensemble([])


def every_choice(answers: list[str], right: str, count: int) -> Fraction:
    """The share of all ordered choices of `count` answers whose majority is right."""
    votes = [majority([list(choice)])[0] == right for choice in itertools.permutations(answers, count)]
    return Fraction(sum(votes), len(votes))


@pytest.mark.parametrize("seed", range(12))
def test_accuracy_by_samples_is_that_of_every_subset(seed: int) -> None:
    rng = random.Random(seed)
    answers_NS = [rng.choices(["a", "b", "0", "هلو", ""], k=6) for _ in range(4)]
    right_N = [rng.choice(["a", "0", "هلو", ""]) for _ in range(4)]
    rows = accuracy_by_samples(answers_NS, right_N, range(1, 7))
    for row in rows:
        exact = [every_choice(a, r, row["samples"]) for a, r in zip(answers_NS, right_N, strict=True)]
        assert row["value"] == pytest.approx(float(sum(exact) / 4), abs=1e-14)
        assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
        assert row["n"] == 4


def test_accuracy_by_samples_by_hand() -> None:
    """Two right of three: 2/3 of one; of two a tie in two subsets of three, so (1 + 1/2 + 1/2)/3; all of three."""
    rows = accuracy_by_samples([["a", "b", "a"]] * 2, ["a", "a"], [1, 2, 3])
    assert [row["samples"] for row in rows] == [1, 2, 3]
    assert [row["value"] for row in rows] == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert rows[2]["ci95"] == pytest.approx(list(wilson(2, 2)))


def test_many_samples_are_counted_exactly() -> None:
    """Two kinds of answers: the chance is a sum of hypergeometric terms, here of numbers beyond float64's."""
    from scipy.stats import hypergeom

    answers = ["right"] * 80 + ["wrong"] * 60
    counts = [1, 2, 7, 70, 99, 139, 140]
    rows = accuracy_by_samples([answers], ["right"], counts)
    for count, row in zip(counts, rows, strict=True):
        votes = np.arange(count + 1)
        chance = hypergeom.pmf(votes, 140, 80, count) @ ((votes > count / 2) + 0.5 * (votes == count / 2))
        assert row["value"] == pytest.approx(chance, rel=1e-9)
    assert rows[-1]["value"] == 1.0


def test_more_samples_of_a_likelier_answer_help_and_empty_ones_do_not_vote() -> None:
    values = [row["value"] for row in accuracy_by_samples([["a"] * 6 + ["b"] * 3], ["a"], range(1, 10))]
    assert values[-1] == 1.0 and values == sorted(values)
    with_empty = accuracy_by_samples([["a", "", "", ""]], ["a"], [1, 2, 4])
    assert [row["value"] for row in with_empty] == pytest.approx([1 / 4, 1 / 2, 1.0])
    all_empty = accuracy_by_samples([["a", "", "", ""]], [""], [1, 2, 4])
    assert [row["value"] for row in all_empty] == pytest.approx([3 / 4, 1 / 2, 0.0])


def test_the_interval_is_over_records_and_hangs_on_the_seed() -> None:
    rng = random.Random(0)
    answers_NS = [rng.choices(["a", "b", "c"], weights=(i % 5 + 1, 2, 2), k=5) for i in range(200)]
    [row] = accuracy_by_samples(answers_NS, ["a"] * 200, [3], seed=1)
    chances = np.array([float(every_choice(answers, "a", 3)) for answers in answers_NS])
    half = 1.96 * chances.std() / math.sqrt(200)
    assert row["ci95"] == pytest.approx([chances.mean() - half, chances.mean() + half], abs=0.01)
    assert accuracy_by_samples(answers_NS, ["a"] * 200, [3], seed=1) == [row]
    assert accuracy_by_samples(answers_NS, ["a"] * 200, [3], seed=2) != [row]
    backwards = accuracy_by_samples([answers[::-1] for answers in answers_NS[::-1]], ["a"] * 200, [3])
    assert backwards[0]["value"] == pytest.approx(row["value"])


def test_counts_that_were_not_drawn_are_refused() -> None:
    for count in (0, 3):
        with pytest.raises(UserError, match=f"accuracy of {count} samples: each record has 2"):
            accuracy_by_samples([["a", "b"], ["a", "b", "c"]], ["a", "a"], [1, count])
    with pytest.raises(UserError, match="0 records"):
        accuracy_by_samples([], [], [1])
    with pytest.raises(ValueError):
        accuracy_by_samples([["a"]], ["a", "b"], [1])
