"""The same prompt in another dress: what stands between query and answer, between examples, and the form."""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from limbeck.prompting.config import Form, PromptConfig
from limbeck.prompting.prompts import LETTERS
from limbeck.tasks.task import Task
from limbeck.tasks.template import fields, render

_DELIMITER = re.compile(r"(?:\s*(?:->|=>|[:：=→]))+$")  # what a query ends in where its answer is asked for
_OPTIONS = "options"  # the field of a multiple choice's own query that lists them


class Format(NamedTuple):
    """Plain text, not a template; None leaves a part as the prompt has it."""

    delimiter: str | None = None  # after the query; what the answer begins with, such as a space, stays
    separator: str | None = None  # between examples
    form: Form | None = None


_SEPARATORS = ("\n", "\n\n", "\n###\n")
FORMATS = (
    *(Format(delimiter, separator) for separator in _SEPARATORS for delimiter in (":", " ->", " =", "\nAnswer:")),
    *(Format(None, separator, form) for separator in _SEPARATORS for form in ("completion", "multiple_choice")),
)


def formatted(task: Task, config: PromptConfig, formats: Sequence[Format] = FORMATS) -> list[PromptConfig]:
    """The config itself and what each format makes of it, each once; a format that the task cannot have is left out.

    That is a separator that stands in an answer of the training split, which it would cut; and a multiple choice where
    there are no options, or more of them than letters. A conversation has no separators, and what a model reasons may
    hold any; the delimiter is the end of the query, which a cloze has not, and a multiple choice where `{options}` say.
    """
    separators = {format.separator for format in formats if format.separator}
    template = config.target or task.template.target
    targets = [render(template, record) for record in task.splits["train"]] if separators else []
    cutting = {separator for separator in separators if any(separator in target for target in targets)}
    return list(
        dict.fromkeys(
            [
                config,
                *(
                    _reformatted(task, config, format)
                    for format in formats
                    if format.separator not in cutting and _has_form(task, config, format.form)
                ),
            ]
        )
    )


def _has_form(task: Task, config: PromptConfig, form: Form | None) -> bool:
    if form is None or form == config.form:
        return True
    if "cloze" in (form, config.form) or _OPTIONS in fields(config.query or ""):  # its query is another text altogether
        return False
    closed = task.kind == "classification" and task.options is not None
    return form == "completion" or (closed and len(task.options or ()) <= len(LETTERS))


def _reformatted(task: Task, config: PromptConfig, format: Format) -> PromptConfig:
    form = format.form or config.form
    own_query = task.template.query if config.query is None else config.query
    own_separator = task.template.separator if config.separator is None else config.separator
    query, separator = own_query, own_separator
    if format.delimiter is not None and (form == "completion" or _OPTIONS in fields(own_query)):
        literal = format.delimiter.replace("{", "{{").replace("}", "}}")
        query = _DELIMITER.sub("", own_query) + literal
    if format.separator is not None and not (config.chat or config.reasoning):
        separator = format.separator
    return dataclasses.replace(
        config,
        form=form,
        query=config.query if query == own_query else query,  # as it was said, so that equal prompts are equal
        separator=config.separator if separator == own_separator else separator,
    )
