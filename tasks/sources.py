"""Tasks by name or path: the built-in world, the user's own JSONL, CSV and Parquet files, and TFDS."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.tasks.tables import READERS, Fields, Table, read_table, text_of
from limbeck.tasks.task import SPLITS, Record, Task, Template, fields

Description = Mapping[str, Any]

_KEYS: dict[str, tuple[type, ...]] = {
    "input": (str,),  # the field that is asked
    "output": (str,),  # the field that answers
    "template": (dict,),  # query, target, separator, instruction: any of them
    "options": (list, str),  # the answers to choose from, or "from_train"
    "splits": (dict,),  # our split -> file in this folder, or split of the TFDS data set
    "group": (str,),  # demonstrations come from the query's own group
    "metric": (str,),
    "tfds": (str,),  # the rows come from this TFDS data set, not from this folder
}
_GUESSES = (("input", "output"), ("text", "label"))
_MOST_OPTIONS, _FEWEST_ROWS = 20, 50  # an undescribed answer with so few values over so many rows is a class
_TEST_SHARE = 0.2


def load_task(name_or_path: str | os.PathLike[str]) -> Task:
    """The task "world", one of TFDS ("tfds:NAME" or "tfds:NAME/config"), a folder, or one file.

    A folder holds train, test and perhaps validation, each as .jsonl, .csv or .parquet. Without a test, a
    fifth of train, chosen by its content, becomes one. Fields named input and output, or text and label, need
    no description; others are told by a task.json beside the data:
    {"input": "question", "output": "answer", "options": "from_train"}. Every record's "id" is the row's own,
    or "<split>/<row>". Raises UserError, naming file and row, for whatever of this is missing or malformed.
    """
    name = os.fspath(name_or_path)
    try:
        return _load(name)
    except OSError as error:
        place, reason = error.filename or name, error.strerror or error
        raise UserError(f"cannot read {place}: {reason}; mend that or name another task") from error


def _load(name: str) -> Task:
    if name == "world":
        from limbeck.tasks.world import world_task

        return world_task()
    if name.startswith("tfds:"):
        return _task(name, _tfds(name.removeprefix("tfds:"), {}), {})
    path = Path(name)
    if path.name == "task.json":
        path = path.parent
    if path.is_dir():
        description = _described(path)
        splits = description.get("splits", {})
        tables = (
            _tfds(description["tfds"], splits)
            if "tfds" in description
            else {split: read_table(file) for split, file in _files(path, splits).items()}
        )
        return _task(path.resolve().name, tables, description)
    if path.is_file():
        return _task(path.stem, {"train": read_table(path)}, _described(path.parent))
    beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(
        f"unknown task {name!r}: 'world', 'tfds:NAME', a folder with a train file, or a file ending in"
        f" {', '.join(READERS)}{nearest(name, ['world', *beside])}"
    )


def _tfds(name: str, splits: Mapping[str, str]) -> dict[str, Table]:
    from limbeck.tasks.tfds import read_tfds

    return read_tfds(name, splits)


def _described(folder: Path) -> Description:
    """What the folder's task.json says, each key of its kind; empty when there is none."""
    path = folder / "task.json"
    if not path.is_file():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; it must be one JSON object in UTF-8") from error
    if not isinstance(description, dict):
        raise UserError(f'{path} must be one JSON object, such as {{"input": "text", "output": "label"}}')
    for key, value in description.items():
        one_of(f"key in {path}:", key, _KEYS)
        if not isinstance(value, _KEYS[key]):
            kinds = " or ".join({dict: "an object", list: "a list", str: "a string"}[kind] for kind in _KEYS[key])
            raise UserError(f"{path}: {key!r} is {value!r:.40}: it must be {kinds}")
        if not value:
            raise UserError(f"{path}: {key!r} is empty: fill it in or leave it out")
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{path}: {key!r} must hold strings only, not {value!r:.40}")
    for key in description.get("template", {}):
        one_of(f"template key in {path}:", key, Template.__dataclass_fields__)
    for split in description.get("splits", {}):
        one_of(f"split in {path}:", split, SPLITS)
    if isinstance(description.get("options"), str):
        one_of(f"options in {path}:", description["options"], ["from_train"])
    return description


def _files(folder: Path, named: Mapping[str, str]) -> dict[str, Path]:
    """The file of each split: as described, or train, validation and test with an ending that can be read."""
    there = sorted(file.name for file in folder.iterdir())
    if named:
        for file in named.values():
            if file not in there:  # also keeps every path inside the folder
                raise UserError(f"no file {file!r} in {folder}: name one that is there{nearest(file, there)}")
        files = {split: folder / file for split, file in named.items()}
    else:
        files = {}
        for split in SPLITS:
            found = [folder / f"{split}{ending}" for ending in READERS if f"{split}{ending}" in there]
            if len(found) > 1:
                raise UserError(f"{found[0]} and {found[1].name} both are the {split} split: keep one")
            if found:
                files[split] = found[0]
    if "train" not in files:
        shown = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "") if there else "nothing"
        raise UserError(
            f"{folder} has no train split among {shown}: name a file train{', train'.join(READERS)},"
            ' set "splits" in task.json, or give the path of one file'
        )
    return files


