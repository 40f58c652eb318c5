"""The space that is searched: instruction x examples x order x format, out of train alone."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import chooser
from limbeck.prompting.formats import FORMATS, Format
from limbeck.prompting.search import candidates
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template


def fruit(identity: str, name: str, group: str = "class") -> Record:
    return {"id": identity, "input": name, "output": "pome", "relation": group}


TRAIN = tuple(fruit(f"train/{i}", f"میوه {i}") for i in range(20))
VALIDATION = tuple(fruit(f"validation/{i}", f"میوه {i + 15}") for i in range(10))  # five of them stand in train too
TEST = tuple(fruit(f"test/{i}", f"میوه {i + 13}") for i in range(4))  # and three of these
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
TASK = Task("fruits", SPLITS, Template(), ("pome", "drupe"))
FREE = {f"train/{i}" for i in range(13)}
INSTRUCTIONS = ("Name the kind.", "What is {it}?", "نوع میوه را بگو.")


@given(st.integers(1, 60), st.integers(0, 99), st.integers(0, 13))
def test_the_unoptimised_prompt_first_and_none_twice(count: int, seed: int, shots: int) -> None:
    config = PromptConfig(shots=shots)
    found = candidates(TASK, config, count, seed, INSTRUCTIONS)
    assert found[0] == config and len(set(found)) == len(found) == count
    assert found == candidates(TASK, config, count, seed, INSTRUCTIONS)


def test_examples_come_from_train_and_can_be_shown_everywhere() -> None:
    found = candidates(TASK, PromptConfig(shots=4), 60, 0)
    named = [each for each in found if each.examples]
    assert len(named) > 40 and set().union(*(each.examples for each in named)) <= FREE
    for each in named:
        assert each.pick == "fixed" and len(set(each.examples)) == 4
        for record in (*VALIDATION, *TEST):  # a leak would be an error here
            assert tuple(r["id"] for r in chooser(TASK, each)(record)) == each.examples


def test_every_part_varies() -> None:
    found = candidates(TASK, PromptConfig(shots=3), 100, 0, INSTRUCTIONS)
    assert {each.instruction for each in found} == {None, *INSTRUCTIONS}
    assert len({(each.query, each.separator, each.form) for each in found}) == len(FORMATS) - 3
    orders: dict[frozenset[str], set[tuple[str, ...]]] = {}
    for each in found:
        orders.setdefault(frozenset(each.examples), set()).add(each.examples)
    assert len(orders) > 5 and max(map(len, orders.values())) > 2  # several sets, each in several orders
    assert candidates(TASK, PromptConfig(shots=3), 100, 1, INSTRUCTIONS)[1:] != found[1:]


def test_a_small_space_is_given_whole() -> None:
    formats = (Format(" ->"), Format(None, "\n\n"))
    found = candidates(TASK, PromptConfig(), 1000, 0, ("A", "A", ""), formats)  # "" is what the task has
    assert {(each.query, each.separator, each.instruction) for each in found} == {
        (query, separator, instruction)
        for query, separator in ((None, None), ("{input} ->", None), (None, "\n\n"))
        for instruction in (None, "A")
    }
    assert candidates(TASK, PromptConfig(), 5, 0, (), ()) == [PromptConfig()]


def test_named_examples_are_tried_in_other_orders() -> None:
    own = PromptConfig(shots=3, pick="fixed", examples=("train/1", "train/2", "train/3"))
    found = candidates(TASK, own, 60, 0, (), ())
    assert len({each.examples for each in found if set(each.examples) == set(own.examples)}) > 2
    assert found[0] == own and len(set(found)) == len(found)


def test_similar_ones_may_be_kept_or_replaced() -> None:
    found = candidates(TASK, PromptConfig(shots=2, pick="bm25", order="similar_last"), 60, 0)
    assert {(each.pick, each.order) for each in found} == {("bm25", "similar_last"), ("fixed", "as_is")}


def test_a_task_with_groups_has_other_seeds() -> None:
    task = dataclasses.replace(TASK, group_field="relation")
    found = candidates(task, PromptConfig(shots=3, seed=7), 30, 0, (), ())
    assert len({each.seed for each in found}) == 30 and not any(each.examples for each in found)
    assert candidates(task, PromptConfig(shots=3, pick="bm25"), 30, 0, (), ()) == [PromptConfig(shots=3, pick="bm25")]


def test_a_query_of_its_own_decides_what_is_the_same() -> None:
    doubled = tuple({**record, "note": str(i % 3)} for i, record in enumerate(TRAIN))
    asked = tuple({**record, "note": "x"} for record in VALIDATION)
    task = dataclasses.replace(TASK, splits={"train": doubled, "validation": asked, "test": TEST_NOTED})
    found = candidates(task, PromptConfig(shots=3, query="Note {note}:"), 30, 0, (), ())
    for each in found:
        notes = [doubled[int(name.split("/")[1])]["note"] for name in each.examples]
        assert len(set(notes)) == len(notes)
    with pytest.raises(UserError, match="4 shots: the train split has 3 records"):
        candidates(task, PromptConfig(shots=4, query="Note {note}:"), 30, 0)


TEST_NOTED = tuple({**record, "note": "y"} for record in TEST)


def test_what_cannot_be_drawn_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match="0 candidates: ask for at least 1"):
        candidates(TASK, PromptConfig(), 0, 0)
    with pytest.raises(UserError, match="14 shots: the train split has 13 records with queries of their own") as error:
        candidates(TASK, PromptConfig(shots=14), 5, 0)
    assert "\n" not in str(error.value)


def test_orders_of_two_are_two() -> None:
    found = candidates(TASK, PromptConfig(shots=2), 500, 0, (), ())
    sets = {frozenset(each.examples) for each in found if each.examples}
    assert len(found) - 1 <= 2 * len(sets) and len(sets) <= math.comb(13, 2)
