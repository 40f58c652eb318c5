"""What the audit looks at: a record's own text, without the words of the template, its answer and its labels."""

from collections.abc import Sequence
from typing import NamedTuple

from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields


class Item(NamedTuple):
    """One record or document, and the name by which a reader finds it."""

    place: str
    text: str  # the fields that the query shows
    answer: str = ""
    labels: tuple[str, ...] | None = None  # None where the answer is no label
    written: str = ""  # the text, and the answer where that is text as well


def task_items(task: Task, records: Sequence[Record]) -> list[Item]:
    """Records of a task as items, each called by its id."""
    names = fields(task.template.query)
    return [_item(task, record, "\n".join(record[name] for name in names)) for record in records]


def text_items(texts: Sequence[str], name: str, places: Sequence[str] | None = None) -> list[Item]:
    """Documents as items, called by their places, or "NAME/0", "NAME/1" and so on."""
    called = places or [f"{name}/{i}" for i in range(len(texts))]
    return [Item(place, text, written=text) for place, text in zip(called, texts, strict=True)]


def _item(task: Task, record: Record, text: str) -> Item:
    answer = task.answer(record)
    if task.kind in ("classification", "multi_label"):
        return Item(record["id"], text, answer, task.labels(record), text)
    return Item(record["id"], text, answer, None, f"{text}\n{answer}" if task.kind == "generation" else text)
