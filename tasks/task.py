"""The one definition of what is to be solved; prompting, tuning, distillation and evaluation all read it."""

import hashlib
import itertools
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.tasks.metrics import METRICS

Record = dict[str, str]  # "id", unique in the task, and every field that the template names

SPLITS = ("train", "validation", "test")

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


@dataclass(frozen=True)
class Task:
    """Records by split, their template, the closed set of answers if there is one, and the metric.

    Raises UserError that names the record for: a duplicate id, a field that the template names and the record
    lacks, an answer outside `options`, an answer with the separator in it, which generation could never give.
    """

    name: str
    splits: dict[str, tuple[Record, ...]]  # "train", "test", and "validation" or not
    template: Template
    options: tuple[str, ...] | None  # the answers to choose from, or None: the answer is generated
    metric: str = "accuracy"
    answer_field: str = "output"
    group_field: str | None = None  # demonstrations come from the query's own group

    def __post_init__(self) -> None:
        one_of("metric", self.metric, METRICS)
        for split in self.splits:
            one_of("split", split, SPLITS)
        for split in ("train", "test"):
            if not self.splits.get(split):
                raise UserError(f"task {self.name!r} has no {split} records: add some")
        if self.answer_field not in fields(self.template.target):
            raise UserError(f"template target {self.template.target!r} lacks the answer: add {{{self.answer_field}}}")
        if self.answer_field in fields(self.template.query):
            raise UserError(
                f"template query {self.template.query!r} shows the answer: take {{{self.answer_field}}} out"
            )
        if self.options is not None and (not self.options or len(set(self.options)) < len(self.options)):
            raise UserError(f"task {self.name!r}: options {list(self.options)} must be one or more, each listed once")
        needed = ["id", *fields(self.template.query), *fields(self.template.target)]
        needed += [self.group_field] if self.group_field else []
        seen: set[str] = set()
        for record in itertools.chain.from_iterable(self.splits.values()):
            self._check(record, needed)
            if record["id"] in seen:
                raise UserError(f"task {self.name!r}: id {record['id']!r} stands twice; give each record its own")
            seen.add(record["id"])

    def query(self, record: Record) -> str:
        """The context of one record, 'lemon:'; never ends in white space, whatever the data ends in."""
        return render(self.template.query, record).rstrip()

    def answer(self, record: Record) -> str:
        """The right answer of one record, 'hesperidium'."""
        return record[self.answer_field]

    def target(self, record: Record, answer: str | None = None) -> str:
        """What follows the query, ' hesperidium': with the right answer, or with another one to be scored."""
        shown = record if answer is None else {**record, self.answer_field: answer}
        return render(self.template.target, shown)

    def prompt(self, record: Record, demonstrations: Sequence[Record] = ()) -> str:
        """Instruction, solved demonstrations and the open query: 'plum: drupe\\npear: pome\\nlemon:'."""
        parts = [self.template.instruction] if self.template.instruction else []
        parts += [self.query(shown) + self.target(shown) for shown in demonstrations]
        return self.template.separator.join([*parts, self.query(record)])

    def digest(self) -> str:
        """Hex SHA-256 over everything that defines the task, as canonical JSON."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def _check(self, record: Record, needed: Sequence[str]) -> None:
        place = f"task {self.name!r}, record {record.get('id')!r}"
        for name in needed:
            if name not in record:
                raise UserError(f"{place}: no field {name!r} among {', '.join(record)}{nearest(name, record)}")
        answer = self.answer(record)
        if self.options is not None and answer not in self.options:
            one_of(f"answer ({place})", answer, self.options)
        if self.options is None and self.template.separator in answer:
            raise UserError(
                f"{place}: the answer {reprlib.repr(answer)} holds the separator {self.template.separator!r},"
                " which ends a generated answer: choose another separator in the template"
            )
