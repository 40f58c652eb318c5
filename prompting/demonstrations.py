"""Which solved records stand before a query, and in which order; never the record itself."""

import hashlib
import itertools
import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.similarity import Kept, best, by_vectors, by_words, mmr, once, vectors
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields, render

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> vectors [N, D]
_TextsOf = Callable[[Record], set[str]]  # by what a record is known again


@dataclass(frozen=True)
class Chooser:
    """The examples of records: `pick(record)`, or `pick.many(records)`, which embeds all the queries at once."""

    many: Callable[[Sequence[Record]], list[tuple[Record, ...]]]

    def __call__(self, record: Record) -> tuple[Record, ...]:
        return self.many([record])[0]


def chooser(
    task: Task, config: PromptConfig, embed: Embed | None = None, split: str = "train", kept: Kept | None = None
) -> Chooser:
    """What gives a record its `config.shots` examples, solved records of `split`, as they stand in the prompt.

    All have different queries, and none is the record itself by id or by query (texts that are one in Unicode's form
    NFC are one). In a task with groups they come from the record's own. What is drawn hangs on `config.seed` and the
    record's id alone: a subset or another order of the evaluated records gets the same examples. The examples of k
    shots are the first of those of k + 1, as long as their order is as_is: with `nearest` (cosine of `embed`) and
    `bm25` the most similar is the first, with `diverse` (MMR, by `embed` if it is given, else by BM25) the first
    that is taken. Equally similar ones are drawn. `fixed` ones are drawn once (in each group) if none are named.
    What similar ones are looked up in is made once of the same records and the same model, whose `kept` it stays in.

    Raises UserError, here or when a record is asked for: more shots than there are records to show, no such split or
    named example, a record that is among its own fixed examples, `balanced` without options, `nearest` without `embed`.
    """
    pool = task.splits[one_of("pool split", split, task.splits)]
    if config.shots > len(pool):
        raise UserError(f"{config.shots} shots: the {split} split has {len(pool)} records; ask for that many at most")
    if not config.shots:
        return Chooser(lambda records: [() for _ in records])

    def texts(record: Record) -> set[str]:
        return _texts(task, record, config.query)

    if config.pick == "fixed":
        pick = _each(_fixed(task, config, split, texts))
    elif config.pick in ("random", "balanced"):
        parts = _by_option(task, pool) if config.pick == "balanced" else None
        pick = _each(lambda record: _draw(task, record, config.shots, config.seed, split, parts, texts))
    else:
        pick = _similar(task, config, embed, split, texts, {} if kept is None else kept)
    return Chooser(pick) if config.order != "shuffled" else Chooser(lambda records: _mixed(records, pick, config.seed))


def choose(
    task: Task, record: Record, shots: int, seed: int, pool_split: str = "train", balanced: bool = False
) -> tuple[Record, ...]:
    """`shots` records of the pool in random order: `chooser` for one record, with pick "random" or "balanced".

    `balanced` takes the task's options in turn, as far as the pool has them. Raises UserError as `chooser` does.
    """
    pool = task.splits[one_of("pool split", pool_split, task.splits)]
    if shots < 0:
        raise UserError(f"shots {shots}: ask for 0 or more demonstrations")
    parts = _by_option(task, pool) if balanced else None
    return _draw(task, record, shots, seed, pool_split, parts, lambda shown: _texts(task, shown))


def _each(pick: Callable[[Record], tuple[Record, ...]]) -> Callable[[Sequence[Record]], list[tuple[Record, ...]]]:
    return lambda records: [pick(record) for record in records]


def _mixed(
    records: Sequence[Record], pick: Callable[[Sequence[Record]], list[tuple[Record, ...]]], seed: int
) -> list[tuple[Record, ...]]:
    """The examples of each record in an order of its own."""
    return [
        tuple(_shuffled(examples, random.Random(_number(seed, record["id"], "order"))))
        for record, examples in zip(records, pick(records), strict=True)
    ]


# Drawn


