"""Which solved records stand before a query: drawn anew for each record, never the record itself."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence

from limbeck.model.errors import UserError, one_of
from limbeck.tasks.task import Record, Task


def choose(
    task: Task, record: Record, shots: int, seed: int, pool_split: str = "train", balanced: bool = False
) -> tuple[Record, ...]:
    """`shots` records of the pool, all with different queries, none the record itself by id or by query.

    The draw hangs on `seed` and the record's id alone: a subset or another order of the evaluated records
    gets the same prompts, and the first k of k + 1 demonstrations are the k. In a task with groups they come
    from the record's own. `balanced` takes the task's options in turn, as far as the pool has them. Raises
    UserError: more shots than the pool holds, no such split, `balanced` without options.
    """
    one_of("pool split", pool_split, task.splits)
    if shots < 0:
        raise UserError(f"shots {shots}: ask for 0 or more demonstrations")
    pool = task.splits[pool_split]
    rng = random.Random(_number(seed, record["id"]))
    shown = {task.query(record)}
    queues = [_drawn(task, record, part, shown, rng) for part in (_by_option(task, pool, rng) if balanced else [pool])]
    chosen = tuple(itertools.islice(_in_turn(queues), shots))
    if len(chosen) < shots:
        group = f", {task.group_field} {record[task.group_field]!r}," if task.group_field else ""
        raise UserError(
            f"{shots} shots for record {record['id']!r}: the {pool_split} split{group} has"
            f" {len(chosen)} other records with queries of their own; ask for that many at most"
        )
    return chosen


def _drawn(task: Task, record: Record, pool: Sequence[Record], shown: set[str], rng: random.Random) -> Iterator[Record]:
    """The pool in random order, less other groups, the record, and queries in `shown`, which it adds to."""
    for candidate in _shuffled(pool, rng):
        own_group = task.group_field is None or candidate[task.group_field] == record[task.group_field]
        if own_group and candidate["id"] != record["id"] and (query := task.query(candidate)) not in shown:
            shown.add(query)
            yield candidate


def _shuffled(pool: Sequence[Record], rng: random.Random) -> Iterator[Record]:
    """Fisher and Yates's shuffle, only as far as it is read: a few of many thousand cost a few steps."""
    moved: dict[int, int] = {}
    for last in range(len(pool) - 1, -1, -1):
        pick = rng.randrange(last + 1)
        yield pool[moved.get(pick, pick)]
        moved[pick] = moved.get(last, last)


def _by_option(task: Task, pool: Sequence[Record], rng: random.Random) -> list[list[Record]]:
    """The pool's records of each option, the options in random order."""
    if task.kind != "classification" or task.options is None:
        raise UserError(f"balanced demonstrations need a closed set of answers: task {task.name!r} is a {task.kind}")
    parts: dict[str, list[Record]] = {option: [] for option in rng.sample(task.options, len(task.options))}
    for candidate in pool:
        parts[task.answer(candidate)].append(candidate)
    return list(parts.values())


def _in_turn(queues: list[Iterator[Record]]) -> Iterator[Record]:
    """One of each queue, again and again, until all are empty."""
    while queues:
        heads = [(queue, next(queue, None)) for queue in queues]
        queues = [queue for queue, head in heads if head is not None]
        yield from (head for _, head in heads if head is not None)


def _number(seed: int, identity: str) -> int:
    """The same on every machine and in every run, which Python's own hash() is not."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, identity]).encode()).digest())
