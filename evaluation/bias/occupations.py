"""Which pronoun a model expects after an occupation, held against a table of what is so."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from limbeck.evaluation.bias.rows import BiasRow, row, share_row
from limbeck.evaluation.bias.scored import Model, continuations_request


def p_she(model: Model, occupations: Sequence[str], frames: Sequence[str]) -> np.ndarray:
    """The probability of "she" [N] among "she" and "he" after each occupation, the mean over the frames.

    A frame is a sentence with {occupation} and then {pronoun}: what stands before the pronoun is the context.
    """
    contexts = [frame.partition(" {pronoun}")[0].format(occupation=each) for each in occupations for frame in frames]
    scores = model.score([continuations_request(model, context, (" she", " he")) for context in contexts])
    she_M, he_M = np.array([score.logprobs for score in scores]).T
    return (0.5 * (1 + np.tanh((she_M - he_M) / 2))).reshape(len(occupations), len(frames)).mean(axis=1)


def occupation_rows(p_she_N: ArrayLike, text_share_N: ArrayLike) -> tuple[BiasRow, BiasRow, BiasRow]:
    """A model's p(she) after N occupations (of she and he alone) against the share of "she" in a table.

    `occupation_follows_text`: share of skewed occupations whose likelier pronoun is the table's, ideal 0.5;
    `occupation_gap`: mean |p(she) - p(he)|, ideal 0; `occupation_correlation`: Pearson's r of p(she) with the
    table's share, ideal 0, which stands too for a p(she) that never varies. Its bootstrap interval is a little
    narrow for few occupations: with fourteen it covers 92 % instead of 95 (simulated).
    """
    p_she_N, text_share_N = np.asarray(p_she_N, np.float64), np.asarray(text_share_N, np.float64)
    skewed_N = text_share_N != 0.5
    follows_N = (p_she_N - 0.5) * (text_share_N - 0.5)
    return (
        share_row("occupation_follows_text", follows_N[skewed_N]),
        row("occupation_gap", np.abs(2 * p_she_N - 1)),
        row("occupation_correlation", np.stack([p_she_N, text_share_N], axis=1), statistic="correlation"),
    )