def _draw(
    task: Task,
    record: Record,
    shots: int,
    seed: int,
    split: str,
    parts: dict[str, list[Record]] | None,
    texts: _TextsOf,
) -> tuple[Record, ...]:
    """Of the whole split in random order, or of its `parts` in turn."""
    rng = random.Random(_number(seed, record["id"]))
    pools = [task.splits[split]] if parts is None else [parts[option] for option in rng.sample([*parts], len(parts))]
    shown = texts(record)
    queues = [_drawn(task, pool, _group(task, record), record["id"], shown, rng, texts) for pool in pools]
    drawn = tuple(itertools.islice(_in_turn(queues), shots))
    _check_count(task, record, split, shots, len(drawn))
    return drawn


def _drawn(
    task: Task, pool: Sequence[Record], group: str | None, barred: str | None, shown: set[str], rng: random.Random,
    texts: _TextsOf,
) -> Iterator[Record]:  # fmt: skip
    """The pool in random order, less other groups, the id `barred`, and texts in `shown`, which it adds to."""
    for candidate in _shuffled(pool, rng):
        if _group(task, candidate) == group and candidate["id"] != barred:
            own = texts(candidate)
            if shown.isdisjoint(own):
                shown |= own
                yield candidate


def _shuffled(pool: Sequence[Record], rng: random.Random) -> Iterator[Record]:
    """Fisher and Yates's shuffle, only as far as it is read: a few of many thousand cost a few steps."""
    moved: dict[int, int] = {}
    for last in range(len(pool) - 1, -1, -1):
        pick = rng.randrange(last + 1)
        yield pool[moved.get(pick, pick)]
        moved[pick] = moved.get(last, last)


def _by_option(task: Task, pool: Sequence[Record]) -> dict[str, list[Record]]:
    """The pool's records of each option."""
    if task.kind != "classification" or task.options is None:
        raise UserError(f"balanced demonstrations need a closed set of answers: task {task.name!r} is a {task.kind}")
    parts: dict[str, list[Record]] = {option: [] for option in task.options}
    for candidate in pool:
        parts[task.answer(candidate)].append(candidate)
    return parts


def _in_turn(queues: list[Iterator[Record]]) -> Iterator[Record]:
    """One of each queue, again and again, until all are empty."""
    while queues:
        heads = [(queue, next(queue, None)) for queue in queues]
        queues = [queue for queue, head in heads if head is not None]
        yield from (head for _, head in heads if head is not None)


# Fixed


def _fixed(task: Task, config: PromptConfig, split: str, texts: _TextsOf) -> Callable[[Record], tuple[Record, ...]]:
    """The same examples for all records, or for all of one group."""
    named = _named(task, config.examples, split, texts)
    drawn: dict[str | None, tuple[Record, ...]] = {}

    def pick(record: Record) -> tuple[Record, ...]:
        group = _group(task, record)
        if not named and group not in drawn:
            rng = random.Random(_number(config.seed, "fixed", group))
            queue = _drawn(task, task.splits[split], group, None, set(), rng, texts)
            drawn[group] = tuple(itertools.islice(queue, config.shots))
        examples = named or drawn[group]
        _check_count(task, record, split, config.shots, len(examples))
        for example in examples:
            if example["id"] == record["id"] or not texts(example).isdisjoint(texts(record)):
                raise UserError(
                    f"record {record['id']!r} would be shown its own answer, by the fixed example {example['id']!r}: "
                    + ("name another example" if named else "take another seed, or name the examples")
                )
            if _group(task, example) != group:
                raise UserError(
                    f"record {record['id']!r} is of {task.group_field} {group!r} and the fixed example "
                    f"{example['id']!r} of {_group(task, example)!r}: name examples of one {task.group_field}, and "
                    "evaluate its records alone, or name none"
                )
        return examples

    return pick


