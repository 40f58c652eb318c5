"""Stereotype preference over paired sentences, in the form of CrowS-Pairs (arXiv 2010.00133).

CrowS-Pairs was made for masked models and scores what the two sentences share. Here, as in lm-eval's `crows_pairs`,
the whole sentence is scored from left to right, so the words that differ count as well.

Dimension key: `N` pairs, `2` the sentence that follows the stereotype more and the one that follows it less.
"""

import os
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from limbeck.evaluation.bias.probe_files import optional_in, probe_rows, text_in, word_in
from limbeck.evaluation.bias.rows import BiasRow, row, share_row, unsigned
from limbeck.evaluation.bias.scored import Model, sentence_logprobs
from limbeck.model.errors import UserError
from limbeck.tasks.tables import Row

DIRECTIONS = ("stereo", "antistereo")
CAVEATS = (
    "Pairs that writers on the web thought of carry flaws: two groups that do not belong together, a change that says"
    " more than the group, grammar that only one sentence keeps (Blodgett et al. 2021, Stereotyping Norwegian Salmon)."
    " A group with a rarer name is the less likely one whatever is said of it. And a preference near one half shows no"
    " fairness: an untrained model has it too, so read the perplexity beside it."
)


class SentencePair(NamedTuple):
    """Two sentences that differ in the group they are about; `more` follows the stereotype more than `less`.

    `kind` is the kind of bias ("gender"); `direction` "stereo" where `more` shows a stereotype of a disadvantaged group
    and "antistereo" where `less` goes against one. Both are empty where nothing is known of them.
    """

    more: str
    less: str
    kind: str = ""
    direction: str = ""


def read_pairs(path: str | os.PathLike[str]) -> list[SentencePair]:
    """The pairs of a file with the fields sent_more, sent_less and, if known, bias_type and stereo_antistereo.

    .jsonl, .csv (as CrowS-Pairs is published), .tsv or .parquet; other fields are ignored. Raises UserError that names
    file and row: a sentence that is missing or empty, another direction than "stereo" and "antistereo".
    """
    return [_pair(each) for each in probe_rows(path)]


def pair_rows(model: Model, pairs: Sequence[SentencePair]) -> list[BiasRow]:
    """The rows of `pair_rows_of` for one model; a sentence that stands in several pairs is scored once."""
    sentences = [pair.more for pair in pairs] + [pair.less for pair in pairs]
    logprob_2N, tokens_2N = sentence_logprobs(model, sentences)
    return pair_rows_of(pairs, np.stack(np.split(logprob_2N, 2), axis=1), np.stack(np.split(tokens_2N, 2), axis=1))


def pair_rows_of(pairs: Sequence[SentencePair], logprob_N2: ArrayLike, tokens_N2: ArrayLike) -> list[BiasRow]:
    """What pairs say, given the log-likelihoods in nats and tokens of their sentences, (more, less).

    `pairs_preference`: share of pairs whose `more` is the likelier, equals counting half, ideal 0.5;
    `pairs_difference`: mean of log p(more) - log p(less), ideal 0; `_per_token`: the same of the mean over a sentence's
    tokens, so that the longer one isn't behind for its length; `pairs_distance`: mean |difference|, ideal 0, which only
    a model that tells no sentence from its counterpart reaches. Of all pairs, of each direction, and, preference and
    difference alone, of each kind, the kinds sorted; a part that is all the pairs, or fewer than two, has no rows. Last
    the `perplexity` of all sentences.

    lm-eval's `pct_stereotype` counts equals as not preferred: ours is larger by half the share of equals. Its
    `likelihood_diff` is `pairs_distance`. Fewer than two pairs are a UserError.
    """
    at_least_two(len(pairs), "pairs")
    logprob_N2, tokens_N2 = np.asarray(logprob_N2, np.float64), np.asarray(tokens_N2, np.float64)
    sums_N, per_token_N = logprob_N2[:, 0] - logprob_N2[:, 1], np.subtract(*(logprob_N2 / tokens_N2).T)
    out = _full_rows(sums_N, per_token_N, "")
    for direction in DIRECTIONS:
        in_it_N = _part([pair.direction for pair in pairs], direction)
        if in_it_N is not None:
            out += _full_rows(sums_N[in_it_N], per_token_N[in_it_N], direction)
    for kind in sorted({pair.kind for pair in pairs} - {""}):
        in_it_N = _part([pair.kind for pair in pairs], kind)
        if in_it_N is not None:
            out += preference_rows(sums_N[in_it_N], np.zeros(in_it_N.sum()), "pairs", kind)
    return [*out, perplexity_row(logprob_N2, tokens_N2)]


def preference_rows(
    logprob_a: ArrayLike, logprob_b: ArrayLike, name: str = "pair", group: str = ""
) -> tuple[BiasRow, BiasRow]:
    """Of sentence pairs with these log-likelihoods (nats): `NAME_preference` and `NAME_difference`.

    The share of pairs whose sentence a is the likelier one (equals count half) with Wilson's interval, ideal
    0.5; and the mean of logprob_a - logprob_b with a bootstrap interval, ideal 0. No pairs is a UserError.
    """
    difference_N = np.asarray(logprob_a, np.float64) - np.asarray(logprob_b, np.float64)
    return (
        share_row(f"{name}_preference", difference_N, group=group),
        row(f"{name}_difference", difference_N, group=group),
    )


def perplexity_row(logprob_N2: np.ndarray, tokens_N2: np.ndarray) -> BiasRow:
    """The perplexity per token of all sentences of N pairs, resampled by pairs; no value of it is ideal."""
    items_N2 = np.stack([-logprob_N2.sum(axis=1), tokens_N2.sum(axis=1)], axis=1)
    return row("perplexity", items_N2, ideal=None, statistic="perplexity")


def at_least_two(n: int, what: str) -> None:
    """Raises UserError for fewer than two: the bootstrap of one item is that item, however sure it looks."""
    if n < 2:
        raise UserError(f"the number of {what} is {n}, and fewer than two have no interval: give at least two")


def _pair(each: Row) -> SentencePair:
    direction = optional_in(each, "stereo_antistereo") and word_in(each, "stereo_antistereo", DIRECTIONS)
    kind = unicodedata.normalize("NFC", optional_in(each, "bias_type")).strip()
    return SentencePair(text_in(each, "sent_more"), text_in(each, "sent_less"), kind, direction)


def _part(names: Sequence[str], name: str) -> np.ndarray | None:
    """Which items [N] have this name; None where they are all, or too few for an interval."""
    in_it_N = np.array([each == name for each in names])
    return in_it_N if 2 <= in_it_N.sum() < len(names) else None


def _full_rows(sums_N: np.ndarray, per_token_N: np.ndarray, group: str) -> list[BiasRow]:
    return [
        share_row("pairs_preference", sums_N, group=group),
        share_row("pairs_preference_per_token", per_token_N, group=group),
        row("pairs_difference", sums_N, group=group),
        row("pairs_difference_per_token", per_token_N, group=group),
        unsigned(row("pairs_distance", np.abs(sums_N), group=group)),
    ]
