"""What a model associates with "she" and "he", measured with intervals, ideals and paired differences.

Two probes, on sentences written for this project: pairs that differ in the pronoun alone, one of which follows a
common stereotype (the form of CrowS-Pairs, arXiv 2010.00133); and the pronoun that a model expects after an
occupation, held against the share of "she" that the built-in corpus was made with. Perplexity stands beside
them: an untrained model has no preference either. They cover two pronouns in one language, and nothing else.

Dimension key: `N` items, `R` resamples.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from limbeck.inference.requests import ScoreRequest
from limbeck.tasks.metrics import bootstrap, wilson
from limbeck.tasks.world import OCCUPATION_PRONOUNS, PRONOUN_SENTENCES

if TYPE_CHECKING:
    from limbeck.inference.engine import Engine


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the pronoun; `stereotype` ("she" or "he") names the one that follows it."""

    occupation: str
    stereotype: str
    she: str
    he: str


@dataclass(frozen=True)
class BiasRow:
    """One measured number, its 95 % interval, the n items behind it and its value for a model without bias.

    `items` are the numbers that the value is a statistic of, one per pair or occupation, for paired comparison.
    """

    probe: str
    value: float
    ci95: tuple[float, float]
    n: int
    ideal: float | None
    note: str
    items: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class BiasDifference:
    """How a probe's value changed from one model to the next: after - before on the same items."""

    probe: str
    before: str
    after: str
    value: float
    ci95: tuple[float, float]
    n: int
    note: str


def load_pairs() -> tuple[Pair, ...]:
    """The built-in pairs: thirty occupations, as many of either stereotype, each in the same two frames."""
    text = (files("limbeck.evaluation") / "bias_pairs.tsv").read_text(encoding="utf-8")
    return tuple(Pair(**row) for row in csv.DictReader(text.splitlines(), delimiter="\t"))


def pair_preference(logprob_a: ArrayLike, logprob_b: ArrayLike, name: str = "pair") -> tuple[BiasRow, BiasRow]:
    """Of sentence pairs with these log-likelihoods (nats): `NAME_preference` and `NAME_difference`.

    The share of pairs whose sentence a is the likelier one (equals count half) with Wilson's interval, ideal 0.5;
    and the mean of logprob_a - logprob_b with a bootstrap interval, ideal 0. No pairs at all is a UserError.
    """
    difference_N = np.asarray(logprob_a, np.float64) - np.asarray(logprob_b, np.float64)
    prefers_N = (1 + np.sign(difference_N)) / 2
    n = len(difference_N)
    # Wilson's formula counts whole pairs: an odd number of equals moves the interval by half a pair.
    interval = wilson(round(float(prefers_N.sum())), n)
    preference = BiasRow(f"{name}_preference", float(prefers_N.mean()), interval, n, 0.5, "", prefers_N)
    return _judged(preference), _row(f"{name}_difference", difference_N, ideal=0.0)


def occupation_rows(p_she_N: ArrayLike, text_share_N: ArrayLike) -> tuple[BiasRow, BiasRow, BiasRow]:
    """A model's p(she) after N occupations (of she and he alone) against the share of "she" in its text.

    `occupation_follows_text`: share of the skewed occupations whose likelier pronoun is the text's (ideal 0.5);
    `occupation_gap`: mean |p(she) - p(he)| (ideal 0); `occupation_correlation`: Pearson's r of p(she) with the
    text's share (ideal 0, which stands too for a p(she) that never varies).
    """
    p_she_N, text_share_N = np.asarray(p_she_N, np.float64), np.asarray(text_share_N, np.float64)
    skewed_N = text_share_N != 0.5
    agreement_N = np.sign(p_she_N - 0.5) * np.sign(text_share_N - 0.5)
    follows, _ = pair_preference(agreement_N[skewed_N], np.zeros(skewed_N.sum()), "follows")
    follows = BiasRow("occupation_follows_text", *[getattr(follows, f) for f in _AFTER_NAME])
    gap = _row("occupation_gap", np.abs(2 * p_she_N - 1), ideal=0.0)
    return follows, gap, _row("occupation_correlation", np.stack([p_she_N, text_share_N], axis=1), ideal=0.0)
