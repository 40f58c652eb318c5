"""One answer out of several: votes of drawn answers, and the mean of what several prompts say.

Dimension key: `N` records, `S` drawn answers of each, `O` options. Answers are one where `normalise` makes them equal,
and go out as the first of them was written. An empty answer, which nothing could be read from, votes only where all
are empty. Of equals the one that appeared first wins.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from limbeck.model.errors import UserError
from limbeck.prompting.scores import log_mean, log_probabilities
from limbeck.tasks.intervals import bootstrap_counts, share, some
from limbeck.tasks.label_metrics import normalise


def majority(answers_NS: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The commonest answer of each record (self-consistency, Wang et al. 2022, arXiv 2203.11171).

    A record without any answer, not even an empty one, is a ValueError.
    """
    return weighted(answers_NS, [[0.0] * len(answers) for answers in answers_NS])


def weighted(answers_NS: Sequence[Sequence[str]], logprobs_NS: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """The answer of the greatest summed probability, each drawn one adding exp of its log-probability (ibid.).

    Only differences of log-probabilities within a record matter, so that none is too small. As longer answers are
    less likely, the caller may divide by lengths. A record without answers, NaN and infinity are a ValueError.
    """
    return tuple(_vote(answers, logprobs) for answers, logprobs in zip(answers_NS, logprobs_NS, strict=True))


def ensemble(scores: Sequence[ArrayLike]) -> np.ndarray:
    """Log of the mean probability [N, O] that several prompts give an option. No prompts are a ValueError."""
    if not len(scores):
        raise ValueError("an ensemble without prompts")
    return log_mean(np.stack([log_probabilities(score_NO) for score_NO in scores]))


def accuracy_by_samples(
    answers_NS: Sequence[Sequence[str]], right_N: Sequence[str], counts: Sequence[int], seed: int = 0
) -> list[dict[str, Any]]:
    """[{"samples", "value", "ci95", "n"}]: how often the majority of so many of the drawn answers is right.

    The value is exact, in closed form and without drawing: the mean of `majority` over all ordered choices of so many
    of a record's S answers, that is over all subsets, where answers with equal votes win equally often. At S it is
    therefore not quite `majority`'s own accuracy, whose ties hang on one order. The interval is over records:
    Wilson's where each is right always or never, else the bootstrap's by `seed`. Raises UserError for a count that is
    not from 1 to S, and for no records.
    """
    some(len(right_N))
    drawn = min(len(answers) for answers in answers_NS)
    for count in counts:
        if not 1 <= count <= drawn:
            raise UserError(f"accuracy of {count} samples: each record has {drawn}; ask for 1 to {drawn}")
    chance_NS = np.array([
        _chances(*_counts(answers, right))[:drawn] for answers, right in zip(answers_NS, right_N, strict=True)
    ])  # fmt: skip
    rows = []
    for count in counts:
        chance_N = chance_NS[:, count - 1]
        value = float(chance_N.mean())
        if np.isin(chance_N, (0.0, 1.0)).all():
            ci95 = share(chance_N).ci95
        else:
            ci95 = bootstrap_counts(len(chance_N), lambda drawn_RN, x_N=chance_N: drawn_RN @ x_N / len(x_N), seed)
        rows.append({"samples": count, "value": value, "ci95": list(ci95), "n": len(chance_N)})
    return rows


def shares(answers: Sequence[str], logprobs: Sequence[float]) -> dict[str, float]:
    """{an answer to one record, as it was first written: its share of the weighted vote}, in the order they appeared.

    Empty where all answers are. Raises as `weighted` does.
    """
    sums = _sums(answers, logprobs)
    total = math.fsum(sums.values()) or 1.0
    return {answer: each / total for answer, each in sums.items()}


def _vote(answers: Sequence[str], logprobs: Sequence[float]) -> str:
    sums = _sums(answers, logprobs)
    return max(sums, key=lambda answer: sums[answer]) if sums else answers[0]


def _sums(answers: Sequence[str], logprobs: Sequence[float]) -> dict[str, float]:
    """{answer: its votes, of which each is at most one}; an empty answer has none."""
    if not answers or len(answers) != len(logprobs):
        raise ValueError(f"a record's votes: {len(answers)} answers, {len(logprobs)} log-probabilities")
    if not all(logprob < math.inf for logprob in logprobs):
        raise ValueError(f"votes of no size: log-probabilities {list(logprobs)}")
    votes: dict[str, list[float]] = {}
    written: dict[str, str] = {}
    for answer, logprob in zip(answers, logprobs, strict=True):
        if key := normalise(answer):
            written.setdefault(key, answer)
            votes.setdefault(key, []).append(logprob)
    top = max((max(parts) for parts in votes.values()), default=0.0)
    # fsum is exact, so that a tie is one in whatever order its parts came.
    return {
        written[key]: math.fsum(math.exp(x - top) if x > -math.inf else 0.0 for x in parts)
        for key, parts in votes.items()
    }


def _counts(answers: Sequence[str], right: str) -> tuple[int, tuple[int, ...], int, bool]:
    """(votes for the right answer, sorted votes for each other one, empty answers, whether empty is right)."""
    votes: dict[str, int] = {}
    for answer in answers:
        key = normalise(answer)
        votes[key] = votes.get(key, 0) + 1
    empty, hits = votes.pop("", 0), votes.pop(normalise(right), 0)
    return hits, tuple(sorted(votes.values())), empty, not normalise(right)


@functools.lru_cache(maxsize=4096)
def _chances(hits: int, others: tuple[int, ...], empty: int, empty_is_right: bool) -> np.ndarray:
    """[S]: the chance that the right answer wins among 1 to S of all the answers, drawn without replacement.

    Choices are counted by polynomials, whose coefficient of x^k is the number of those of k answers: with v votes for
    the right answer, and fewer for each other one, or v too for `tied` of them, of which it beats all with chance
    1/(tied + 1). A polynomial is held as its value at x = 2^width, more than any coefficient: the product of two is
    that of two whole numbers, and exact.
    """
    answers = hits + sum(others) + empty
    width = answers + 1

    def choices(among: int, most: int) -> int:
        return sum(math.comb(among, k) << k * width for k in range(min(among, most) + 1))

    won_by_tied = [0] * (len(others) + 1)
    if empty_is_right:
        won_by_tied[0] = choices(empty, empty)
    for votes in range(1, hits + 1):
        by_tied = [choices(empty, empty) * math.comb(hits, votes) << votes * width]
        for other in others:
            fewer, equal = choices(other, votes - 1), math.comb(other, votes) << votes * width
            by_tied = [a * fewer + b * equal for a, b in zip([*by_tied, 0], [0, *by_tied], strict=True)]
        won_by_tied = [a + b for a, b in zip(won_by_tied, by_tied, strict=True)]

    def chance(k: int) -> float:
        ways = [won >> k * width & (1 << width) - 1 for won in won_by_tied]
        return float(sum(Fraction(way, tied + 1) for tied, way in enumerate(ways) if way) / math.comb(answers, k))

    return np.array([chance(k) for k in range(1, answers + 1)])
