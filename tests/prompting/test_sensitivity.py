"""Variants of a prompt: the prompt first, none twice, each another prompt; and the spread of their results."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import chooser
from limbeck.prompting.formats import Format
from limbeck.prompting.prompts import make_prompt
from limbeck.prompting.sensitivity import spread, variants
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

RECORDS = tuple({"id": str(i), "input": f"fruit {i}", "output": "pome"} for i in range(40))
TASK = Task("fruits", {"train": RECORDS[:30], "test": RECORDS[30:]}, Template(instruction="Which?"), ("pome", "drupe"))
FEW = (Format(" ->"), Format(None, "\n\n"))

CONFIGS = (
    PromptConfig(),
    PromptConfig(shots=3),
    PromptConfig(shots=3, instruction=""),
    PromptConfig(shots=3, order="shuffled", seed=5),
    PromptConfig(shots=3, pick="fixed"),
    PromptConfig(shots=3, pick="fixed", examples=("1", "2", "3")),
    PromptConfig(shots=3, pick="bm25", order="similar_last"),
    PromptConfig(shots=1, samples=2),
)


def asked(config: PromptConfig) -> tuple:
    """What decides an answer: the prompts, and the seed where answers are drawn."""
    choose = chooser(TASK, config)
    prompts = [make_prompt(TASK, byte_tokenizer(), config, r, choose(r), 900, 4) for r in RECORDS[30:]]
    seed = config.seed if config.samples > 1 else None
    return (*((prompt.text, prompt.option_texts, prompt.stop) for prompt in prompts), seed)


@pytest.mark.parametrize("config", CONFIGS)
def test_variants_are_distinct_prompts_and_the_config_is_first(config: PromptConfig) -> None:
    found = variants(TASK, config, 25, seed=1)
    assert found[0] == config and len(set(found)) == len(found) <= 25
    assert len({asked(each) for each in found}) == len(found)
    assert found == variants(TASK, config, 25, seed=1)
    assert len(found) == 25 or len(found) > 10 and config.shots == 0
    assert config.shots == 0 or found != variants(TASK, config, 25, seed=2)


def test_all_there_are_and_no_more() -> None:
    found = variants(TASK, PromptConfig(), 100, 0, FEW)
    assert {(each.query, each.separator, each.instruction) for each in found} == {
        (query, separator, instruction)
        for query, separator in ((None, None), ("{input} ->", None), (None, "\n\n"))
        for instruction in (None, "")
    }
    off = variants(TASK, PromptConfig(instruction=""), 100, 0, ())
    assert off == [PromptConfig(instruction=""), PromptConfig()]  # the task's own comes back
    none = dataclasses.replace(TASK, template=Template())
    assert variants(none, PromptConfig(), 100, 0, ()) == [PromptConfig()]


def test_orders_and_seeds_vary_where_there_are_examples() -> None:
    drawn = variants(TASK, PromptConfig(shots=4), 200, 0, ())
    assert {each.order for each in drawn} == {"as_is", "shuffled"} and len({each.seed for each in drawn}) > 50
    named = variants(TASK, PromptConfig(shots=2, pick="fixed", examples=("3", "4")), 50, 0, ())
    assert all(each.examples == ("3", "4") for each in named)
    assert {each.seed for each in named if each.order == "as_is"} == {0}
    similar = variants(TASK, PromptConfig(shots=2, pick="bm25"), 500, 0, ())
    assert {each.order for each in similar} == {"as_is", "shuffled", "similar_last"}
    one = variants(TASK, PromptConfig(shots=1), 50, 0, ())
    assert {each.order for each in one} == {"as_is"}


def test_one_variant_is_the_prompt_itself() -> None:
    assert variants(TASK, PromptConfig(shots=3), 1, 0) == [PromptConfig(shots=3)]
    with pytest.raises(UserError, match="0 variants: ask for at least 1"):
        variants(TASK, PromptConfig(), 0, 0)


def test_fixed_examples_vary_without_showing_what_is_asked() -> None:
    """Half of train stands in test as well: a set drawn by a seed alone would be refused there."""
    again = tuple({**record, "id": f"test/{record['id']}"} for record in RECORDS[:15])
    task = dataclasses.replace(TASK, splits={"train": RECORDS[:30], "test": again})
    found = variants(task, PromptConfig(shots=3, pick="fixed"), 30, 0, ())
    sets = {each.examples for each in found if each.examples}
    assert len(sets) > 10
    for each in found:
        if each.examples:
            assert all(len(chooser(task, each)(record)) == 3 for record in again)
    grouped = dataclasses.replace(task, group_field="output")  # these are drawn for each group
    assert {each.examples for each in variants(grouped, PromptConfig(shots=3, pick="fixed"), 30, 0, ())} == {()}
    none = dataclasses.replace(task, splits={"train": RECORDS[:15], "test": again})
    assert {each.examples for each in variants(none, PromptConfig(shots=3, pick="fixed"), 30, 0, ())} == {()}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_the_spread_is_numpys(values: list[float]) -> None:
    assert spread(values) == (np.min(values), np.median(values), np.max(values), len(values))
