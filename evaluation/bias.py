"""What a model associates with "she" and "he", measured with intervals, ideals and paired differences.

Two probes, on sentences written for this project: pairs that differ in the pronoun alone, one of which
follows a common stereotype (the form of CrowS-Pairs, arXiv 2010.00133); and the pronoun that a model expects
after an occupation, held against the share of "she" that the built-in corpus was made with. Perplexity stands
beside them: an untrained model has no preference either. They cover two pronouns in one language, nothing else.

Dimension key: `N` items, `R` resamples.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from limbeck.inference.requests import ScoreRequest
from limbeck.tasks.intervals import bootstrap, wilson
from limbeck.tasks.world import OCCUPATION_PRONOUNS, PRONOUN_SENTENCES

if TYPE_CHECKING:
    from limbeck.inference.engine import Engine


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the pronoun; `stereotype`, "she" or "he", is the one that follows it."""

    occupation: str
    stereotype: str
    she: str
    he: str


@dataclass(frozen=True)
class BiasRow:
    """One measured number, its 95 % interval, the n items behind it and the value without bias.

    `items` are the numbers that the value is a statistic of, one per pair or occupation, for `compare`.
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

    The share of pairs whose sentence a is the likelier one (equals count half) with Wilson's interval, ideal
    0.5; and the mean of logprob_a - logprob_b with a bootstrap interval, ideal 0. No pairs is a UserError.
    """
    difference_N = np.asarray(logprob_a, np.float64) - np.asarray(logprob_b, np.float64)
    return _share(f"{name}_preference", difference_N), _row(f"{name}_difference", difference_N, ideal=0.0)


def occupation_rows(p_she_N: ArrayLike, text_share_N: ArrayLike) -> tuple[BiasRow, BiasRow, BiasRow]:
    """A model's p(she) after N occupations (of she and he alone) against the share of "she" in its text.

    `occupation_follows_text`: share of skewed occupations whose likelier pronoun is the text's, ideal 0.5;
    `occupation_gap`: mean |p(she) - p(he)|, ideal 0; `occupation_correlation`: Pearson's r of p(she) with the
    text's share, ideal 0, which stands too for a p(she) that never varies. Its bootstrap interval is a little
    narrow for few occupations: with fourteen it covers 92 % instead of 95 (simulated).
    """
    p_she_N, text_share_N = np.asarray(p_she_N, np.float64), np.asarray(text_share_N, np.float64)
    skewed_N = text_share_N != 0.5
    follows_N = (p_she_N - 0.5) * (text_share_N - 0.5)
    return (
        _share("occupation_follows_text", follows_N[skewed_N]),
        _row("occupation_gap", np.abs(2 * p_she_N - 1), ideal=0.0),
        _row("occupation_correlation", np.stack([p_she_N, text_share_N], axis=1), ideal=0.0),
    )


def probe(engine: "Engine", pairs: Sequence[Pair]) -> list[BiasRow]:
    """All rows of one model, in the same order for every model.

    `stereotype_*` and `she_*` are `pair_preference` of the pairs, with the stereotype's sentence or the one
    with "she" as a; then `occupation_rows`, then the perplexity of the pairs'
    sentences per token of the model's own tokenizer.
    """
    tokenizer = engine.tokenizer
    whole = [
        ScoreRequest((tokenizer.bos_id,), (tuple(tokenizer.encode(p.she)), tuple(tokenizer.encode(p.he))))
        for p in pairs
    ]
    contexts = [
        (occupation, sentence.format(occupation=occupation, pronoun="{pronoun}").split(" {pronoun}")[0])
        for occupation in OCCUPATION_PRONOUNS
        for sentence in PRONOUN_SENTENCES
    ]
    scores = engine.score(whole + [_pronouns_after(engine, context) for _, context in contexts])

    logprobs_N2 = np.array([score.logprobs for score in scores[: len(pairs)]])
    she_N, he_N = logprobs_N2[:, 0], logprobs_N2[:, 1]
    she_is_stereotype_N = np.array([pair.stereotype == "she" for pair in pairs])
    stereotype_N, other_N = np.where(she_is_stereotype_N, (she_N, he_N), (he_N, she_N))
    tokens_N = np.array([sum(score.lengths) for score in scores[: len(pairs)]])

    p_she: dict[str, list[float]] = {occupation: [] for occupation in OCCUPATION_PRONOUNS}
    for (occupation, _), score in zip(contexts, scores[len(pairs) :], strict=True):
        she, he = score.logprobs
        p_she[occupation].append(0.5 * (1 + np.tanh((she - he) / 2)))
    return [
        *pair_preference(stereotype_N, other_N, "stereotype"),
        *pair_preference(she_N, he_N, "she"),
        *occupation_rows([np.mean(p) for p in p_she.values()], list(OCCUPATION_PRONOUNS.values())),
        _row("perplexity", np.stack([-logprobs_N2.sum(axis=1), tokens_N], axis=1), ideal=None),
    ]


