"""A task from its tables: which field answers and how, records checked one by one, a test held out, the options."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from limbeck.model.errors import UserError, nearest
from limbeck.tasks.description import Description
from limbeck.tasks.label_metrics import join_labels, normalise, split_labels
from limbeck.tasks.tables import OnBadRow, Row, Table, each, enough, labels_of, number_of, text_of
from limbeck.tasks.task import Kind, Record, Task, check_answer, check_options
from limbeck.tasks.template import Template, fields, read_back


class _Guess(NamedTuple):
    asked: tuple[str, ...]
    answer: str
    kind: Kind | None = None  # None: a classification if there are few answers, else a generation


_GUESSES = (
    _Guess(("input",), "output"),
    _Guess(("text",), "label"),
    _Guess(("text",), "score", "regression"),
    _Guess(("sentence1", "sentence2"), "score", "regression"),
)
_SEEN = 10  # rows whose fields are looked at for a guess
_MOST_OPTIONS, _FEWEST_ROWS = 20, 50  # an undescribed answer with so few values over so many rows is a class
_TEST_SHARE = 0.2


class _Plan(NamedTuple):
    kind: Kind | None
    template: Template
    answer: str
    needed: tuple[str, ...]  # every field that a record has
    rationale: str | None  # and one that it may have


class _Read(NamedTuple):
    index: int
    place: str
    record: Record  # with an id only if the row has one of its own; labels as they stand in the row


def task_of(name: str, tables: Mapping[str, Table], description: Description, on_bad_row: OnBadRow) -> Task:
    """The task that the tables of its splits hold, as described, the rest guessed.

    Raises UserError that names file and row of the first bad row; with on_bad_row="skip" bad rows are left out and
    listed in `Task.skipped`, unless nothing is left of a split or more than half of its rows are bad.
    """
    tables = {split: _parted(table, description.get("parts", {})) for split, table in tables.items()}
    if "train" not in tables:
        raise UserError(f'{name} has no train split among {", ".join(tables)}: set "splits" in a task.json')
    train = tables["train"]
    rows = iter(train.rows)
    first = list(itertools.islice(rows, _SEEN))
    tables = {**tables, "train": replace(train, rows=itertools.chain(first, rows))}
    plan = _plan(train.place, first, description)
    skipped: dict[str, list[str]] = {split: [] for split in tables}
    read: dict[str, list[_Read]] = {}
    for split, table in tables.items():

        def read_row(row: Row, table: Table = table) -> _Read:
            return _Read(row.index, row.place, _record(table, row, plan))

        read[split] = list(each(table.rows, read_row, on_bad_row, skipped[split]))
        enough(table.place, len(read[split]), skipped[split])
    if "test" not in read:
        read["train"], read["test"] = _held_out(read["train"], fields(plan.template.query), train.place)
        skipped["test"] = []
    kind, options = _options(plan, train, read, description.get("options"))
    check_options(options, f"task {name!r}", kind)
    template, answer, group = plan.template, plan.answer, description.get("group")
    places: dict[str, str] = {}
    splits: dict[str, tuple[Record, ...]] = {}
    for split in read:

        def finish(row: _Read, split: str = split) -> Record:
            record = {"id": f"{split}/{row.index}", **row.record}
            if (met := places.get(record["id"])) is not None:
                raise UserError(
                    f"{row.place}: the id {record['id']!r} stands at {met} already; give each record its own"
                )
            if kind == "multi_label" and options:
                labels = split_labels(record[answer])
                known = set(labels) <= set(options)  # if not, the check below says which
                record[answer] = join_labels(labels, options) if known else record[answer]
            check_answer(record[answer], row.place, kind, options, template.separator)
            if kind != "classification":  # what stands beside the answer is written, too
                for name in fields(template.target):
                    if template.separator in record[name]:
                        raise UserError(
                            f"{row.place}: {name!r} is {record[name]!r:.60} and holds the separator "
                            f"{template.separator!r}, which ends a written answer: set another in the template"
                        )
            places[record["id"]] = row.place
            return record

        splits[split] = tuple(each(read[split], finish, on_bad_row, skipped[split]))
        enough(tables.get(split, train).place, len(splits[split]), skipped[split])
    lines = tuple(itertools.chain.from_iterable(skipped.values()))
    metric: Any = description.get("metric")
    why = plan.rationale
    return Task(name, splits, template, options, metric, answer, group, kind, why, skipped=lines, places=places)


def _parted(table: Table, parts: Mapping[str, str]) -> Table:
    """The table, each of whose rows has the fields that some of its own hold, too."""

    def part(row: Row) -> Row:
        if isinstance(row.content, UserError):
            return row
        content = dict(row.content)
        for name, form in parts.items():
            try:
                text = text_of(table, row, name)
                found = read_back(form, text)
                if found is None:
                    raise UserError(f"{row.place}: {name!r} is {text!r:.60}, not of the form {form!r} that 'parts' say")
                if taken := [new for new in found if new in content]:
                    raise UserError(f"{row.place} has a field {taken[0]!r} already: name it otherwise in 'parts'")
            except UserError as error:
                return row._replace(content=error)
            content |= found
        return row._replace(content=content)

    return replace(table, rows=map(part, table.rows)) if parts else table


def _plan(place: str, first: Sequence[Row], description: Description) -> _Plan:
    """Kind, template and fields: as described, the rest guessed from the fields of the first rows."""
    given: Mapping[str, str] = description.get("template", {})
    kind, answer = description.get("kind"), description.get("output")
    asked = (description["input"],) if "input" in description else ()
    if answer is None or not (asked or "query" in given):
        columns = dict.fromkeys(
            column for row in first if not isinstance(row.content, UserError) for column in row.content
        )
        columns.pop("id", None)
        guess = next((guess for guess in _GUESSES if {*guess.asked, guess.answer} <= set(columns)), None)
        if guess is None:
            for row in first:
                row.fields  # noqa: B018 - where no row can be read, that is what is wrong
            raise UserError(
                f"{place}: which of the fields {', '.join(map(repr, columns))} is asked and which"
                ' answers? Say it in a task.json beside the data: {"input": "question", "output": "answer"}'
                ' or {"output": "same", "template": {"query": "{sentence1}\\n{sentence2}\\nsame:"}}'
            )
        if answer is None and "options" not in description:
            kind = kind or guess.kind
        asked, answer = asked or guess.asked, answer or guess.answer
    query = "{input}:" if asked == ("input",) else "\n".join([*(f"{{{name}}}" for name in asked), f"{answer}:"])
    query = given.get("query", query)
    separator = "\n\n" if "\n" in query else "\n"
    template = Template(**{"query": query, "target": f" {{{answer}}}", "separator": separator, **given})
    group = [description["group"]] if "group" in description else []
    needed = (*fields(query), *fields(template.target), answer, *group)
    return _Plan(kind, template, answer, needed, _rationale(place, first, needed, description))


def _rationale(place: str, first: Sequence[Row], needed: Sequence[str], description: Description) -> str | None:
    name = description.get("rationale")
    if name in needed:
        raise UserError(f"{place}: {name!r} is asked or answers already: 'rationale' is another field")
    names = dict.fromkeys(name for row in first if not isinstance(row.content, UserError) for name in row.content)
    if name is not None and name not in names:
        raise UserError(f"{place}: no field {name!r} for 'rationale' among {', '.join(names)}{nearest(name, names)}")
    return name


def _record(table: Table, row: Row, plan: _Plan) -> Record:
    record: Record = {} if row.fields.get("id") is None else {"id": text_of(table, row, "id")}
    for name in plan.needed:
        if name != plan.answer:
            record[name] = text_of(table, row, name)
        elif plan.kind == "regression":
            record[name] = number_of(row, name)
        elif plan.kind == "multi_label":
            record[name] = ", ".join(labels_of(table, row, name)) or "none"
        else:
            record[name] = text_of(table, row, name).strip()
    if plan.rationale and row.fields.get(plan.rationale) is not None:
        record[plan.rationale] = text_of(table, row, plan.rationale)
    return record


def _held_out(rows: Sequence[_Read], asked: Sequence[str], place: str) -> tuple[list[_Read], list[_Read]]:
    """Train and test from one table: a fifth of the distinct questions, so that none is on both sides.

    Chosen by a hash of their content alone: the same whatever the order of the rows.
    """
    contents = [json.dumps([row.record[name] for name in asked]) for row in rows]
    distinct = sorted(set(contents), key=lambda content: hashlib.sha256(content.encode()).digest())
    if len(distinct) < 2:
        raise UserError(f"{place} has one question only, too few to hold a test out: add rows or a test file")
    tested = set(distinct[: max(1, round(_TEST_SHARE * len(distinct)))])
    pairs = list(zip(rows, contents, strict=True))
    return (
        [row for row, content in pairs if content not in tested],
        [row for row, content in pairs if content in tested],
    )


def _options(
    plan: _Plan, train: Table, read: Mapping[str, Sequence[_Read]], said: Sequence[str] | None
) -> tuple[Kind, tuple[str, ...] | None]:
    """Kind and closed set of answers: as described, as the source has them, or few values over many rows."""
    kind, answer = plan.kind, plan.answer
    if kind in ("generation", "regression") and said is None:
        return kind, None
    listed = None if isinstance(said, str) else train.classes.get(answer) if said is None else said
    if listed is not None:
        return kind or "classification", tuple(map(normalise, listed) if kind == "multi_label" else listed)
    answers = {split: {row.record[answer] for row in rows} for split, rows in read.items()}
    if kind == "multi_label":
        return kind, tuple(sorted({label for text in answers["train"] for label in split_labels(text)}))
    few = len(answers["train"]) <= _MOST_OPTIONS and len(read["train"]) >= _FEWEST_ROWS
    closed = all(found <= answers["train"] for found in answers.values())
    if kind == "classification" or said == "from_train" or (few and closed):
        return kind or "classification", tuple(sorted(answers["train"]))
    return "generation", None
