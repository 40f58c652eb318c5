"""Templates: what they render, whatever the data holds, what is read back by them, and what they refuse."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.tasks.template import Template, fields, read_back, render


@given(st.text(), st.text())
def test_rendering_puts_any_text_in_unchanged(asked: str, answer: str) -> None:
    assert render("<{a}|{b}|{a}>", {"a": asked, "b": answer}) == f"<{asked}|{answer}|{asked}>"


def test_doubled_braces_are_plain_ones() -> None:
    assert render('{{"fruit": "{a}"}}', {"a": "plum"}) == '{"fruit": "plum"}'
    assert fields('{{"fruit": "{a}"}} {b c}') == ["a", "b c"]


@pytest.mark.parametrize(
    "text", ["{input.__class__}", "{input[0]}", "{input!r}", "{input:>9}", "{}", "{0}", "{inputs}"]
)
def test_only_plain_names_are_fields(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"template field {text}: the record has id, input, output")):
        render(text, {"id": "lemon", "input": "lemon", "output": "hesperidium"})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"query": "{input}: "}, "ends in white space: start the target"),
        ({"query": "{input}\n"}, "ends in white space"),
        ({"query": "which fruit?"}, "names no field"),
        ({"target": "{output}"}, "write the delimiter"),
        ({"target": " yes"}, "write the delimiter"),
        ({"separator": ""}, "separator '' is empty"),
    ],
)
def test_a_template_is_checked(parts: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Template(**parts)


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="#")))
@example("a\n#### 1", "2")
@example("", "")
def test_what_is_rendered_is_read_back(steps: str, final: str) -> None:
    for text in ("{steps}\n#### {final}", " {{{steps}}}\n#### {final}", "#{steps}#{final}."):
        values = {"steps": steps, "final": final}
        assert read_back(text, render(text, values)) == values


def test_what_stands_between_is_looked_for_from_the_end() -> None:
    assert read_back("{a}-{b}-{c}", "1-2-3-4") == {"a": "1-2", "b": "3", "c": "4"}
    assert read_back("{آ}؛ {ب}", "یک؛ دو؛ سه") == {"آ": "یک؛ دو", "ب": "سه"}


@pytest.mark.parametrize("text", ["", "18", "<18", "18>", "<", "<a,b>,c", "<a;b>"])
def test_text_of_another_form_is_not_read(text: str) -> None:
    assert read_back("<{a},{b}>", text) is None
    assert read_back('"{a}"', '"') is None  # both ends would be one and the same


@pytest.mark.parametrize("text", ["plain", "{a}{b}", "{a} {a}"])
def test_a_template_that_leaves_ends_open_reads_nothing(text: str) -> None:
    with pytest.raises(UserError, match="cannot be read back: it needs a field, each once, and something between"):
        read_back(text, "a b")
