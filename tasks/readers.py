"""JSONL, CSV, Parquet and Arrow files row by row: a bad row is given as its UserError, a bad file raises one."""

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.model.errors import UserError
from limbeck.tasks.tables import Fields, Row

Rows = Iterator[tuple[int, Fields | UserError]]
Reader = Callable[[Path], Rows]


def rows_of(files: Sequence[Path], read: Reader | None = None) -> Iterator[Row]:
    """The rows of files that are one split, in order; each read by its ending unless another reader is given.

    Raises UserError: another ending, no row in any of them, and what makes a whole file unreadable.
    """
    before = 0
    for file in files:
        number = 0
        for number, content in (read or reader_of(file))(file):
            yield Row(str(file), number, before + number, content)
        before += number
    if not before:
        raise UserError(f"{files[0]} is empty: it needs at least one row")


def reader_of(path: Path) -> Reader:
    """The reader for a file's ending. Raises UserError where there is none."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(f"cannot read {path}: {path.suffix!r} is none of {', '.join(READERS)}; convert it to one")
    return read


def arrow_rows(path: Path, batches: Iterable[Any], first: int = 1) -> Rows:
    """The rows of Arrow record batches, checked through and through: a torn file must not be read past its end."""
    import numpy as np
    import pyarrow as pa

    for batch in batches:
        try:
            batch.validate(full=True)
            rows: Iterable[Fields | UserError] = batch.to_pylist()
        except pa.ArrowInvalid as error:
            reason = str(error)
            if "UTF8" not in reason or "child" in reason:  # child: inside a list, whose rows stand or fall together
                last = first + batch.num_rows - 1
                raise UserError(f"cannot read {path}, rows {first} to {last}: {reason.splitlines()[0]}") from error
            rows = (_arrow_row(path, first + i, batch.slice(i, 1)) for i in range(batch.num_rows))
        small = [field.name for field in batch.schema if pa.types.is_floating(field.type) and field.type.bit_width < 64]
        for row, content in enumerate(rows, first):
            if small and isinstance(content, dict):  # 3.8 in 32 bits is 3.8, and not 3.799999952316284
                shorter = {name: np.float32(content[name]) for name in small if content[name] is not None}
                content = {**content, **shorter}
            yield row, content
        first += batch.num_rows


def _arrow_row(path: Path, row: int, batch: Any) -> Fields | UserError:
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return UserError(f"{path}, row {row} is not UTF-8 text: save the data as UTF-8")
    return batch.to_pylist()[0]


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from arrow_rows(path, file.iter_batches(batch_size=1024))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # damage has many faces
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; is it a Parquet file?") from error


def _jsonl(path: Path) -> Rows:
    blank: list[int] = []  # at the end of a file they are no rows
    with open(path, "rb") as file:
        for row, line in enumerate(file, 1):  # by bytes: U+2028 is no end of line
            if row == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                blank.append(row)
                continue
            yield from _blank(path, blank)
            blank.clear()
            yield row, _json_object(path, row, line)


def _json_object(path: Path, row: int, line: bytes) -> Fields | UserError:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError:
        return UserError(f"{path}, row {row} is not UTF-8 text: save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return UserError(f"{path}, row {row} is malformed JSON: {error}; one object a line")
    if not isinstance(fields, dict):
        return UserError(f'{path}, row {row} is no JSON object: write it as {{"input": ..., "output": ...}}')
    return fields


def _csv(path: Path) -> Rows:
    blank: list[int] = []
    names: list[str] = []
    row = 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            for row, values in enumerate(csv.reader(file, strict=True), 1):
                if row == 1:
                    names = _csv_header(path, values)
                elif not values:
                    blank.append(row)
                else:
                    yield from _blank(path, blank)
                    blank.clear()
                    yield row, _csv_row(path, row, names, values)
        except csv.Error as error:  # where this row ends, and with it any other, cannot be told
            raise UserError(f"{path}, row {row + 1} is malformed CSV: {error}; quote it or use JSONL") from error


def _csv_header(path: Path, names: list[str]) -> list[str]:
    if not "".join(names).strip():
        raise UserError(f"{path} is empty: it needs a row with the names of the fields, and others below it")
    if not _is_text(names):
        raise UserError(f"{path}, row 1 is not UTF-8 text: save the file as UTF-8")
    if len(set(names)) < len(names):
        raise UserError(f"{path}, row 1: a field is named twice among {', '.join(names)}: rename one")
    return names


def _csv_row(path: Path, row: int, names: Sequence[str], values: Sequence[str]) -> Fields | UserError:
    if not _is_text(values):
        return UserError(f"{path}, row {row} is not UTF-8 text: save the file as UTF-8")
    if len(values) != len(names):
        return UserError(
            f"{path}, row {row} has {len(values)} fields where the header names {len(names)}"
            f" ({', '.join(names)}): put text with a comma or a line break in double quotes"
        )
    return dict(zip(names, values, strict=True))


def _is_text(values: Iterable[str]) -> bool:
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return False
    return True


def _blank(path: Path, rows: Iterable[int]) -> Rows:
    for row in rows:
        yield row, UserError(f"{path}, row {row} is empty: remove it")


READERS: Mapping[str, Reader] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
