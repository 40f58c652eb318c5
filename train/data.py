"""Batches: tokenised examples packed into rows, and a random-access stream of batches over them.

A batch is a function of (seed, step) alone, so a run that was killed goes on with the very batch it would have had.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer
from limbeck.tasks.task import Record, Task
from limbeck.train.loss import Batch


class Example(NamedTuple):
    """Token ids from BOS on, and how many of them are context: the loss counts on what follows."""

    ids: list[int]
    context: int


def documents(texts: Sequence[str], tokenizer: Tokenizer) -> list[Example]:
    """Plain text: BOS, the text, EOS; every token after BOS counts."""
    return [
        Example([tokenizer.bos_id, *ids, tokenizer.eos_id], 1) for ids in tokenizer.encode_batch(list(texts))
    ]


def completions(task: Task, records: Sequence[Record], tokenizer: Tokenizer) -> list[Example]:
    """Task records without demonstrations: the query is context; the answer and what ends it count.

    Context and target are tokenised apart and joined, as prompting and the engine join them.
    """
    examples = []
    for record in records:
        context = tokenizer.prompt(task.prompt(record))
        target = tokenizer.encode(task.target(record) + task.template.separator)
        examples.append(Example(context + target, len(context)))
    return examples


def chunked(examples: Sequence[Example], length: int) -> list[Example]:
    """Long documents as consecutive pieces of at most `length` predicted tokens; each token is predicted once."""
    pieces = []
    for ids, context in examples:
        for start in range(0, max(len(ids) - 1, 1), length):
            pieces.append(Example(ids[start : start + length + 1], max(context - start, 1)))
    return pieces


def pack(examples: Sequence[Example], length: int) -> dict[str, np.ndarray]:
    """Examples side by side in rows of `length` tokens, first fit, each a segment of its own with its own positions.

    Returns arrays [rows, length] named as in `Batch`; padding has segment 0 and weight 0. Raises UserError for an
    example that is too long: nothing is cut.
    """
    open_rows: list[tuple[int, int]] = []  # (row, room left), oldest first; a bounded window keeps this linear
    placed: list[list[Example]] = []
    for index, example in enumerate(examples):
        need = len(example.ids) - 1
        if need > length:
            raise UserError(f"example {index} has {need} tokens, a row holds {length}: raise `length` or shorten it")
        for slot, (row, room) in enumerate(open_rows):
            if need <= room:
                placed[row].append(example)
                open_rows[slot] = (row, room - need)
                break
        else:
            placed.append([example])
            open_rows.append((len(placed) - 1, length - need))
            if len(open_rows) > 64:
                open_rows.remove(min(open_rows, key=lambda pair: pair[1]))
    rows: dict[str, np.ndarray] = {
        name: np.zeros((len(placed), length), np.int32)
        for name in ("tokens_BT", "targets_BT", "positions_BT", "segments_BT")
    }
    rows["weights_BT"] = np.zeros((len(placed), length), np.float32)
    for row, members in enumerate(placed):
        start = 0
        for segment, (ids, context) in enumerate(members, 1):
            stop = start + len(ids) - 1
            rows["tokens_BT"][row, start:stop] = ids[:-1]
            rows["targets_BT"][row, start:stop] = ids[1:]
            rows["weights_BT"][row, start + context - 1 : stop] = 1.0
            rows["positions_BT"][row, start:stop] = np.arange(stop - start)
            rows["segments_BT"][row, start:stop] = segment
            start = stop
    return rows


def batches(rows: dict[str, np.ndarray], batch_size: int, seed: int) -> Callable[[int], Batch]:
    """`batch_at(step)`: reshuffled every pass over the rows, the same for the same seed; Grain does the shuffling."""
    import grain

    total = len(rows["tokens_BT"])
    if not total:
        raise UserError("no training rows: the training split is empty")
    order = grain.MapDataset.range(total).shuffle(seed=seed).repeat()

    def batch_at(step: int) -> Batch:
        picked = np.asarray([order[step * batch_size + i] for i in range(batch_size)])
        return {name: array[picked] for name, array in rows.items()}

    return batch_at


def mixture(*streams: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """Batches side by side: each stream's share is the number of its rows."""

    def batch_at(step: int) -> Batch:
        parts = [stream(step) for stream in streams]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return batch_at
