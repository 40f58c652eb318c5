"""Queries from files, row by row: whatever is wrong with one is said of it alone, and the others are asked."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.inference.agenda import BulkRequest, Refused
from limbeck.model.errors import UserError, nearest
from limbeck.tasks.readers import READERS
from limbeck.tasks.sources import open_tables
from limbeck.tasks.tables import Row, Table, readable, text_of

_LONGEST = 1_000_000  # characters: no model reads as many, and cutting ten million into tokens takes seconds
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # those that are no white space


class Line(NamedTuple):
    """A row of an input as it was understood: its requests, or why there are none."""

    id: str | None  # the row's own, else its number
    place: str
    requests: tuple[BulkRequest, ...] = ()
    reason: str = ""
    body: Any = None  # what the batch format has to know again to answer it

    def rows(self) -> Iterator[BulkRequest | Refused]:
        """What a bulk run makes of it."""
        yield from self.requests
        if self.reason:
            yield Refused(self.place, self.reason)


def open_input(name: str, split: str) -> Table:
    """The rows of a .jsonl, .csv or .parquet file, or of a split of the TFDS data set tfds:NAME.

    Raises UserError for another file, one that is not there, and an unknown data set or split.
    """
    with readable(name):
        if name.startswith("tfds:"):
            [table] = open_tables(name, {split: split}).values()
            return table
        path = Path(name)
        if not path.is_file():
            near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(
                f"no input {name!r}{nearest(name, near)}; give a file ending in {', '.join(READERS)}, or tfds:NAME"
            )
        [table] = open_tables(name, {}).values()
        return table


def row_count(name: str) -> int | None:
    """About how many rows an input has, without reading them; None where that cannot be told."""
    path = Path(name)
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with contextlib.suppress(Exception):  # what is wrong with the file is said where it is read
            return pq.read_metadata(path).num_rows
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def identities(rows: Iterable[Row], field: str = "id") -> Iterator[tuple[str, Row, str]]:
    """(its own id, or its number in the input; the row; what is wrong if its id is another row's, too)."""
    places: dict[str, str] = {}
    for row in rows:
        own = None if isinstance(row.content, UserError) else row.content.get(field)
        identity = str(row.index) if own is None else str(own)
        met = places.setdefault(identity, row.place) if own is not None else row.place
        yield identity, row, "" if met == row.place else f"{row.place}: the {field} {identity!r:.80} is that of {met}"


def texts_of(table: Table, row: Row, names: Sequence[str]) -> dict[str, str]:
    """The texts of some fields of a row.

    Raises UserError that names place and row: no such field, no text, not Unicode, and as `check_text` does.
    """
    texts = {name: text_of(table, row, name) for name in names}
    for name, text in texts.items():
        check_text(text, f"{row.place}: {name!r}")
    return texts


def check_text(text: str, place: str) -> None:
    """Raises UserError, naming `place`, for text that is empty, not Unicode, too long, or holds control characters."""
    if not text.strip():
        raise UserError(f"{place} is empty: fill it in or remove the row")
    if len(text) > _LONGEST:
        raise UserError(f"{place} has {len(text):,} characters, and no more than {_LONGEST:,} are asked: cut it")
    if found := _CONTROL.search(text):
        raise UserError(f"{place} holds the control character {ascii(found[0])}, number {found.start()}: remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place} is not valid Unicode text: save the data as UTF-8") from error
