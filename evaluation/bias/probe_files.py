"""The file of a probe: rows from .tsv, .csv, .jsonl or .parquet, the text in their fields, mistakes by file and row."""

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.tasks.readers import READERS, Rows, rows_of
from limbeck.tasks.tables import Row, Table, readable, text_of


def probe_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All rows of one file, read by its ending; in a .tsv file nothing is quoted and the first line has the names.

    Raises UserError: no such file, another ending, no row; what is wrong with one row is raised by its `fields`.
    """
    path = Path(path)
    with readable(str(path)):
        if not path.is_file():
            near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"no file {str(path)!r}{nearest(str(path), near)}; name a file")
        suffix = path.suffix.lower()
        if suffix not in (".tsv", *READERS):
            endings = ", ".join([".tsv", *READERS])
            raise UserError(f"cannot read {path}: {path.suffix!r} is none of {endings}; convert it to one")
        return list(rows_of([path], _tsv if suffix == ".tsv" else None))


def text_in(row: Row, name: str) -> str:
    """The text of a field. Raises UserError that names file and row: no such field, empty, no text, not UTF-8."""
    return text_of(Table(row.file, ()), row, name)


def optional_in(row: Row, name: str) -> str:
    """The text of a field, empty where there is no such field or nothing in it."""
    return "" if row.fields.get(name) is None or not str(row.fields[name]).strip() else text_in(row, name)


def word_in(row: Row, name: str, legal: Sequence[str]) -> str:
    """The text of a field that must be one of the legal words. Raises UserError that names file and row."""
    return one_of(f"{name} in {row.place}:", text_in(row, name), legal)


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, each with its number from 1.

    Raises UserError: no such file, no line, a line that is not UTF-8.
    """
    lines = []
    with readable(str(path)), open(path, "rb") as file:
        for number, raw in enumerate(file, 1):  # by bytes: U+2028 is no end of line
            try:
                line = raw.removeprefix(codecs.BOM_UTF8).decode().strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number} is not UTF-8 text: save the file as UTF-8") from error
            if line:
                lines.append((number, line))
    if not lines:
        raise UserError(f"{path} is empty: it needs at least one line")
    return lines


def _tsv(path: Path) -> Rows:
    names: list[str] = []
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                values = raw.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r\n").split("\t")
            except UnicodeDecodeError:
                yield number, UserError(f"{path}, row {number} is not UTF-8 text: save the file as UTF-8")
                continue
            if not names:
                names = values
            elif len(values) == len(names):
                yield number, dict(zip(names, values, strict=True))
            elif raw.strip():
                there = f"{len(values)} fields where the first line names {len(names)} ({', '.join(names)})"
                yield number, UserError(f"{path}, row {number} has {there}: part them by single tabs")
