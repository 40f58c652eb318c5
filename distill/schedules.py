"""Temperature and hard weight that change over a run: numbers in the batch, since a batch knows its step."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from limbeck.distill.config import DistilConfig
from limbeck.train.loss import Batch


class Named(Protocol):
    """What gives the batch of a step and names its examples, as `train.data.Stream` does."""

    def __call__(self, step: int, /) -> Batch: ...

    @property
    def name(self) -> Callable[[int], str]: ...


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """The batches of `stream` with an array [B] for each of the schedules: (array's name, first value, last value)."""

    stream: Named
    schedules: tuple[tuple[str, float, float], ...]
    steps: int

    def __call__(self, step: int) -> Batch:
        batch = self.stream(step)
        rows = len(batch["tokens_BT"])
        share = min(step / max(self.steps - 1, 1), 1.0)
        values = {name: first + (last - first) * share for name, first, last in self.schedules}
        return {**batch, **{name: np.full(rows, value, np.float32) for name, value in values.items()}}

    @property
    def name(self) -> Callable[[int], str]:
        return self.stream.name


def scheduled(stream: Named, config: DistilConfig, steps: int) -> Named:
    """The stream with `temperature_B` and `hard_weight_B` where the config says what they come to.

    Each goes linearly from its value at step 0 to its `_end` at the last of `steps` steps, the same in all rows, and
    takes the place of the config's number in the loss. Without an end the stream is returned as it is.
    """
    schedules = tuple(
        (f"{name}_B", getattr(config, name), end)
        for name in ("temperature", "hard_weight")
        if (end := getattr(config, f"{name}_end")) is not None
    )
    return Scheduled(stream, schedules, steps) if schedules else stream
