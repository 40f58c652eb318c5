"""Rows of named fields from JSONL, CSV and Parquet files; every mistake in them is told by file and row."""

import codecs
import csv
import io
import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from limbeck.model.errors import UserError, nearest

Fields = Mapping[str, object]
Rows = Iterator[tuple[int, Fields]]


@dataclass(frozen=True)
class Table:
    """One split as it was read: rows numbered as an editor shows them, and where they came from."""

    place: str  # what an error calls it: the file, or a data set's name and split
    rows: list[tuple[int, Fields]]
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # legal answers, where the source has them


def read_table(path: Path) -> Table:
    """The rows of a .jsonl, .csv or .parquet file.

    Raises UserError that names file and row: another ending, not UTF-8, malformed, empty.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(f"cannot read {path}: {path.suffix!r} is none of {', '.join(READERS)}; convert it to one")
    rows = list(read(path))
    if not rows:
        raise UserError(f"{path} is empty: it needs at least one row")
    return Table(str(path), rows)


def text_of(table: Table, row: int, fields: Fields, name: str) -> str:
    """The text of one field: a string as it is, UTF-8 bytes decoded, a number or truth value written out.

    Raises UserError that names place and row: no such field, no value, empty, a list, not Unicode.
    """
    where = f"{table.place}, row {row}"
    if name not in fields:
        raise UserError(f"{where}: no field {name!r} among {', '.join(map(repr, fields))}{nearest(name, fields)}")
    value = fields[name]
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    elif isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, numbers.Real) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} is {value!r:.40}: it must be text or a number")
    if not value.strip():
        raise UserError(f"{where}: {name!r} is empty: fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {name!r} is not UTF-8 text: save the data as UTF-8") from error
    return value


def _jsonl(path: Path) -> Rows:
    for row, line in enumerate(_decoded(path).rstrip().split("\n"), 1):  # not splitlines: U+2028 is no end of line
        if not line.strip():
            raise UserError(f"{path}, row {row} is empty: remove it")
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, row {row} is malformed JSON: {error}; one object a line") from error
        if not isinstance(fields, dict):
            raise UserError(f'{path}, row {row} is no JSON object: write it as {{"input": ..., "output": ...}}')
        yield row, fields


def _csv(path: Path) -> Rows:
    reader = csv.reader(io.StringIO(_decoded(path).rstrip("\r\n"), newline=""), strict=True)
    names: list[str] = []
    row = 0
    try:
        for row, values in enumerate(reader, 1):
            if row == 1:
                names = values
                if len(set(names)) < len(names):
                    raise UserError(f"{path}, row 1: a field is named twice among {', '.join(names)}: rename one")
            elif not values:
                raise UserError(f"{path}, row {row} is empty: remove it")
            elif len(values) != len(names):
                raise UserError(
                    f"{path}, row {row} has {len(values)} fields where the header names {len(names)}"
                    f" ({', '.join(names)}): put text with a comma or a line break in double quotes"
                )
            else:
                yield row, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, row {row + 1} is malformed CSV: {error}; quote it or use JSONL") from error


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; is it a Parquet file?") from error
    row = 0
    try:
        for row, values in enumerate(zip(*table.columns, strict=True), 1):
            yield row, {name: value.as_py() for name, value in zip(table.column_names, values, strict=True)}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, row {row} is not UTF-8 text: save the data as UTF-8") from error


READERS: dict[str, Callable[[Path], Rows]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _decoded(path: Path) -> str:
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, row {row} is not UTF-8 text: save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path} is empty: it needs at least one row")
    return text
