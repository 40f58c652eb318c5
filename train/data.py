"""Batches: examples packed or padded into rows, and a random-access stream of batches over them.

A batch is a function of (seed, step) alone, so a run that was killed goes on with the very batch it would have had.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from limbeck.model.errors import UserError, one_of
from limbeck.tasks.tables import OnBadRow
from limbeck.train.examples import Example, Labelled
from limbeck.train.loss import Batch

Arrays = dict[str, np.ndarray]


class Rows(NamedTuple):
    """Training rows, grouped by their length: of each group the arrays of a `Batch`, [rows, length].

    `segments_BT` holds 1 + the index of a token's example, 0 for padding. `weights_BT` is how much a target counts; for
    a head that is an example's last token, where `targets_BT` holds the option's index and `values_BTC`, in tasks
    without one, the number or 0 and 1 for each label (float32). `names_E` has the name of every example, in UTF-8;
    `skipped` says which were left out.
    """

    groups: tuple[Arrays, ...]
    names_E: np.ndarray
    skipped: tuple[str, ...] = ()


def pack(
    examples: Sequence[Example] | Sequence[Labelled], length: int, on_bad_row: OnBadRow = "error"
) -> Rows:
    """Examples side by side in rows of `length` tokens, each a segment of its own with its own positions.

    Raises UserError that names an example which is too long, or leaves it out with "skip": nothing is cut. Examples
    are placed in a shuffled order, always the same: files are often sorted by label, and a row should not be.
    """
    sizes, fitting, skipped = _sizes(examples, length, on_bad_row)
    order = np.random.RandomState(0).permutation(fitting)  # numpy promises its stream for ever
    row_E, start_E = place(sizes[order].tolist(), length)
    groups = (_filled(examples, order, row_E, start_E, length),) if len(order) else ()
    return Rows(groups, _names(examples), skipped)


def pad(
    examples: Sequence[Example] | Sequence[Labelled], buckets: Sequence[int], on_bad_row: OnBadRow = "error"
) -> Rows:
    """Each example in a row of its own, of the first of the lengths `buckets` that holds it: a group each.

    Raises UserError that names an example longer than the last bucket, or leaves it out with "skip".
    """
    lengths = sorted(set(buckets))
    sizes, fitting, skipped = _sizes(examples, lengths[-1], on_bad_row)
    bucket_E = np.searchsorted(lengths, sizes[fitting])
    groups = []
    for number, length in enumerate(lengths):
        members = fitting[bucket_E == number]
        if len(members):
            groups.append(_filled(examples, members, np.arange(len(members)), np.zeros(len(members), int), length))
    return Rows(tuple(groups), _names(examples), skipped)


def place(sizes: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The row of each, and where in it it starts: best fit, into the fullest row that has room for it.

    Rows wait by the room that they have left, and the bits of one integer say for which room any does, so that the
    search is a shift. Against first fit: no row is ever closed, ten times faster, and it leaves less room.
    """
    waiting: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = count = 0
    rows, starts = [], []
    for size in sizes:
        fits = rooms >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            row = waiting[room].pop()
            if not waiting[room]:
                rooms ^= 1 << room
        else:
            room, row, count = length, count, count + 1
        rows.append(row)
        starts.append(length - room)
        waiting[room - size].append(row)
        rooms |= 1 << (room - size)
    return np.asarray(rows, np.int64), np.asarray(starts, np.int64)