def _named(task: Task, names: Sequence[str], split: str, texts: _TextsOf) -> tuple[Record, ...]:
    """The records of these ids, in their order."""
    pool = {record["id"]: record for record in task.splits[split]}
    known: dict[str, str] = {}
    for name in names:
        if name not in pool:
            raise UserError(f"example {name!r} is no id of the {split} split{nearest(name, pool)}")
        for text in texts(pool[name]):
            if text in known:
                raise UserError(f"examples {known[text]!r} and {name!r} are the same query: name each one once")
            known[text] = name
    return tuple(pool[name] for name in names)


# Similar


def _similar(
    task: Task, config: PromptConfig, embed: Embed | None, split: str, texts: _TextsOf, kept: Kept
) -> Callable[[Sequence[Record]], list[tuple[Record, ...]]]:
    """The most similar ones; the pool's similarities are prepared once."""
    if config.pick == "nearest" and embed is None:
        raise UserError("pick='nearest' needs vectors of a model: evaluate with one, or set pick='bm25'")
    pool: list[Record] = []
    row_of: dict[tuple[str | None, str], int] = {}  # (group, text) -> its row in the pool
    for record in task.splits[split]:
        keys = [(_group(task, record), text) for text in texts(record)]
        if row_of.keys().isdisjoint(keys):
            row_of.update(dict.fromkeys(keys, len(pool)))
            pool.append(record)
    row_of_id = {record["id"]: row for row, record in enumerate(pool)}
    groups = {group: i for i, group in enumerate(dict.fromkeys(_group(task, record) for record in pool))}
    group_N = np.array([groups[_group(task, record)] for record in pool])

    def asked(record: Record) -> str:
        names = dict.fromkeys(fields(config.query or task.template.query))
        text = " ".join(f"{{{name}}}" for name in names if name != task.answer_field)
        return unicodedata.normalize("NFC", render(text, record))

    asked_of = [asked(record) for record in pool]
    if embed is None or config.pick == "bm25":
        space = once(kept, by_words, "words", asked_of)
    else:
        space = by_vectors(once(kept, partial(vectors, embed=embed), "vectors", asked_of), embed)

    def pick(record: Record, relevance_N: np.ndarray) -> tuple[Record, ...]:
        group = _group(task, record)
        own = [row_of[group, text] for text in texts(record) if (group, text) in row_of]
        own += [row_of_id[record["id"]]] if record["id"] in row_of_id else []
        free_N = group_N == groups.get(group, -1)
        free_N[own] = False
        _check_count(task, record, split, config.shots, int(free_N.sum()))
        open_N = np.where(free_N, relevance_N, -np.inf)
        tie_N = np.random.PCG64(_number(config.seed, record["id"], "ties")).random_raw(len(pool))
        if config.pick == "diverse":
            rows = mmr(open_N, space.between, config.shots, tie_N)
        else:
            rows = best(open_N, config.shots, tie_N)
        if config.order == "similar_last":
            rows = sorted(reversed(rows), key=lambda row: relevance_N[row])
        return tuple(pool[row] for row in rows)

    def many(records: Sequence[Record]) -> list[tuple[Record, ...]]:
        queries = space.encode([asked(record) for record in records])
        return [pick(record, space.relevance(query)) for record, query in zip(records, queries, strict=True)]

    return many


# All


def _group(task: Task, record: Record) -> str | None:
    return record[task.group_field] if task.group_field else None


def _texts(task: Task, record: Record, query: str | None = None) -> set[str]:
    """By what a record is known again: its query by the template, and by a query that is shown in its place."""
    shown = {task.query(record)}
    if query:
        shown.add(render(query, {**record, task.answer_field: ""}).rstrip())
    return {unicodedata.normalize("NFC", text) for text in shown}


def _check_count(task: Task, record: Record, split: str, shots: int, found: int) -> None:
    """Raises UserError for fewer than `shots` that were found."""
    if found < shots:
        group = f", {task.group_field} {record[task.group_field]!r}," if task.group_field else ""
        raise UserError(
            f"{shots} shots for record {record['id']!r}: the {split} split{group} has"
            f" {found} other records with queries of their own; ask for that many at most"
        )


def _number(seed: int, *names: str | None) -> int:
    """The same on every machine and in every run, which Python's own hash() is not."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, *names]).encode()).digest())
