"""Writing many answers at once: a fixed number of rows of one cache, each filled again when its answer ends.

What is compiled for has few shapes, and they hang on a request alone, not on what others there are: the length of its
prompt, in a bucket, and the places of a row. So a request's numbers are the same bit for bit, whatever is written
beside it, in whatever order, and after whatever interruption.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from limbeck.inference.batches import bucket, padded
from limbeck.inference.requests import Sampling
from limbeck.model.config import ModelConfig
from limbeck.model.decode import SamplingArrays, Writing, advance, empty_rows, fill, write_whole
from limbeck.model.errors import UserError
from limbeck.model.hosts import on_host
from limbeck.model.params import Params
from limbeck.model.transformer import with_prefix

_STEPS = 64  # tokens of a row at most between two looks at what has ended
_FEWEST = 64  # places of a row
_SHARE = 4  # of the rows, one in so many is filled at once: fewer fillings, but a few rows wait


class Order(NamedTuple):
    """A prompt to go on from, and how: `key` is the eight bytes that its random numbers come from."""

    prompt: tuple[int, ...]
    sampling: Sampling
    key: bytes
    stop_V: np.ndarray  # tokens that end the answer; orders of one call that share them are written together


class Rows(NamedTuple):
    """How many answers are written at once, what prompts are padded with, whether the cache is kept in eight bits."""

    count: int
    pad: int
    coded: bool = False


class Written(NamedTuple):
    """The tokens of an answer, the one that ended it included, and their log-probabilities."""

    ids: list[int]
    logprobs: np.ndarray


def write(
    config: ModelConfig, params: Params, orders: Sequence[Order], rows: Rows, short: int | None = None
) -> Iterator[tuple[int, Written]]:
    """(index, answer) of each order as it ends.

    `short` is how long a prompt may be where the model's positions say it (None: what fits). Where memory runs out half
    as many rows go on with what is left; UserError if one is too many.
    """
    if rows.count == 1:  # which has nothing to be filled beside: one program an answer, half of the time
        for index, order in enumerate(orders):
            yield index, _alone(config, params, order, rows, short)
        return
    params = with_prefix(config, params)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, order in enumerate(orders):
        slots = _slots(bucket(len(order.prompt), short) + order.sampling.max_new_tokens)
        groups.setdefault((slots, id(order.stop_V)), []).append(index)
    for (slots, _), members in sorted(groups.items(), reverse=True):  # what needs most memory shows first
        left = dict.fromkeys(members)
        while left:
            try:
                for index, written in _together(config, params, orders, [*left], rows, slots, short):
                    del left[index]
                    yield index, written
            except jax.errors.JaxRuntimeError as error:
                _check_memory(error, rows, slots)
                rows = rows._replace(count=rows.count // 2)
                print(f"out of memory: {rows.count} answers are written at once from here on", file=sys.stderr)


def _alone(config: ModelConfig, params: Params, order: Order, rows: Rows, short: int | None) -> Written:
    length = bucket(len(order.prompt), short)
    limits_B = np.full(1, order.sampling.max_new_tokens, np.int32)
    slots = _slots(length + order.sampling.max_new_tokens)
    tokens_BT, lengths_B = padded([order.prompt], length, 1, rows.pad)
    settings = sampling([order])
    try:
        out = write_whole(config, params, tokens_BT, lengths_B, limits_B, settings, order.stop_V, slots, rows.coded)
        out = on_host(out)
    except jax.errors.JaxRuntimeError as error:
        _check_memory(error, rows, slots)
        raise
    written = int(out.length_B[0])
    return Written(out.tokens_BT[0, :written].tolist(), out.logprobs_BT[0, :written])


def _check_memory(error: RuntimeError, rows: Rows, slots: int) -> None:
    """Raises the error again unless memory ran out, and a UserError where it did for a single row."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    if rows.count == 1:
        raise UserError(
            f"no memory for a text of up to {slots} tokens, even alone: "
            "ask for less, or keep weights or cache in eight bits"
        ) from error


def _together(
    config: ModelConfig,
    params: Params,
    orders: Sequence[Order],
    members: Sequence[int],
    rows: Rows,
    slots: int,
    short: int | None,
) -> Iterator[tuple[int, Written]]:
    count, at_once = rows.count, max(1, rows.count // _SHARE)
    state = empty_rows(config, count, slots, slots, rows.coded)
    owner: list[int | None] = [None] * count  # whose answer a row holds
    waiting = sorted(members, key=lambda index: len(orders[index].prompt))  # the longest are taken first
    stop_V = orders[members[0]].stop_V
    while waiting or any(index is not None for index in owner):
        free = [row for row in range(count) if owner[row] is None]
        while waiting and free:
            length = bucket(len(orders[waiting[-1]].prompt), short)
            taken = []
            while len(taken) < min(at_once, len(free)) and waiting:
                if bucket(len(orders[waiting[-1]].prompt), short) < length:
                    break
                taken.append(waiting.pop())
            places = [free.pop(0) for _ in taken]
            tokens_RT, lengths_R = padded([orders[i].prompt for i in taken], length, at_once, rows.pad)
            rows_R, limits_R = np.full(at_once, count, np.int32), np.ones(at_once, np.int32)
            rows_R[: len(taken)] = places  # what is over goes to a row that is not there
            limits_R[: len(taken)] = [orders[i].sampling.max_new_tokens for i in taken]
            state = fill(config, params, state, tokens_RT, lengths_R, rows_R, limits_R)
            for row, index in zip(places, taken, strict=True):
                owner[row] = index
        settings = sampling([None if index is None else orders[index] for index in owner])
        running = sum(index is not None for index in owner)
        enough = min(at_once, running) if waiting else running
        state = advance(config, params, state, settings, stop_V, np.int32(_STEPS), np.int32(count - running + enough))
        yield from _ended(state, owner)


def _slots(tokens: int) -> int:
    """How many places a row has for so many tokens: few sizes, so that most requests are written together."""
    size = _FEWEST
    while size < tokens:
        size *= 4
    return size


def _ended(state: Writing, owner: list[int | None]) -> Iterator[tuple[int, Written]]:
    """The answers of rows that have ended, which are free then."""
    done_B, length_B = on_host((state.done_B, state.out.length_B))
    ended = [row for row, index in enumerate(owner) if index is not None and done_B[row]]
    if not ended:
        return
    tokens_BT, logprobs_BT = on_host((state.out.tokens_BT, state.out.logprobs_BT))
    for row in ended:
        index, owner[row] = owner[row], None
        assert index is not None
        yield index, Written(tokens_BT[row, : length_B[row]].tolist(), logprobs_BT[row, : length_B[row]].copy())


def sampling(orders: Sequence[Order | None]) -> SamplingArrays:
    """How each row is sampled; what a row without an order gives does not count."""
    rows = [Sampling() if order is None else order.sampling for order in orders]
    keys = b"".join(bytes(8) if order is None else order.key for order in orders)
    return SamplingArrays(
        np.frombuffer(keys, np.uint32).reshape(len(orders), 2),
        np.asarray([row.temperature for row in rows], np.float32),
        np.asarray([row.top_k for row in rows], np.int32),
        np.asarray([row.top_p for row in rows], np.float32),
        np.asarray([row.min_p for row in rows], np.float32),
    )
