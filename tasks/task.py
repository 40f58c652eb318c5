"""The one definition of what is to be solved; prompting, tuning, distillation and evaluation all read it."""

import dataclasses
import hashlib
import itertools
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.tasks.label_metrics import join_labels, split_labels
from limbeck.tasks.metrics import METRICS, default_metric
from limbeck.tasks.template import Template, fields, render

Record = dict[str, str]  # "id", unique in the task, and every field that the template names
Kind = Literal["generation", "classification", "multi_label", "regression"]

SPLITS = ("train", "validation", "test")
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Task:
    """Records by split, their template, the kind of answer, the closed set of answers if there is one, the metric.

    An answer is text in every kind: of a multi-label task its labels in the options' order, joined by ", ", "none"
    for no label; of a regression a finite number. Raises UserError that names the record for: a duplicate id, a field
    that the template names and the record lacks, an answer that is none of its kind or outside `options`, and one
    with the separator in it, which generation could never give.
    """

    name: str
    splits: dict[str, tuple[Record, ...]]  # "train", "test", and "validation" or not
    template: Template
    options: tuple[str, ...] | None  # the answers or labels to choose from; None: text or a number
    metric: str = cast(str, None)  # not given: the usual one of its kind
    answer_field: str = "output"
    group_field: str | None = None  # demonstrations come from the query's own group
    kind: Kind = cast(Kind, None)  # not given: "classification" if there are options, else "generation"
    rationale_field: str | None = None  # why an answer is right, in the records that say so
    skipped: tuple[str, ...] = field(default=(), compare=False)  # a line for each bad row that was left out
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # id -> "FILE, row N"

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", _implied(self.options))
        if self.metric is None:
            object.__setattr__(self, "metric", default_metric(self.kind))
        self._check_task()
        needed = ["id", *fields(self.template.query), *fields(self.template.target)]
        needed += [self.group_field] if self.group_field else []
        seen: set[str] = set()
        for record in itertools.chain.from_iterable(self.splits.values()):
            for name in needed:
                if name not in record:
                    raise UserError(
                        f"{self.place(record)}: no field {name!r} among {', '.join(record)}{nearest(name, record)}"
                    )
            check_answer(self.answer(record), self.place(record), self.kind, self.options, self.template.separator)
            if record["id"] in seen:
                raise UserError(f"task {self.name!r}: id {record['id']!r} stands twice; give each record its own")
            seen.add(record["id"])

    def query(self, record: Record) -> str:
        """The context of one record, 'lemon:'; never ends in white space, whatever the data ends in."""
        return render(self.template.query, record).rstrip()

    def answer(self, record: Record) -> str:
        """The right answer of one record, 'hesperidium'."""
        return record[self.answer_field]

    def labels(self, record: Record) -> tuple[str, ...]:
        """The right labels of one record: one in a classification, any number of them in a multi-label task."""
        if self.kind == "classification":
            return (self.answer(record),)
        assert self.kind == "multi_label" and self.options, self.kind
        labels = split_labels(self.answer(record))
        return tuple(option for option in self.options if option in labels)

    def number(self, record: Record) -> float:
        """The right number of one record of a regression."""
        assert self.kind == "regression", self.kind
        return float(self.answer(record))

    def target(self, record: Record, answer: str | None = None) -> str:
        """What follows the query, ' hesperidium': with the right answer, or with another one to be scored."""
        shown = record if answer is None else {**record, self.answer_field: answer}
        return render(self.template.target, shown)

    def prompt(self, record: Record, demonstrations: Sequence[Record] = ()) -> str:
        """Instruction, solved demonstrations and the open query: 'plum: drupe\\npear: pome\\nlemon:'."""
        parts = [self.template.instruction] if self.template.instruction else []
        parts += [self.query(shown) + self.target(shown) for shown in demonstrations]
        return self.template.separator.join([*parts, self.query(record)])

    def place(self, record: Record) -> str:
        """Where a record was read, 'FILE, row N', for an error about it; its task and id where that is not known."""
        identity = record.get("id")
        return self.places.get(identity or "", f"task {self.name!r}, record {identity!r}")

    def digest(self) -> str:
        """Hex SHA-256 over everything that defines the task, as canonical JSON."""
        parts = {part.name: getattr(self, part.name) for part in dataclasses.fields(self) if part.compare}
        parts["template"] = dataclasses.asdict(self.template)
        if self.kind == _implied(self.options):
            del parts["kind"]  # said by the options already; a digest from before there were kinds stays good
        if self.rationale_field is None:
            del parts["rationale_field"]  # nor does one from before records could say why
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _check_task(self) -> None:
        one_of("kind", self.kind, KINDS)
        one_of("metric", self.metric, METRICS)
        if self.kind not in METRICS[self.metric].kinds:
            fitting = [name for name, metric in METRICS.items() if self.kind in metric.kinds]
            raise UserError(f"metric {self.metric!r} is none for a task of kind {self.kind!r}: {', '.join(fitting)}")
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
        check_options(self.options, f"task {self.name!r}", self.kind)


def check_options(options: Sequence[str] | None, place: str, kind: Kind) -> None:
    """Raises UserError, naming `place`, for options that a task of that kind cannot have."""
    if kind in ("generation", "regression"):
        if options is not None:
            raise UserError(f"{place} is a {kind} and has options: leave them out, or set the kind to 'classification'")
    elif not options or len(set(options)) < len(options):
        raise UserError(f"{place}: options {list(options or ())} must be one or more, each listed once")
    elif kind == "multi_label":
        for option in options:
            check_label(option, place)


def check_label(label: str, place: str) -> None:
    """Raises UserError for a label that text such as 'joy, anger' or 'none' could not hold."""
    if split_labels(label) != {label}:
        raise UserError(
            f"{place}: {label!r} cannot be one label of several: ', ' stands between labels and 'none' for no label,"
            " and a label has no white space around it and is in Unicode's form NFC; rename it"
        )


def check_answer(answer: str, place: str, kind: Kind, options: Sequence[str] | None, separator: str) -> None:
    """Raises UserError, naming `place`, for an answer that is none of a task of that kind."""
    if kind == "classification":
        one_of(f"answer in {place}:", answer, options or ())
        return
    if kind == "multi_label":
        labels = split_labels(answer)
        for label in sorted(labels):
            one_of(f"label in {place}:", label, options or ())
        if answer != join_labels(labels, options or ()):
            raise UserError(
                f"{place}: {answer!r:.60} must have each label once, in the options' order, joined by ', ';"
                " 'none' for no label"
            )
    if kind == "regression":
        number_in(answer, place)
    if separator in answer:
        raise UserError(
            f"{place}: the answer {reprlib.repr(answer)} holds the separator {separator!r},"
            " which ends a generated answer: choose another separator in the template"
        )


def number_in(text: str, place: str) -> float:
    """The finite number that a text says. Raises UserError, naming `place`, where it says none."""
    try:
        number = float("" if "_" in text else text)  # Python reads 1_000 as a number, others do not
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{place}: {text!r:.40} is no finite number, which a regression needs: mend or remove the row")
    return number


def number_text(number: float) -> str:
    """The shortest text of a finite number that reads back the same: '2.5', '5', '1e-07'."""
    return repr(number + 0.0).removesuffix(".0")  # + 0.0: there is no -0


def _implied(options: Sequence[str] | None) -> Kind:
    return "generation" if options is None else "classification"
