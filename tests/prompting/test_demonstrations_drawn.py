"""Drawn demonstrations: the same for a record wherever it stands, never the record itself, and all equally often."""

import dataclasses
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phrases import ASKED, CLASSES, PHRASES, POOL, examples, fruit, ids
from scipy import stats

from limbeck.model.errors import UserError
from limbeck.prompting.demonstrations import choose
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

TRAIN = tuple(fruit(f"train/{i}", f"fruit {i}", i) for i in range(30))
TEST = tuple(fruit(f"test/{i}", f"fruit {i + 25}", i) for i in range(10))  # five of them stand in train too
TASK = Task("fruits", {"train": TRAIN, "test": TEST}, Template(), CLASSES)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_subset_or_another_order_gets_the_same_prompts(balanced: bool) -> None:
    whole = {record["id"]: choose(TASK, record, 4, 0, balanced=balanced) for record in TEST}
    less = dataclasses.replace(TASK, splits={"train": TRAIN, "test": TEST[::-2]})
    for record in less.splits["test"]:
        assert choose(less, record, 4, 0, balanced=balanced) == whole[record["id"]]


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert ids(choose(TASK, TEST[0], 4, seed=0)) == ["train/10", "train/21", "train/6", "train/3"]
    assert ids(choose(TASK, TEST[0], 4, seed=0, balanced=True)) == [
        "train/22",
        "train/18",
        "train/14",
        "train/4",
    ]


def test_records_and_seeds_draw_differently() -> None:
    draws = {tuple(ids(choose(TASK, record, 4, seed))) for record in TEST for seed in range(5)}
    assert len(draws) == 50


def test_every_record_is_drawn_equally_often() -> None:
    counts = Counter(ids(tuple(itertools.chain(*(choose(TASK, TEST[9], 3, seed) for seed in range(2000))))))
    assert len(counts) == 30
    assert all(abs(count - 200) < 60 for count in counts.values())


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 99), st.booleans())
def test_fewer_shots_are_the_first_of_more(which: int, shots: int, seed: int, balanced: bool) -> None:
    more = choose(TASK, TEST[which], shots + 1, seed, balanced=balanced)
    assert choose(TASK, TEST[which], shots, seed, balanced=balanced) == more[:shots]
    assert len(set(ids(more))) == shots + 1


@pytest.mark.parametrize("balanced", [False, True])
def test_a_record_is_never_among_its_own(balanced: bool) -> None:
    for record in TRAIN:  # by id, also where its text was edited since, as for a counterfactual
        edited = {**record, "input": f"no {record['input']}"}
        assert record not in choose(TASK, edited, 29, 0, balanced=balanced)
    for record in TEST[:5]:  # by content, under another id
        inputs = [shown["input"] for shown in choose(TASK, record, 29, 0, balanced=balanced)]
        assert record["input"] not in inputs


def test_no_query_is_shown_twice() -> None:
    doubled = tuple({**record, "id": f"again {record['id']}"} for record in TRAIN)
    task = dataclasses.replace(TASK, splits={"train": TRAIN + doubled, "test": TEST})
    inputs = [record["input"] for record in choose(task, TEST[9], 30, 0)]
    assert len(set(inputs)) == 30


def test_demonstrations_come_from_the_records_own_group() -> None:
    colours = tuple(fruit(f"colour/{i}", f"fruit {i}", group="colour") for i in range(4))
    splits = {"train": TRAIN + colours, "test": (*TEST, fruit("test/c", "plum", group="colour"))}
    task = dataclasses.replace(TASK, splits=splits, group_field="relation")
    assert set(ids(choose(task, splits["test"][-1], 4, 0))) == set(ids(colours))
    with pytest.raises(UserError, match="5 shots for record 'test/c'.*relation 'colour', has 4 other"):
        choose(task, splits["test"][-1], 5, 0)


def test_balanced_ones_take_the_options_in_turn() -> None:
    for record in TEST:
        counts = Counter(shown["output"] for shown in choose(TASK, record, 6, 0, balanced=True))
        assert counts == dict.fromkeys(CLASSES, 2)
    firsts = {choose(TASK, record, 1, 0, balanced=True)[0]["output"] for record in TEST}
    assert firsts == set(CLASSES)


def test_balanced_ones_are_as_even_as_the_pool_allows() -> None:
    few = (fruit("rare", "medlar", 2), *(fruit(f"berry/{i}", f"berry {i}") for i in range(5)))
    task = dataclasses.replace(TASK, splits={"train": few, "test": TEST})
    counts = Counter(shown["output"] for shown in choose(task, TEST[0], 4, 0, balanced=True))
    assert counts == {"pome": 1, "berry": 3}


def test_the_pool_can_be_another_split() -> None:
    assert set(ids(choose(TASK, TRAIN[0], 10, 0, pool_split="test"))) == set(ids(TEST))


def test_no_shots_are_no_demonstrations() -> None:
    assert choose(TASK, TEST[0], 0, 0) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 30}, "30 shots for record 'test/0': the train split has 29 other records"),
        ({"shots": -1}, "shots -1: ask for 0 or more"),
        (
            {"shots": 1, "pool_split": "trian"},
            "unknown pool split 'trian': one of train, test; did you mean 'train'",
        ),
        ({"shots": 1, "pool_split": "validation"}, "unknown pool split 'validation'"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(TASK, TEST[0], seed=0, **arguments)


def test_balance_needs_options() -> None:
    with pytest.raises(UserError, match="'fruits' is a generation"):
        choose(dataclasses.replace(TASK, options=None, kind="generation"), TEST[0], 2, 0, balanced=True)


def test_random_and_balanced_ones_are_those_of_choose() -> None:
    for pick in ("random", "balanced"):
        expected = [choose(PHRASES, record, 7, 3, balanced=pick == "balanced") for record in ASKED]
        assert examples(PHRASES, pick, shots=7, seed=3) == expected


@pytest.mark.parametrize("pick", ["random", "bm25", "diverse"])
def test_draws_are_uniform_also_among_equally_similar_ones(pick: str) -> None:
    """The query shares no word with the pool: all are as similar."""
    asked = [fruit(f"asked/{i}", "quince") for i in range(3000)]
    shown = examples(PHRASES, pick, asked, shots=2)
    for place in range(2):
        counts = Counter(each[place]["id"] for each in shown)
        observed = [counts[identity] for identity in ids(POOL)]
        if pick != "diverse" or place == 0:  # the second is unlike the first
            assert stats.chisquare(observed).pvalue > 0.001
    if pick != "diverse":
        pairs = Counter(tuple(sorted(ids(each))) for each in shown)
        assert len(pairs) > 0.7 * 60 * 59 / 2  # of 1770 equally likely ones 1445 on average


def test_balanced_counts_differ_by_one_at_most() -> None:
    for shots in range(1, 12):
        for shown in examples(PHRASES, "balanced", shots=shots):
            counts = [sum(example["output"] == option for example in shown) for option in CLASSES]
            assert max(counts) - min(counts) <= 1
    with pytest.raises(UserError, match="'phrases' is a generation"):
        examples(dataclasses.replace(PHRASES, options=None, kind="generation"), "balanced")
