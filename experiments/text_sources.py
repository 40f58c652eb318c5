"""The text that a foundation is trained on: read, held out in part, tokenised and packed once."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.rundir import cache_folder
from limbeck.model.tokenizer import Tokenizer
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Record, Task
from limbeck.tasks.texts import read_chats, read_texts
from limbeck.tasks.word_rules import ruled_texts, words_of
from limbeck.train.data import Rows, pack
from limbeck.train.examples import chunked, conversations, documents
from limbeck.train.row_cache import cached, rows_key

_SHOWN, _TIMES = 8, 4  # solved records of a document, and documents of a record
_FEW = 20  # from so many documents on, whole ones are held out; of fewer, the end of each

Messages = list[dict[str, str]]
T = TypeVar("T")


class Source(NamedTuple):
    """Documents or conversations of one origin, and what of them is held out."""

    kind: str  # "documents" or "conversations"
    name: str
    training: list[str] | list[Messages]
    held_out: list[str] | list[Messages]
    places: dict[str, str]  # where each was read, by its text (of a conversation its JSON)
    skipped: tuple[str, ...]  # a line for each bad row that was left out


def read_sources(config: PretrainingConfig) -> list[Source]:
    """All that a config names, in its order: texts, queries of tasks, solved records of tasks, ruled words, chats."""
    root, sources = Path(config.root), []
    untold: set[str] = set()  # words that a held-out record asks about: rules do not tell of them either
    for path in config.texts:
        found = read_texts(root / path, on_bad_row=config.on_bad_row)
        texts = [document.text for document in found.documents]
        places = {document.text: document.place for document in found.documents}
        sources.append(Source("documents", path, *hold_out(texts, config.held_out), places, found.skipped))
    for path, description in config.tasks:
        described = json.loads(description) if description else None
        task = load_task(root / path, description=described, on_bad_row=config.on_bad_row)
        places = {task.query(record): task.place(record) for record in task.splits["train"]}
        parts = hold_out(list(places), config.held_out)
        sources.append(Source("documents", f"queries of {path}", *parts, places, task.skipped))
    for path, description in config.solved:
        described = json.loads(description) if description else None
        task = load_task(root / path, description=described, on_bad_row=config.on_bad_row)
        # Held out are records, not documents: what one holds would else stand in others too.
        parts = by_content(task.splits["train"], task.query, config.held_out)
        others = [record for split in task.splits if split != "train" for record in task.splits[split]]
        untold |= _single_words(map(task.query, (*parts[1], *others)))
        training, held_out = (solved_texts(task, records, config.seed) for records in parts)
        places = {text: f"solved records of {path}" for text in (*training, *held_out)}
        sources.append(Source("documents", f"solved records of {path}", training, held_out, places, task.skipped))
    for path in config.ruled:
        found = read_texts(root / path, on_bad_row=config.on_bad_row)
        words = words_of((document.text for document in found.documents), untold)
        training, held_out = (ruled_texts(part, config.seed) for part in by_content(words, str, config.held_out))
        places = {text: f"words of {path}" for text in (*training, *held_out)}
        sources.append(Source("documents", f"words of {path}", training, held_out, places, found.skipped))
    for path in config.chats:
        read = read_chats(root / path, on_bad_row=config.on_bad_row)
        parts = by_content([chat.messages for chat in read.chats], json.dumps, config.held_out)
        places = {json.dumps(chat.messages): chat.place for chat in read.chats}
        sources.append(Source("conversations", path, *parts, places, read.skipped))
    return sources


def solved_texts(task: Task, records: Sequence[Record], seed: int) -> list[str]:
    """Documents of up to eight solved records each, of one group, as they stand before a prompt's query.

    Every record is in four of them, each time among others, so that it is the task that has to be read off the rest.
    """
    groups: dict[str, list[str]] = {}
    for record in records:
        name = record[task.group_field] if task.group_field else ""
        groups.setdefault(name, []).append(task.query(record) + task.target(record))
    texts = []
    for number in range(_TIMES):
        for name, lines in groups.items():
            mixed = random.Random(f"{seed}/{number}/{name}").sample(lines, len(lines))
            texts += [task.template.separator.join(mixed[i : i + _SHOWN]) for i in range(0, len(mixed), _SHOWN)]
    return list(dict.fromkeys(texts))


def _single_words(queries: Iterable[str]) -> set[str]:
    """Of queries that ask about one word, as 'lemon:', that word."""
    found = map(words_of, ([query] for query in queries))
    return {words[0] for words in found if len(words) == 1}


def hold_out(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """(to train on, to validate on): whole documents by a hash of their content, or the end of each of a few."""
    if len(texts) >= _FEW:
        return by_content(texts, str, share)
    parts = []
    for text in texts:
        cut = round((1 - share) * len(text))
        cut = text.rfind("\n", 0, cut) + 1 or cut
        parts.append((text[:cut], text[cut:]))
    return [kept for kept, _ in parts], [out for _, out in parts]


def rows_of(source: Source, items: Sequence, tokenizer: Tokenizer, settings: PretrainingConfig, rundir: Path) -> Rows:
    """The packed rows of some documents or conversations of a source: long documents are cut into pieces.

    A conversation that is too long is a UserError, or left out with on_bad_row="skip".
    """
    texts = items if source.kind == "documents" else [json.dumps(item) for item in items]
    places = [source.places.get(text, "") for text in texts]
    length, on_bad_row = settings.fit.length, settings.on_bad_row

    def make() -> Rows:
        if source.kind == "conversations":
            return pack(conversations(items, tokenizer, places), length, on_bad_row)
        return pack(chunked(documents(items, tokenizer, places), length), length)

    laid_out = {"length": length, "on_bad_row": on_bad_row}
    key = rows_key(source.kind, tokenizer, laid_out, [*texts, *places])
    return cached(cache_folder(rundir) / "rows", key, make)


def tokens_of(rows: Rows) -> int:
    """Tokens without the padding."""
    return sum(int((group["segments_BT"] > 0).sum()) for group in rows.groups)


def by_content(items: Sequence[T], text_of: Callable[[T], str], share: float) -> tuple[list[T], list[T]]:
    """(the others, about that share of the items, one at least), chosen by a hash of their content."""
    numbers = [int.from_bytes(hashlib.sha256(text_of(item).encode()).digest()[:4], "big") for item in items]
    most = max(round(share * 2**32), min(numbers, default=0) + 1)
    parts: tuple[list[T], list[T]] = ([], [])
    for item, number in zip(items, numbers, strict=True):
        parts[number < most].append(item)
    return parts
