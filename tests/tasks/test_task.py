"""Templates and tasks: what they render, whatever the data holds, and what they refuse."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.tasks.task import KINDS, Record, Task
from limbeck.tasks.template import Template

PLUM, PEAR, LEMON = (
    {"id": key, "input": key, "output": value}
    for key, value in [("plum", "drupe"), ("pear", "pome"), ("lemon", "hesperidium")]
)


def fruits(**changes) -> Task:
    parts: dict = dict(splits={"train": (PLUM, PEAR), "test": (LEMON,)}, template=Template(), options=None)
    return Task(**{"name": "fruits", **parts, **changes})


def test_the_reference_prompt() -> None:
    task = fruits()
    assert task.prompt(LEMON, [PLUM, PEAR]) == "plum: drupe\npear: pome\nlemon:"
    assert task.prompt(LEMON) == "lemon:"
    assert task.target(LEMON) == " hesperidium"
    assert task.target(LEMON, "pome") == " pome"
    assert task.answer(LEMON) == "hesperidium"


def test_an_instruction_comes_first() -> None:
    task = fruits(template=Template(instruction="The class of a fruit {botany}", separator="\n\n"))
    assert task.prompt(LEMON, [PLUM]) == "The class of a fruit {botany}\n\nplum: drupe\n\nlemon:"
    assert task.prompt(LEMON) == "The class of a fruit {botany}\n\nlemon:"


def test_a_sentence_pair_is_a_template() -> None:
    template = Template("{sentence1}\n{sentence2}\nsame:", " {same}", "\n\n")
    record = {"id": "1", "sentence1": "A man runs.", "sentence2": "He runs.", "same": "yes"}
    task = Task(
        "pairs",
        {"train": (record,), "test": ({**record, "id": "2"},)},
        template,
        ("no", "yes"),
        answer_field="same",
    )
    assert task.prompt(record) == "A man runs.\nHe runs.\nsame:"
    assert task.target(record, "no") == " no"


@pytest.mark.parametrize(
    "hostile", ["{__class__}", "{0}", "{", "}", "{{", "}}", "{output}", "{input}", "%s", "\\1", "\\g<0>"]
)
def test_hostile_data_stays_as_it_is(hostile: str) -> None:
    record = {"id": "1", "input": hostile, "output": hostile}
    assert fruits().prompt(LEMON, [record]) == f"{hostile}: {hostile}\nlemon:"


@given(st.text().filter(str.strip))
def test_a_query_never_ends_in_white_space(text: str) -> None:
    query = fruits(template=Template(query="fruit {input}")).query({**LEMON, "input": text + " \n"})
    assert query == "fruit " + text.rstrip()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metric": "acuracy"},
            "unknown metric 'acuracy': one of accuracy, macro_f1.*did you mean 'accuracy'",
        ),
        ({"options": ()}, "must be one or more"),
        ({"options": ("drupe", "pome", "drupe")}, "each listed once"),
        (
            {"options": ("drupe", "pome", "hesperidiun")},
            "record 'lemon'.*'hesperidium'.*did you mean 'hesperidiun'",
        ),
        ({"splits": {"train": (PLUM, PEAR), "test": (PLUM,)}}, "id 'plum' stands twice"),
        ({"splits": {"train": (PLUM,)}}, "no test records"),
        ({"splits": {"train": (), "test": (PLUM,)}}, "no train records"),
        ({"splits": {"train": (PLUM,), "test": (PEAR,), "dev": (LEMON,)}}, "unknown split 'dev'"),
        ({"template": Template(query="{imput}:")}, "record 'plum': no field 'imput'.*did you mean 'input'"),
        ({"template": Template(query="{input} {output}:")}, "shows the answer"),
        ({"template": Template(target=" {class}")}, "lacks the answer: add {output}"),
        ({"group_field": "relation"}, "record 'plum': no field 'relation'"),
        (
            {"splits": {"train": (PLUM,), "test": ({**PEAR, "output": "a\nb"},)}},
            "record 'pear'.*holds the separator",
        ),
    ],
)
def test_a_task_is_checked(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        fruits(**changes)
    assert "\n" not in str(error.value)


def test_options_may_hold_the_separator() -> None:
    both: Record = {**PEAR, "output": "a\nb"}
    assert fruits(splits={"train": (both,), "test": (LEMON,)}, options=("a\nb", "hesperidium")).options


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "fruit"},
        {"options": ("drupe", "pome", "hesperidium")},
        {"metric": "macro_f1"},
        {"template": Template(separator="\n\n")},
        {"template": Template(instruction="Fruits")},
        {"splits": {"train": (PEAR, PLUM), "test": (LEMON,)}},
        {"splits": {"train": (PLUM, PEAR), "validation": (LEMON,), "test": ({**LEMON, "id": "l"},)}},
        {"splits": {"train": (PLUM, PEAR), "test": ({**LEMON, "output": "pome"},)}},
        {"group_field": "output"},
    ],
)
def test_the_digest_sees_every_part(changes: dict) -> None:
    assert fruits(**changes).digest() != fruits().digest()


def test_the_digest_is_the_same_everywhere() -> None:
    assert fruits().digest() == "06d3af1c8187b88599ec4512587c3ab778f5b02c5455135e79615a36b0d63bb9"
    reordered = {"output": "drupe", "input": "plum", "id": "plum"}
    assert fruits(splits={"train": (reordered, PEAR), "test": (LEMON,)}).digest() == fruits().digest()


def test_a_task_needs_no_jax() -> None:
    """The command line reads tasks to say what is wrong with a config, and must answer in under a second."""
    code = "import sys, limbeck.tasks.sources, limbeck.prompting.demonstrations as d; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"'jax'", "'pyarrow'", "'tensorflow_datasets'"} & set(re.findall(r"'\w+'", modules))


# Kinds


ANGRY, CALM, MIXED = (
    {"id": key, "input": key, "output": value}
    for key, value in [("angry", "anger"), ("calm", "none"), ("mixed", "joy, anger")]
)
WARM, COLD = ({"id": key, "input": key, "output": value} for key, value in [("warm", "21.5"), ("cold", "-3")])


def moods(**changes) -> Task:
    parts: dict = dict(splits={"train": (ANGRY, CALM), "test": (MIXED,)}, options=("joy", "anger"), kind="multi_label")
    return fruits(**{**parts, **changes})


def degrees(**changes) -> Task:
    return fruits(**{"splits": {"train": (WARM,), "test": (COLD,)}, "kind": "regression", **changes})


def test_the_kind_follows_the_options_if_it_is_not_given() -> None:
    closed = ("drupe", "pome", "hesperidium")
    assert (fruits().kind, fruits(options=closed).kind) == ("generation", "classification")
    assert fruits().digest() == fruits(kind="generation", metric="accuracy").digest()
    assert fruits(options=closed).labels(PLUM) == ("drupe",)


def test_labels_and_numbers() -> None:
    task = moods()
    assert [task.labels(record) for record in (ANGRY, CALM, MIXED)] == [("anger",), (), ("joy", "anger")]
    assert task.prompt(MIXED, [CALM]) + task.target(MIXED) == "calm: none\nmixed: joy, anger"
    assert [degrees().number(record) for record in (WARM, COLD)] == [21.5, -3.0]
    assert (task.metric, degrees().metric) == ("micro_f1", "pearson")


def test_the_digest_sees_the_kind() -> None:
    assert degrees(metric="mse").digest() != degrees().digest()
    assert len({moods().digest(), degrees().digest(), fruits().digest()}) == 3
    answers = {"train": (ANGRY,), "test": ({**ANGRY, "id": "2"},)}
    both = [fruits(splits=answers, options=("joy", "anger"), metric="accuracy", kind=kind) for kind in KINDS[1:3]]
    assert both[0].digest() != both[1].digest()


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (fruits, {"kind": "regresion"}, "unknown kind 'regresion'.*did you mean 'regression'"),
        (fruits, {"kind": "classification"}, "options .* must be one or more"),
        (fruits, {"options": ("drupe",), "kind": "generation"}, "is a generation and has options"),
        (fruits, {"kind": "regression"}, "record 'plum': 'drupe' is no finite number"),
        (degrees, {"options": ("21.5", "-3")}, "is a regression and has options"),
        (degrees, {"metric": "accuracy"}, "metric 'accuracy' is none for .* 'regression': pearson, spearman, mse"),
        (degrees, {"template": Template(separator="1.")}, "'21.5' holds the separator '1.'"),
        (moods, {"options": None}, "must be one or more"),
        (moods, {"options": ("joy", "anger", "joy")}, "each listed once"),
        (moods, {"options": ("joy", "none")}, "'none' cannot be one label"),
        (moods, {"options": ("joy", "anger, rage")}, "'anger, rage' cannot be one label"),
        (moods, {"options": ("joy", " anger")}, "' anger' cannot be one label"),
        (moods, {"options": ("joy", "")}, "'' cannot be one label"),
        (moods, {"options": ("anger", "joy")}, "record 'mixed': 'joy, anger' must have each label once, in the"),
        (moods, {"options": ("joy", "angr")}, "record 'angry': 'anger'.*did you mean 'angr'"),
        (moods, {"metric": "mse"}, "metric 'mse' is none for"),
        (moods, {"template": Template(separator=",")}, "'joy, anger' holds the separator ','"),
    ],
)
def test_a_kind_is_checked(make, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(**changes)
    assert "\n" not in str(error.value)