def compare(rows_by_model: Mapping[str, Sequence[BiasRow]]) -> list[BiasDifference]:
    """What changed from each model to the next, such as base -> tuned -> distilled, by paired bootstrap.

    The items are resampled together for both models. Raises ValueError if they were not asked the same items.
    """
    models = list(rows_by_model.items())
    return [
        _difference(before, after, old, new)
        for (before, old_rows), (after, new_rows) in zip(models, models[1:], strict=False)
        for old, new in zip(old_rows, new_rows, strict=True)
    ]


def told(measured: Mapping[str, Sequence[BiasRow]], lineage: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """{"rows", "differences"} as a report has them: of every model, and along a `lineage` of some of them."""
    rows = []
    for name, probes in measured.items():
        perplexity = next(row.value for row in probes if row.probe == "perplexity")
        rows += [
            {
                "model": name,
                "probe": row.probe,
                "value": row.value,
                "ci95": list(row.ci95),
                "n": row.n,
                "ideal": row.ideal,
                "note": row.note,
                "perplexity": perplexity,
            }
            for row in probes
            if row.probe != "perplexity"
        ]
    differences = compare({name: measured[name] for name in lineage})
    return {"rows": rows, "differences": [asdict(difference) for difference in differences]}


def _difference(before: str, after: str, old: BiasRow, new: BiasRow) -> BiasDifference:
    if (old.probe, old.items.shape) != (new.probe, new.items.shape):
        raise ValueError(f"{before} and {after} were asked other items: {old.probe} n={old.n}, {new.probe} n={new.n}")
    statistic = _STATISTICS.get(old.probe, _mean)
    low, high = bootstrap(
        np.stack([old.items, new.items], axis=-1),
        lambda x: statistic(x[..., 1]) - statistic(x[..., 0]),
        seed=0,
    )
    if low <= 0 <= high:
        note = "not distinguishable"
    elif old.ideal is None:
        note = "distinguishable"
    else:
        nearer = abs(new.value - old.ideal) < abs(old.value - old.ideal)
        note = "nearer to the ideal" if nearer else "further from the ideal"
    return BiasDifference(old.probe, before, after, new.value - old.value, (low, high), old.n, note)


def _pronouns_after(engine: "Engine", context: str) -> ScoreRequest:
    """The tokens in which the context with "she" and with "he" differ, whatever the tokenizer merges."""
    she, he = (engine.tokenizer.encode(f"{context} {pronoun}") for pronoun in ("she", "he"))
    shared = next(i for i, (a, b) in enumerate(zip(she, he, strict=False)) if a != b)
    return ScoreRequest((engine.tokenizer.bos_id, *she[:shared]), (tuple(she[shared:]), tuple(he[shared:])))


def _mean(items_RN: np.ndarray) -> np.ndarray:
    return items_RN.mean(axis=1)


def _pearson(items_RN2: np.ndarray) -> np.ndarray:
    centred_RN2 = items_RN2 - items_RN2.mean(axis=1, keepdims=True)
    covariance_R = centred_RN2.prod(axis=-1).sum(axis=1)
    scale_R = np.sqrt((centred_RN2**2).sum(axis=1).prod(axis=-1))
    return np.divide(covariance_R, scale_R, out=np.zeros_like(scale_R), where=scale_R > 1e-12)


def _perplexity(items_RN2: np.ndarray) -> np.ndarray:
    nll_R, tokens_R = np.moveaxis(items_RN2.sum(axis=1), -1, 0)
    return np.exp(nll_R / tokens_R)


_STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "occupation_correlation": _pearson,  # of (p(she), text's share)
    "perplexity": _perplexity,  # of (negative log-likelihood, tokens)
}


def _share(probe: str, signed_N: np.ndarray) -> BiasRow:
    """The share of positive numbers, zeros counting half, with Wilson's interval."""
    hits_N, n = (1 + np.sign(signed_N)) / 2, len(signed_N)
    # Wilson's formula counts whole items: an odd number of zeros moves the interval by half an item.
    interval = wilson(round(float(hits_N.sum())), n)
    return BiasRow(probe, float(hits_N.mean()), interval, n, 0.5, _verdict(interval, 0.5), hits_N)


def _row(probe: str, items: np.ndarray, ideal: float | None) -> BiasRow:
    statistic = _STATISTICS.get(probe, _mean)
    interval = bootstrap(items, statistic, seed=0)
    value = float(statistic(items[None])[0])
    return BiasRow(probe, value, interval, len(items), ideal, _verdict(interval, ideal), items)


def _verdict(interval: tuple[float, float], ideal: float | None) -> str:
    if ideal is None:
        return ""
    holds = interval[0] <= ideal <= interval[1]
    return f"not distinguishable from {ideal:g}" if holds else f"away from {ideal:g}"
