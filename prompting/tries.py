"""What a search has asked so far: each candidate's answers to the first so many validation records, and their price."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from limbeck.prompting.config import PromptConfig
from limbeck.tasks.task import Record


class Measured(NamedTuple):
    """What each record's answer is worth, of which the mean counts and more is better, and the tokens they took."""

    qualities: tuple[float, ...]
    tokens: int


class Try(NamedTuple):
    """A candidate, its mean quality over the validation records that it answered, and what they took."""

    config: PromptConfig
    quality: float | None  # None: it answered none, for the reason in `error`
    records: int
    tokens: int
    proposed: bool  # written during the search
    error: str = ""


Evaluate = Callable[[PromptConfig, Sequence[Record]], Measured]
Cost = Callable[[PromptConfig, Record], int]


class Tries:
    """The candidates in their order, each with the answers to the first so many of `records`: nothing is asked twice.

    The budget is counted in records, or, where `cost` forecasts them, in tokens.
    """

    def __init__(self, evaluate: Evaluate, records: Sequence[Record], cost: Cost | None, budget: int) -> None:
        self._evaluate = evaluate
        self._records = records
        self._cost = cost
        self._prices: dict[PromptConfig, np.ndarray] = {}
        self._qualities: dict[PromptConfig, list[float]] = {}  # of the candidates in their order
        self._tokens: dict[PromptConfig, int] = {}
        self._proposed: set[PromptConfig] = set()
        self._errors: dict[PromptConfig, str] = {}
        self.left = budget
        self.records = 0  # answers asked for
        self.tokens = 0

    def add(self, configs: Sequence[PromptConfig], proposed: bool = False) -> list[PromptConfig]:
        """Takes in what is not yet known, after what is; returns it."""
        new = [config for config in dict.fromkeys(configs) if config not in self._qualities]
        for config in new:
            self._qualities[config], self._tokens[config] = [], 0
        self._proposed |= set(new) if proposed else set()
        return new

    def prices_N(self, config: PromptConfig) -> np.ndarray:
        """What the first 1, 2, ... N records cost of the budget at most, all asked of this candidate."""
        if config not in self._prices:
            each = [self._cost(config, record) if self._cost else 1 for record in self._records]
            self._prices[config] = np.cumsum(each, dtype=np.int64)
        return self._prices[config]

    def ask(self, config: PromptConfig, upto: int) -> None:
        """Has a candidate answer the first `upto` records, less those that it has."""
        known = len(self._qualities[config])
        if upto <= known:
            return
        records = self._records[known:upto]
        measured = self._evaluate(config, records)
        if len(measured.qualities) != len(records) or not all(map(math.isfinite, measured.qualities)):
            raise ValueError(f"{len(records)} records need as many finite qualities, not {measured.qualities}")
        spent = measured.tokens if self._cost else len(records)
        prices_N = self.prices_N(config)
        forecast = int(prices_N[upto - 1] - (prices_N[known - 1] if known else 0))
        if spent > forecast:
            raise ValueError(f"{len(records)} records took {spent} tokens, forecast as {forecast} at most: {config}")
        self._qualities[config] += measured.qualities
        self._tokens[config] += measured.tokens
        self.left -= spent
        self.records += len(records)
        self.tokens += measured.tokens

    def refuse(self, config: PromptConfig, error: str) -> None:
        """Notes why a candidate cannot be asked."""
        self._errors[config] = error

    def mean(self, config: PromptConfig) -> float:
        """The mean quality of its answers so far; the same however they were parted."""
        return math.fsum(self._qualities[config]) / len(self._qualities[config])

    def ranked(self, configs: Sequence[PromptConfig]) -> list[PromptConfig]:
        """The best first; of equals the one that was taken in first."""
        place = {config: at for at, config in enumerate(self._qualities)}
        return sorted(configs, key=lambda config: (-self.mean(config), place[config]))

    def best(self) -> PromptConfig:
        """The best of those that answered all records."""
        whole = [config for config, found in self._qualities.items() if len(found) == len(self._records)]
        return self.ranked(whole)[0]

    def so_far(self) -> list[tuple[PromptConfig, float]]:
        """Every candidate that answered a record, and its mean."""
        return [(config, self.mean(config)) for config, found in self._qualities.items() if found]

    def table(self) -> tuple[Try, ...]:
        """A row for every candidate that was asked, or refused."""
        return tuple(
            Try(
                config,
                self.mean(config) if found else None,
                len(found),
                self._tokens[config],
                config in self._proposed,
                self._errors.get(config, ""),
            )
            for config, found in self._qualities.items()
            if found or config in self._errors
        )