def _task(name: str, tables: dict[str, Table], description: Description) -> Task:
    if "train" not in tables:
        raise UserError(f'{name} has no train split among {", ".join(tables)}: set "splits" in a task.json')
    template, answer_field = _template(tables["train"], description)
    if "test" not in tables:
        tables = {**tables, **_held_out(tables["train"], fields(template.query))}
    group = description.get("group")
    needed = [*fields(template.query), *fields(template.target), answer_field, *([group] if group else [])]
    places: dict[str, str] = {}
    splits: dict[str, tuple[Record, ...]] = {}
    for split, table in tables.items():
        splits[split] = tuple(
            _record(table, split, row, given, needed, answer_field, places) for row, given in table.rows
        )
    options = _options(tables["train"], splits, answer_field, description.get("options"))
    if options is not None:
        for split, table in tables.items():
            for (row, _), record in zip(table.rows, splits[split], strict=True):
                one_of(f"answer in {table.place}, row {row}:", record[answer_field], options)
    return Task(name, splits, template, options, description.get("metric", "accuracy"), answer_field, group)


def _template(train: Table, description: Description) -> tuple[Template, str]:
    """The template and the name of the answer's field: as described, the rest guessed from the first row."""
    given: Mapping[str, str] = description.get("template", {})
    asked, answer = description.get("input"), description.get("output")
    if answer is None or (asked is None and "query" not in given):
        columns = [column for column in train.rows[0][1] if column != "id"]
        guess = next((pair for pair in _GUESSES if set(pair) <= set(columns)), None)
        if guess is None:
            raise UserError(
                f"{train.place}: which of the fields {', '.join(map(repr, columns))} is asked and which"
                ' answers? Say it in a task.json beside the data: {"input": "question", "output": "answer"}'
                ' or {"output": "same", "template": {"query": "{sentence1}\\n{sentence2}\\nsame:"}}'
            )
        asked, answer = asked or guess[0], answer or guess[1]
    query = given.get("query", "{input}:" if asked == "input" else f"{{{asked}}}\n{answer}:")
    parts = {
        "query": query,
        "target": f" {{{answer}}}",
        "separator": "\n\n" if "\n" in query else "\n",
        **given,
    }
    return Template(**parts), answer


def _held_out(train: Table, asked: Sequence[str]) -> dict[str, Table]:
    """Train and test from one table: a fifth of the distinct questions, so that none is on both sides.

    Chosen by a hash of their content alone: the same whatever the order of the rows.
    """
    contents = [json.dumps([text_of(train, row, given, name) for name in asked]) for row, given in train.rows]
    distinct = sorted(set(contents), key=lambda content: hashlib.sha256(content.encode()).digest())
    if len(distinct) < 2:
        raise UserError(f"{train.place} has one question only, too few to hold a test out: add rows or a test file")
    tested = set(distinct[: max(1, round(_TEST_SHARE * len(distinct)))])
    rows = list(zip(train.rows, contents, strict=True))
    return {
        "train": replace(train, rows=[row for row, content in rows if content not in tested]),
        "test": replace(train, rows=[row for row, content in rows if content in tested]),
    }


def _record(
    table: Table,
    split: str,
    row: int,
    given: Fields,
    needed: Sequence[str],
    answer: str,
    places: dict[str, str],
) -> Record:
    """One row as a record; `places` remembers where every id was met."""
    identity = f"{split}/{row}" if given.get("id") is None else text_of(table, row, given, "id")
    place = f"{table.place}, row {row}"
    first = places.setdefault(identity, place)
    if first != place:
        raise UserError(f"{place}: the id {identity!r} stands at {first} already; give each record its own")
    record = {"id": identity, **{name: text_of(table, row, given, name) for name in needed}}
    record[answer] = record[answer].strip()
    return record


def _options(
    train: Table, splits: Mapping[str, tuple[Record, ...]], answer: str, described: list[str] | str | None
) -> tuple[str, ...] | None:
    """The closed set of answers: as described, as the source has it, or few values over many rows."""
    if isinstance(described, list):
        return tuple(described)
    found = {split: {record[answer] for record in records} for split, records in splits.items()}
    if described == "from_train":
        return tuple(sorted(found["train"]))
    if answer in train.classes:
        return train.classes[answer]
    few = len(found["train"]) <= _MOST_OPTIONS and len(splits["train"]) >= _FEWEST_ROWS
    closed = all(answers <= found["train"] for answers in found.values())
    return tuple(sorted(found["train"])) if few and closed else None
