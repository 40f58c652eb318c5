"""How a record becomes text, and how text of that form is read back into fields."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from limbeck.model.errors import UserError, nearest

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def fields(text: str) -> list[str]:
    """Names of the fields of a template's text, in order."""
    return [found[1] for found in _BRACES.finditer(text) if found[1] is not None]


def render(text: str, record: Mapping[str, str]) -> str:
    """`text` with every {name} replaced by the record's field of that name; {{ and }} are plain braces.

    Safe for any data: a name is looked up and nothing else (no attributes, no indices, no format), and braces
    inside the record's text stay as they are. A field that the record lacks is a UserError.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return found[0][0]
        if name not in record:
            raise UserError(
                f"template field {{{name}}}: the record has {', '.join(record)}{nearest(name, record)}"
                " (plain braces are written {{ and }})"
            )
        return record[name]

    return _BRACES.sub(value, text)


def read_back(text: str, rendered: str) -> dict[str, str] | None:
    """The fields of which `text` makes `rendered`; None if there are none. `render` the other way round.

    What stands between two fields is looked for from the end, so that '{steps}\\n#### {answer}' cuts at the last
    '\\n#### ', whatever the steps hold. Raises UserError for a template that leaves it open where a field ends.
    """
    names, literals = _parsed(text)
    if not names or len(set(names)) < len(names) or "" in literals[1:-1]:
        raise UserError(
            f"template {text!r} cannot be read back: it needs a field, each once, and something between any two"
        )
    rest = rendered.removeprefix(literals[0])
    if not (rendered.startswith(literals[0]) and rest.endswith(literals[-1])):
        return None
    rest = rest.removesuffix(literals[-1])
    found: dict[str, str] = {}
    for name, literal in zip(names[:0:-1], literals[-2:0:-1], strict=True):
        rest, between, found[name] = rest.rpartition(literal)
        if not between:
            return None
    return {names[0]: rest, **dict(reversed(found.items()))}


def _parsed(text: str) -> tuple[list[str], list[str]]:
    """Names of the fields, and the plain text before, between and after them."""
    names, literals, end = [], [""], 0
    for found in _BRACES.finditer(text):
        literals[-1] += text[end : found.start()]
        end = found.end()
        if found[1] is None:
            literals[-1] += found[0][0]
        else:
            names.append(found[1])
            literals.append("")
    literals[-1] += text[end:]
    return names, literals


@dataclass(frozen=True)
class Template:
    """How a record becomes text: 'plum: drupe', and 'lemon:' where the answer is asked for.

    The query must not end in white space and the target must start with the delimiter, so that the tokens at
    their join are the same whether the answer is there or not. Raises UserError otherwise.
    """

    query: str = "{input}:"
    target: str = " {output}"
    separator: str = "\n"  # between examples; also what ends a generated answer
    instruction: str = ""  # before the first example, if any

    def __post_init__(self) -> None:
        if not fields(self.query):
            raise UserError(f"template query {self.query!r} names no field: write one as {{input}}")
        if self.query != self.query.rstrip():
            raise UserError(f"template query {self.query!r} ends in white space: start the target with it instead")
        first = _BRACES.match(self.target)
        if not fields(self.target) or (first and first[1] is not None):
            raise UserError(
                f"template target {self.target!r}: write the delimiter, then the answer, as in ' {{output}}'"
            )
        if not self.separator:
            raise UserError("template separator '' is empty: it ends a generated answer; write one such as '\\n'")
