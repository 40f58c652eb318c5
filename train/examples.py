"""Texts, records and conversations as examples: token ids, and which of them are to be learned."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from limbeck.model.errors import UserError
from limbeck.model.progress import progress
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.tokenizer.chat import Message, assistant_mask
from limbeck.model.tokenizer.join import joined
from limbeck.tasks.task import Record, Task

_BLOCK = 1024  # texts tokenised at a time: an encoding in the making takes a hundred times its ids
_MANY = 16 * _BLOCK  # from here on it takes seconds, and shows its progress

T = TypeVar("T")


class Example(NamedTuple):
    """A text from its start token on: `ids` (int32) and, for each, whether it `counts` (bool) as a target, or how much.

    Nothing precedes the first id, so that one is never a target. `name` is what an error calls the example.
    """

    ids: np.ndarray
    counts: np.ndarray
    name: str


class Labelled(NamedTuple):
    """What a head answers: the `ids` (int32) that it reads to their last, and the right answer.

    That is an `option`'s index, or `values` (float32): one number, or 0 and 1 for each option; the other is 0 or empty.
    """

    ids: np.ndarray
    option: int
    values: np.ndarray
    name: str


def example(ids: Sequence[int], context: int, name: str = "an example") -> Example:
    """An example whose first `context` ids are given and whose others count."""
    return Example(np.asarray(ids, np.int32), np.arange(len(ids)) >= context, name)


def documents(texts: Sequence[str], tokenizer: Tokenizer, places: Sequence[str] = ()) -> list[Example]:
    """Plain text: BOS, the text, EOS; every token after BOS counts. `places` says where each text was read."""
    examples = []
    for block in _blocks(texts, "text"):
        for ids in tokenizer.encode_batch(block):
            name = places[len(examples)] if places else f"text {len(examples) + 1}"
            examples.append(example([tokenizer.bos_id, *ids, tokenizer.eos_id], 1, name))
    return examples


def completions(task: Task, records: Sequence[Record], tokenizer: Tokenizer) -> list[Example]:
    """Task records without demonstrations: the query is context; the answer and what ends it count.

    The tokens are those of the whole text, as in prompting: one that reaches from the query into the answer counts.
    """
    examples = []
    for block in _blocks(records, "record"):
        texts = [(task.prompt(record), task.target(record) + task.template.separator) for record in block]
        for record, (ids, given) in zip(block, joined(tokenizer, texts), strict=True):
            examples.append(example(ids, given, task.place(record)))
    return examples


def conversations(
    chats: Sequence[Sequence[Message]],
    tokenizer: Tokenizer,
    places: Sequence[str] = (),
    skipped: list[str] | None = None,
) -> list[Example]:
    """Chats, lists of {"role", "content"}, by the tokenizer's chat template: what the assistant said counts.

    All of its turns do, each with the token that ends it. `places` says where each chat was read. Raises UserError
    that names a chat whose messages the template does not take, or in which the assistant says nothing; where there is
    a list `skipped`, such a chat is left out and the message added to it.
    """
    examples = []
    names = places or [f"conversation {number}" for number in range(1, len(chats) + 1)]
    for block in _blocks(list(zip(chats, names, strict=True)), "conversation"):
        for chat, name in block:
            try:
                ids, said = assistant_mask(tokenizer, chat)
            except UserError as error:
                if skipped is None:
                    raise UserError(f"{name}: {error}") from error
                skipped.append(f"{name}: {error}")
                continue
            examples.append(Example(np.asarray(ids, np.int32), np.asarray([False, *said[1:]]), name))
    return examples


def labelled(task: Task, records: Sequence[Record], tokenizer: Tokenizer) -> list[Labelled]:
    """Queries with their answers, for a head: of a task of classification, multi_label or regression.

    Raises UserError for a task that is answered in words.
    """
    options = task.options or ()
    index = {option: number for number, option in enumerate(options)}
    examples = []
    for block in _blocks(records, "record"):
        for record in block:
            option, values = 0, ()
            if task.kind == "classification":
                option = index[task.answer(record)]
            elif task.kind == "multi_label":
                labels = task.labels(record)
                values = [name in labels for name in options]
            elif task.kind == "regression":
                values = [task.number(record)]
            else:
                raise UserError(
                    f"task {task.name!r} is of the kind {task.kind!r}, which a head does not answer: "
                    'set "kind" in its task.json to one of classification, multi_label, regression'
                )
            ids = tokenizer.prompt(task.query(record))
            examples.append(
                Labelled(np.asarray(ids, np.int32), option, np.asarray(values, np.float32), task.place(record))
            )
    return examples


def chunked(examples: Sequence[Example], length: int) -> list[Example]:
    """Long examples as consecutive pieces of at most `length` predicted tokens; each token is predicted once.

    A piece's first id is the last of the piece before. Pieces in which nothing counts are left out.
    """
    pieces = []
    for ids, counts, name in examples:
        for start in range(0, len(ids) - 1, length):
            stop = start + length + 1
            if counts[start + 1 : stop].any():
                pieces.append(Example(ids[start:stop], counts[start:stop], name))
    return pieces


def _blocks(items: Sequence[T], unit: str) -> Iterator[Sequence[T]]:
    """The items, a block at a time, with a progress bar if there are many."""
    parts = (items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK))
    if len(items) < _MANY:
        yield from parts
        return
    with progress("tokenising", len(items), unit) as advance:
        for part in parts:
            yield part
            advance(len(part))
