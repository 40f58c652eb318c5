"""How much a prompt's result hangs on what should not matter: its format, the order and the draw of its examples."""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from limbeck.model.errors import UserError
from limbeck.prompting.config import Order, PromptConfig
from limbeck.prompting.formats import FORMATS, Format, formatted
from limbeck.prompting.search import showable
from limbeck.tasks.task import Task

_SIMILAR = ("nearest", "bm25", "diverse")  # picks that know what is similar


class Spread(NamedTuple):
    """The worst, the middle and the best of n results."""

    minimum: float
    median: float
    maximum: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Their minimum, median and maximum; at least one value."""
    return Spread(float(np.min(values)), float(np.median(values)), float(np.max(values)), len(values))


def variants(
    task: Task, config: PromptConfig, count: int, seed: int, formats: Sequence[Format] = FORMATS
) -> list[PromptConfig]:
    """At most `count` prompts that mean the same: the config itself first, then others drawn by `seed`, none twice.

    They differ in delimiter, separator and form, in whether there is an instruction, in the order of the examples and
    in which they are (by another seed, or by name where they are fixed), each where it makes a difference (Sclar et al.
    2023, arXiv 2310.11324; Lu et al. 2021, arXiv 2104.08786). The results of all of them, as a `spread`, belong to the
    prompt's own. Raises UserError for a count below 1.
    """
    if count < 1:
        raise UserError(f"{count} variants: ask for at least 1, which is the prompt itself")
    own = task.template.instruction if config.instruction is None else config.instruction
    instructions = [config.instruction, ""] if own else [config.instruction]
    if config.instruction == "" and task.template.instruction:
        instructions.append(None)
    rng = random.Random(seed)
    axes = itertools.product(formatted(task, config, formats), instructions, _draws(task, config, count, rng))
    every = dict.fromkeys(dataclasses.replace(each, instruction=text, **draw) for each, text, draw in axes)
    others = [each for each in every if each != config]
    return [config, *rng.sample(others, min(count - 1, len(others)))]


def _draws(task: Task, config: PromptConfig, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Which examples in which order, the config's own first: `count` of each order where there are others."""
    orders: tuple[Order, ...] = (config.order,)
    if config.shots > 1:
        orders += ("as_is", "shuffled", "similar_last") if config.pick in _SIMILAR else ("as_is", "shuffled")
    sets: list[tuple[str, ...]] = []
    drawn = config.shots > 0 and config.pick not in _SIMILAR and not config.examples
    if drawn and config.pick == "fixed" and task.group_field is None:
        # By name: of those that are drawn by a seed, one may be what is asked later.
        pool, drawn = showable(task, config), False
        sets = [tuple(rng.sample(pool, config.shots)) for _ in range(count)] if len(pool) >= config.shots else []
    for order in orders:
        seeded = drawn or config.samples > 1 or (order == "shuffled" and config.shots > 1)
        yield {"order": order}
        for n in range(1, count if seeded or sets else 1):
            seed = {"seed": config.seed + n} if seeded else {}
            yield {"order": order, **seed, **({"examples": sets[n]} if sets else {})}
