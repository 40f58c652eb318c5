"""Rows of named fields, whatever they were read from, and the values in them; mistakes are told by file and row."""

import contextlib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.tasks.label_metrics import normalise, split_labels
from limbeck.tasks.task import check_label, number_in, number_text

Fields = Mapping[str, Any]
OnBadRow = Literal["error", "skip"]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Row(NamedTuple):
    """One row, or what is wrong with it, and where it stands."""

    file: str  # or a data set's name and split
    number: int  # in the file, from 1, as an editor shows it
    index: int  # in the split, all its files counted on; the same if another row is left out
    content: Fields | UserError

    @property
    def place(self) -> str:
        """What an error calls it: 'FILE, row N'."""
        return f"{self.file}, row {self.number}"

    @property
    def fields(self) -> Fields:
        """The row's fields. Raises its UserError where it could not be read."""
        if isinstance(self.content, UserError):
            raise self.content
        return self.content


@dataclass(frozen=True)
class Table:
    """One split: its rows, read when they are asked for, and the names of its classes."""

    place: str  # what an error about the whole calls it: a file, or a data set's name and split
    rows: Iterable[Row]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names of the numbers in a field


def each(
    items: Iterable[Item], make: Callable[[Item], Result], on_bad_row: OnBadRow, skipped: list[str]
) -> Iterator[Result]:
    """make(item) of every item; with "skip" one that is a UserError is left out and its message goes to `skipped`."""
    one_of("on_bad_row", on_bad_row, ["error", "skip"])
    for item in items:
        try:
            made = make(item)
        except UserError as error:
            if on_bad_row == "error":
                raise
            skipped.append(str(error))
        else:
            yield made


def enough(place: str, kept: int, skipped: list[str]) -> None:
    """Raises UserError where skipping left nothing, or less than was left out: then it is the reading that is wrong."""
    if skipped and len(skipped) > kept:
        raise UserError(
            f"{place}: {len(skipped)} of {kept + len(skipped)} rows are bad, too many to skip; the first: {skipped[0]}"
        )


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what the system refuses (no permission, a name too long) into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or name, error.strerror or error
        raise UserError(f"cannot read {place}: {reason}; mend that or name another file or folder") from error


def text_of(table: Table, row: Row, name: str) -> str:
    """The text of one field: a string as it is, a class by its name, UTF-8 bytes decoded, a number written out.

    Raises UserError that names place and row: no such field, no value, empty, a list, no class, not Unicode.
    """
    return _text(_value(row, name), row.place, name, table.classes.get(name))


def number_of(row: Row, name: str) -> str:
    """A field that holds a finite number, or the text of one, as its shortest text.

    Raises UserError that names place and row.
    """
    return number_text(number_in(_text(_value(row, name), row.place, name), row.place))


def labels_of(table: Table, row: Row, name: str) -> tuple[str, ...]:
    """The labels in a field, sorted: a list of them, or text such as 'joy, anger', or 'none' for no label.

    Raises UserError that names place and row.
    """
    value, classes = _value(row, name), table.classes.get(name)
    value = getattr(value, "tolist", lambda: value)()  # of a NumPy array
    if isinstance(value, list | tuple):
        labels = {normalise(_text(label, row.place, name, classes)) for label in value}
    else:
        labels = split_labels(_text(value, row.place, name, classes))
    for label in sorted(labels):
        check_label(label, row.place)
    return tuple(sorted(labels))


def _value(row: Row, name: str) -> object:
    if name not in row.fields:
        raise UserError(
            f"{row.place}: no field {name!r} among {', '.join(map(repr, row.fields))}{nearest(name, row.fields)}"
        )
    return row.fields[name]


def _text(value: object, place: str, name: str, classes: tuple[str, ...] | None = None) -> str:
    if classes and isinstance(value, numbers.Integral):
        number = int(value)
        if not 0 <= number < len(classes):
            raise UserError(
                f"{place}: {name!r} is {number}, which names no class: where a split is unlabelled,"
                ' name others as "splits" in a task.json'
            )
        return classes[number]
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    elif isinstance(value, bool):
        value = "true" if value else "false"
    elif isinstance(value, numbers.Integral) or (isinstance(value, numbers.Real) and math.isfinite(value)):
        value = str(value)
    if not isinstance(value, str):
        raise UserError(f"{place}: {name!r} is {value!r:.40}: it must be text or a number")
    if not value.strip():
        raise UserError(f"{place}: {name!r} is empty: fill it in or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: {name!r} is not UTF-8 text: save the data as UTF-8") from error
    return value
