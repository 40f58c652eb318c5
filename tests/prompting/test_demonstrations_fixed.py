"""Fixed demonstrations: named or drawn once, and never the answer of a record that is asked."""

import dataclasses
import itertools
from collections import Counter

import pytest
from phrases import ASKED, PHRASES, POOL, examples, fruit, ids

from limbeck.model.errors import UserError


def test_named_examples_stand_as_they_are_named() -> None:
    named = ("train/7", "train/3", "train/30")
    shown = examples(PHRASES, "fixed", shots=3, examples=named)
    assert [tuple(ids(each)) for each in shown] == [named] * len(ASKED)


def test_drawn_ones_are_the_same_for_all_records_and_others_for_another_seed() -> None:
    draws = [examples(PHRASES, "fixed", seed=seed) for seed in range(40)]
    assert all(len(set(map(tuple, map(ids, shown)))) == 1 for shown in draws)
    counts = Counter(itertools.chain(*(ids(shown[0]) for shown in draws)))
    assert len({tuple(ids(shown[0])) for shown in draws}) == 40 and len(counts) > 45


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (("train/1", "trian/2"), r"example 'trian/2' is no id of the train split; did you mean 'train/2\d*'\?$"),
        (("test/1",), "example 'test/1' is no id of the train split"),
        (("train/1", "train/1"), "examples 'train/1' and 'train/1' are the same query: name each one once"),
        (("train/1", "train/5"), "record 'train/5' would be shown its own answer, by the fixed example 'train/5'"),
        (("train/9",), "record 'train/5' would be shown its own answer, by the fixed example 'train/9': name another"),
    ],
)
def test_examples_that_cannot_be_named(named: tuple[str, ...], message: str) -> None:
    pool = tuple({**record, "input": POOL[5]["input"]} if i == 9 else record for i, record in enumerate(POOL))
    task = dataclasses.replace(PHRASES, splits={"train": pool, "test": ASKED})
    with pytest.raises(UserError, match=message) as raised:
        examples(task, "fixed", [POOL[5]], shots=len(named), examples=named)
    assert "\n" not in str(raised.value)


def test_a_record_whose_text_was_edited_is_still_its_own_example() -> None:
    with pytest.raises(UserError, match="record 'train/5' would be shown its own answer"):
        examples(PHRASES, "fixed", [{**POOL[5], "input": "edited"}], shots=1, examples=("train/5",))


def test_two_named_examples_of_one_query_and_of_another_group() -> None:
    twin = fruit("twin", POOL[2]["input"], group="colour")
    task = dataclasses.replace(PHRASES, splits={"train": (*POOL, twin), "test": ASKED}, group_field="relation")
    with pytest.raises(UserError, match="examples 'train/2' and 'twin' are the same query"):
        examples(task, "fixed", shots=2, examples=("train/2", "twin"))
    with pytest.raises(UserError, match="'test/0' is of relation 'class' and the fixed example 'twin' of 'colour'"):
        examples(task, "fixed", shots=1, examples=("twin",))
