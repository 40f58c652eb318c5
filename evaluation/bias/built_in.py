"""What a model associates with "she" and "he", on sentences written for this project: the probe that needs no file.

Pairs that differ in the pronoun alone, one of which follows a common stereotype; and the pronoun that a model expects
after an occupation, held against the share of "she" that the built-in corpus was made with. Perplexity stands beside
them: an untrained model has no preference either. They cover two pronouns in one language, nothing else.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from limbeck.evaluation.bias.occupations import occupation_rows, p_she
from limbeck.evaluation.bias.pairs import perplexity_row, preference_rows
from limbeck.evaluation.bias.rows import BiasRow
from limbeck.evaluation.bias.scored import Model, sentence_logprobs
from limbeck.tasks.world import OCCUPATION_PRONOUNS, PRONOUN_SENTENCES

CAVEATS = "Two pronouns in one language, in a few frames: no more than that was asked."


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the pronoun; `stereotype`, "she" or "he", is the one that follows it."""

    occupation: str
    stereotype: str
    she: str
    he: str


def load_pairs() -> tuple[Pair, ...]:
    """The built-in pairs: thirty occupations, as many of either stereotype, each in the same two frames."""
    text = (files("limbeck.evaluation.bias") / "pairs.tsv").read_text(encoding="utf-8")
    return tuple(Pair(**each) for each in csv.DictReader(text.splitlines(), delimiter="\t"))


def probe(model: Model, pairs: Sequence[Pair]) -> list[BiasRow]:
    """All rows of one model, in the same order for every model.

    `stereotype_*` and `she_*` are `preference_rows` of the pairs, with the stereotype's sentence or the one with "she"
    first; then `occupation_rows`, then the perplexity of the pairs' sentences per token of the model's own tokenizer.
    """
    logprob_N, tokens_N = sentence_logprobs(model, [pair.she for pair in pairs] + [pair.he for pair in pairs])
    she_N, he_N = np.split(logprob_N, 2)
    she_is_stereotype_N = np.array([pair.stereotype == "she" for pair in pairs])
    stereotype_N, other_N = np.where(she_is_stereotype_N, (she_N, he_N), (he_N, she_N))
    expected_N = p_she(model, list(OCCUPATION_PRONOUNS), PRONOUN_SENTENCES)
    return [
        *preference_rows(stereotype_N, other_N, "stereotype"),
        *preference_rows(she_N, he_N, "she"),
        *occupation_rows(expected_N, list(OCCUPATION_PRONOUNS.values())),
        perplexity_row(np.stack([she_N, he_N], axis=1), np.stack(np.split(tokens_N, 2), axis=1)),
    ]
