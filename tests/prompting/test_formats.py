"""Formats: each a prompt of its own that the task can have, and the same prompt never twice."""

import dataclasses

import pytest

from limbeck.model.tokenizer import byte_tokenizer
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.formats import FORMATS, Format, formatted
from limbeck.prompting.prompts import make_prompt
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

KINDS = ("drupe", "pome", "hesperidium")
RECORDS = tuple({"id": str(i), "input": f"fruit {i}", "output": KINDS[i % 3]} for i in range(6))
TASK = Task("fruits", {"train": RECORDS[:5], "test": RECORDS[5:]}, Template(), KINDS)


def texts(task: Task, configs: list[PromptConfig]) -> list[str]:
    train, (asked,) = task.splits["train"], task.splits["test"]
    return [make_prompt(task, byte_tokenizer(), config, asked, train[:1], 500, 4).text for config in configs]


def test_every_format_is_another_prompt() -> None:
    found = formatted(TASK, PromptConfig(shots=1))
    assert found[0] == PromptConfig(shots=1) and len(found) == len(FORMATS) - 3  # completion with ":" is the task's own
    assert len(set(texts(TASK, found))) == len(found)
    few = formatted(TASK, PromptConfig(shots=1), (Format(" ->", "\n\n"), Format(None, None, "multiple_choice")))
    assert texts(TASK, few[:2]) == ["fruit 0: drupe\nfruit 5:", "fruit 0 -> drupe\n\nfruit 5 ->"]
    assert texts(TASK, few)[2].endswith("fruit 5:\nA. drupe\nB. pome\nC. hesperidium\nAnswer:")


@pytest.mark.parametrize("query", ["{input}:", "{input} =>", "{input}：", "{input} ="])
def test_a_delimiter_takes_the_place_of_the_one_before(query: str) -> None:
    task = dataclasses.replace(TASK, template=Template(query))
    assert [each.query for each in formatted(task, PromptConfig(), (Format(" ->"),))] == [None, "{input} ->"]
    assert [each.query for each in formatted(TASK, PromptConfig(query=query), (Format(" ->"),))][1] == "{input} ->"


def test_a_delimiter_is_text_and_no_template() -> None:
    found = formatted(TASK, PromptConfig(), (Format(" {output}"),))
    assert texts(TASK, found)[1] == "fruit 0 {output} drupe\nfruit 5 {output}"


def test_words_that_do_not_end_the_query_stay() -> None:
    task = dataclasses.replace(TASK, template=Template("میوه: {input}\nنوع؟"))
    assert formatted(task, PromptConfig(), (Format("\nAnswer:"),))[1].query == "میوه: {input}\nنوع؟\nAnswer:"


def test_what_is_as_it_was_stays_unsaid() -> None:
    assert formatted(TASK, PromptConfig(), (Format(":", "\n"), Format(), Format(":"))) == [PromptConfig()]


def test_a_separator_that_cuts_an_answer_is_left_out() -> None:
    two_lines = tuple({**record, "output": "a\nb"} for record in RECORDS)
    task = Task("lines", {"train": two_lines[:5], "test": two_lines[5:]}, Template(separator="\n\n"), None)
    separators = {config.separator for config in formatted(task, PromptConfig())}
    assert separators == {None, "\n###\n"}
    below = Template("{input}", "\n{output}", "\n\n")  # the answer's own delimiter would be cut as well
    task = Task("below", {"train": RECORDS[:5], "test": RECORDS[5:]}, below, None)
    assert {config.separator for config in formatted(task, PromptConfig())} == {None, "\n###\n"}


def test_no_multiple_choice_without_options_or_letters() -> None:
    many = tuple(f"class {i}" for i in range(27))
    records = tuple({**record, "output": "class 0"} for record in RECORDS)
    splits = {"train": records[:5], "test": records[5:]}
    for options, forms in (
        (many, {"completion"}),
        (many[:26], {"completion", "multiple_choice"}),
        (None, {"completion"}),
    ):
        task = Task("many", splits, Template(), options)
        assert {config.form for config in formatted(task, PromptConfig())} == forms


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (PromptConfig(chat=True), {"query", "form"}),
        (PromptConfig(form="cloze", query="{input} is a {output}."), {"separator"}),
        (PromptConfig(reasoning="Let's see.", extract="(.*)"), {"query", "form"}),
        (PromptConfig(form="multiple_choice"), {"separator", "form"}),
        (PromptConfig(form="multiple_choice", query="{input}\n{options}\nWhich:"), {"separator", "query"}),
    ],
)
def test_only_what_a_prompt_has_is_changed(config: PromptConfig, changed: set[str]) -> None:
    found = formatted(TASK, config)
    own = dataclasses.asdict(config)
    differing = {name for each in found for name, value in dataclasses.asdict(each).items() if value != own[name]}
    assert differing == changed and found[0] == config