def _sizes(
    examples: Sequence[Example] | Sequence[Labelled], most: int, on_bad_row: OnBadRow
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """How many tokens each example takes in a row, the indices of those that fit, and what is said of the others."""
    one_of("on_bad_row", on_bad_row, ["error", "skip"])
    sizes = np.asarray([len(example.ids) - isinstance(example, Example) for example in examples], np.int64)
    too_long = np.flatnonzero(sizes > most).tolist()
    messages = tuple(f"{examples[i].name}: {sizes[i]} tokens, where a row holds {most}" for i in too_long)
    if messages and on_bad_row == "error":
        others = f" (and {len(messages) - 1} more)" if messages[1:] else ""
        raise UserError(
            f'{messages[0]}{others}: raise `length`, shorten it, or leave it out with on_bad_row="skip"'
        )
    return sizes, np.flatnonzero(sizes <= most), messages


def _names(examples: Sequence[Example] | Sequence[Labelled]) -> np.ndarray:
    return np.asarray([example.name.encode() for example in examples], np.bytes_)


def _filled(
    examples: Sequence[Any], members: np.ndarray, row_E: np.ndarray, start_E: np.ndarray, length: int
) -> Arrays:
    """The arrays of rows in which the example `members[i]` lies in row `row_E[i]` from `start_E[i]` on."""
    columns = _columns([examples[member] for member in members])
    sizes = np.diff(columns.pop("bounds"))
    position = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    columns["positions_BT"] = position.astype(np.int32)
    columns["segments_BT"] = np.repeat(members + 1, sizes).astype(np.int32)
    at = np.repeat(row_E * length + start_E, sizes) + position
    shape = (int(row_E.max()) + 1, length)
    arrays = {}
    for name, values in columns.items():
        arrays[name] = np.zeros((shape[0] * length, *values.shape[1:]), values.dtype)
        arrays[name][at] = values
        arrays[name] = arrays[name].reshape(*shape, *values.shape[1:])
    return arrays


def _columns(examples: Sequence[Any]) -> Arrays:
    """Tokens, targets and weights of all examples one after the other, and the `bounds` between them."""
    if isinstance(examples[0], Example):
        bounds = np.cumsum([0, *(len(example.ids) - 1 for example in examples)])
        return {
            "tokens_BT": np.concatenate([example.ids[:-1] for example in examples]),
            "targets_BT": np.concatenate([example.ids[1:] for example in examples]),
            "weights_BT": np.concatenate([example.counts[1:] for example in examples]).astype(np.float32),
            "bounds": bounds,
        }
    bounds = np.cumsum([0, *(len(example.ids) for example in examples)])
    last = bounds[1:] - 1
    columns = {
        "tokens_BT": np.concatenate([example.ids for example in examples]),
        "targets_BT": np.zeros(bounds[-1], np.int32),
        "weights_BT": np.zeros(bounds[-1], np.float32),
        "bounds": bounds,
    }
    columns["targets_BT"][last] = [example.option for example in examples]
    columns["weights_BT"][last] = 1.0
    if len(examples[0].values):
        columns["values_BTC"] = np.zeros((bounds[-1], len(examples[0].values)), np.float32)
        columns["values_BTC"][last] = [example.values for example in examples]
    return columns


@dataclasses.dataclass(frozen=True)
class Stream:
    """`stream(step)` is the batch of a step; `name` says what an example in it is."""

    batch_at: Callable[[int], Batch]
    sources: tuple[Rows, ...]

    def __call__(self, step: int) -> Batch:
        return self.batch_at(step)

    def name(self, example: int) -> str:
        """The name of what `segments_BT` holds as `example + 1`: examples are numbered through all sources."""
        for rows in self.sources:
            if example < len(rows.names_E):
                return rows.names_E[example].decode()
            example -= len(rows.names_E)
        raise IndexError(f"no such example: {example} behind the last")


class _Part(NamedTuple):
    """The rows of one length of one source."""

    arrays: Arrays
    before: int  # examples of the sources before this one
    weight: float
    rows_at: Callable[[np.ndarray], np.ndarray]


def batches(sources: Rows | Sequence[tuple[Rows, float]], batch_size: int, seed: int) -> Stream:
    """A stream over the rows of one source, or of several in proportion to their weights.

    Every source is reshuffled at each pass over it. The rows of a batch have one length; where there are several, a
    length's turn comes in proportion to its rows. Shares are those of whole numbers near to the weights, off by less
    than a hundredth of themselves. Every process of several has the whole batch, of which the step takes its devices'
    rows: tens of milliseconds for four million tokens. Raises UserError for a source without rows, and a weight that
    is not positive.
    """
    mixed = [(sources, 1.0)] if isinstance(sources, Rows) else list(sources)
    by_length: dict[int, list[_Part]] = {}
    before = 0
    for source, (rows, weight) in enumerate(mixed):
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"weight {weight} of source {source} in the mixture: must be more than 0, or leave it out")
        if not rows.groups:
            left_out = f", all {len(rows.skipped)} were left out: {rows.skipped[0]}" if rows.skipped else ""
            raise UserError(f"no training rows: the training split is empty{left_out}")
        total = sum(len(group["tokens_BT"]) for group in rows.groups)
        for group in rows.groups:
            count, length = group["tokens_BT"].shape
            part = _Part(group, before, weight * count / total, _reshuffled(count, (seed, source, length)))
            by_length.setdefault(length, []).append(part)
        before += len(rows.names_E)
    lengths = list(by_length.values())
    turn = _turns([sum(part.weight for part in parts) for parts in lengths])
    part_turns = [_turns([part.weight for part in parts]) for parts in lengths]

    def batch_at(step: int) -> Batch:
        chosen, number = turn(step)
        first = number * batch_size
        part_B, place_B = np.array([part_turns[chosen](place) for place in range(first, first + batch_size)]).T
        batch: Arrays = {}
        for index in np.unique(part_B):
            part, at = lengths[chosen][index], np.flatnonzero(part_B == index)
            row_B = part.rows_at(place_B[at])
            for name, array in part.arrays.items():
                picked = array[row_B]
                if name == "segments_BT":
                    picked = np.where(picked > 0, picked + np.int32(part.before), 0)
                batch.setdefault(name, np.empty((batch_size, *picked.shape[1:]), picked.dtype))[at] = picked
        return batch

    return Stream(batch_at, tuple(rows for rows, _ in mixed))


def _turns(weights: Sequence[float]) -> Callable[[int], tuple[int, int]]:
    """Which of several endless streams has the turn at a place, and how many turns it had before; by Grain's mix."""
    if len(weights) == 1:
        return lambda place: (0, place)
    import grain

    streams: Any = [
        grain.MapDataset.range(sys.maxsize).map(lambda had, stream=stream: (stream, had))
        for stream in range(len(weights))
    ]
    mixed: Any = grain.MapDataset.mix(streams, weights)
    return mixed.__getitem__


def _reshuffled(count: int, seed: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """The rows at places of an endless stream: pass after pass over `count` rows, each pass in an order of its own.

    Not Grain's shuffle: it takes 4 ms for an index among ten and 0.3 ms among a hundred, and a pass of one seed is the
    next pass of the seed before.
    """

    @functools.lru_cache(maxsize=2)  # at the end of a pass a batch has rows of the next
    def order(number: int) -> np.ndarray:
        generator = np.random.MT19937(np.random.SeedSequence([*seed, number]))
        return np.random.RandomState(generator).permutation(count)

    def rows_at(place_B: np.ndarray) -> np.ndarray:
        pass_B, index_B = np.divmod(place_B, count)
        row_B = np.empty_like(place_B)
        for number in np.unique(pass_B).tolist():
            of_pass = pass_B == number
            row_B[of_pass] = order(number)[index_B[of_pass]]
        return row_B

    return rows_at
