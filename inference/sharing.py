"""What many prompts begin with, and when it pays to run that once: numbers alone, no model."""

from collections.abc import Sequence
from typing import NamedTuple

from limbeck.model.config import ModelConfig

LEAST = 32  # tokens: a shorter beginning is run with every prompt
FEWEST = 4  # prompts


class Start(NamedTuple):
    """The first `length` tokens of all prompts in `members`, indices; 0 for those that have no start in common."""

    length: int
    members: list[int]


def shared_starts(prompts: Sequence[tuple[int, ...]], after: Sequence[int], batch_size: int) -> list[Start]:
    """The prompts in groups by what they begin with, those that stay whole at the end; no prompt is used up wholly.

    `after` is how many tokens follow each prompt. A group runs in batches of its own, which are filled up to
    `batch_size`: where it is not all of the prompts, it must save more than that costs.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        if len(prompt) > LEAST:
            alike.setdefault(prompt[:LEAST], []).append(index)
    starts, taken = [], set()
    for members in alike.values():
        own = [prompts[i] for i in members]
        length = common_start(own)
        steps = -(-len(own) // batch_size) * batch_size  # rows, with those that fill up the last batch
        rest = sum(len(prompts[i]) - length + after[i] for i in members) / len(own)
        pays = len(own) == len(prompts) or steps * rest + length < len(own) * (length + rest)
        if len(own) >= FEWEST and pays:
            starts.append(Start(length, members))
            taken.update(members)
    left = [i for i in range(len(prompts)) if i not in taken]
    return [*starts, Start(0, left)] if left else starts


def slots(length: int) -> int:
    """In how many places a start of that many tokens stands: a power of two, or three quarters of one."""
    size = 1 << (length - 1).bit_length()
    return size * 3 // 4 if length <= size * 3 // 4 else size


def longest_short(config: ModelConfig) -> int | None:
    """Up to what length a text's positions turn as those of its start do: longrope turns longer texts otherwise."""
    ropes = [rope for rope in config.layer_ropes() if rope and rope.scaling == "longrope"]
    return min(rope.original_max_len for rope in ropes) if ropes else None


def common_start(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all begin with, the last one of the shortest prompt left out: something has to be run."""
    low, high = min(prompts), max(prompts)  # what the first and the last in order share, all between them share
    alike = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return min(alike, min(map(len, prompts)) - 1)
