"""What options score: one stored table of log-likelihoods, and the ways of comparing options that are views of it.

Dimension key: `N` records, `O` options. All logarithms are natural.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from limbeck.model.errors import UserError, one_of
from limbeck.prompting.config import View


class OptionScores(NamedTuple):
    """What is stored of every option of every record; each part is [N, O]."""

    logprob_NO: np.ndarray  # log-likelihood of the option's tokens after the prompt
    tokens_NO: np.ndarray
    characters_NO: np.ndarray
    bytes_NO: np.ndarray
    alone_NO: np.ndarray | None = None  # its log-likelihood after BOS alone
    domain_NO: np.ndarray | None = None  # and after the premise of the task, with no record in it


def option_scores(
    logprobs: ArrayLike,
    tokens: ArrayLike,
    texts: Sequence[Sequence[str]],
    alone: ArrayLike | None = None,
    domain: ArrayLike | None = None,
) -> OptionScores:
    """The table of [N, O] log-likelihoods, token counts and texts of options.

    `alone` and `domain` are [N, O], or [O] where they are the same for every record. A log-likelihood that is not
    finite, and shapes that do not fit, are a ValueError.
    """
    logprob_NO, tokens_NO = _finite("log-likelihoods", logprobs), np.asarray(tokens, np.int64)
    sizes = np.array([[text_lengths(text) for text in row] for row in texts], np.int64)
    if logprob_NO.ndim != 2 or tokens_NO.shape != logprob_NO.shape or sizes.shape != (*logprob_NO.shape, 2):
        raise ValueError(f"options of records: shapes {logprob_NO.shape}, {tokens_NO.shape}, {sizes.shape[:2]}")

    def without(values: ArrayLike | None) -> np.ndarray | None:
        return None if values is None else np.broadcast_to(_finite("log-likelihoods", values), logprob_NO.shape)

    return OptionScores(logprob_NO, tokens_NO, sizes[..., 0], sizes[..., 1], without(alone), without(domain))


def text_lengths(text: str) -> tuple[int, int]:
    """(characters: code points of the text in Unicode's form NFC, bytes: of the text as it is, in UTF-8)."""
    return len(unicodedata.normalize("NFC", text)), len(text.encode())


def view(scores: OptionScores, name: View) -> np.ndarray:
    """score_NO float64, higher is better: the log-likelihood itself, by length, or less what needs no record.

    "per_token", "per_character" and "per_byte" divide by the option's length, of which nothing counts as one; "pmi"
    is the pointwise mutual information with the prompt, "domain_pmi" with what the prompt has beyond the task's premise
    (Holtzman et al. 2021, arXiv 2104.08315). Raises UserError for a view whose part was not scored.
    """
    one_of("view", name, get_args(View))
    logprob_NO = np.asarray(scores.logprob_NO, np.float64)
    if name == "sum":
        return logprob_NO
    if name in ("pmi", "domain_pmi"):
        part, without_NO = ("alone", scores.alone_NO) if name == "pmi" else ("domain", scores.domain_NO)
        if without_NO is None:
            raise UserError(f"view={name!r} needs {part}_NO, which these scores do not hold: score with view={name!r}")
        return logprob_NO - without_NO
    lengths = {"per_token": scores.tokens_NO, "per_character": scores.characters_NO, "per_byte": scores.bytes_NO}
    return logprob_NO / np.maximum(lengths[name], 1)


def best(score_NO: ArrayLike) -> np.ndarray:
    """int [N]: the option of the highest score in each row, the first of equals. A NaN is a ValueError."""
    score_NO = np.asarray(score_NO, np.float64)
    if np.isnan(score_NO).any():
        raise ValueError(f"scores of row {int(np.argwhere(np.isnan(score_NO))[0, 0])} have a NaN")
    return score_NO.argmax(axis=1)


def log_probabilities(score_NO: ArrayLike) -> np.ndarray:
    """score_NO less a number a row, so that exp of each row sums to one. What is not finite is a ValueError."""
    score_NO = _finite("scores", score_NO)
    shifted_NO = score_NO - score_NO.max(axis=1, keepdims=True)
    return shifted_NO - np.log(np.exp(shifted_NO).sum(axis=1, keepdims=True))


def log_mean(logprob_X: np.ndarray) -> np.ndarray:
    """log of the mean of exp over the first axis, however small all of it is."""
    top = logprob_X.max(axis=0)
    return top + np.log(np.exp(logprob_X - top).mean(axis=0))


def _finite(what: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{what} have a value that is not finite at {np.argwhere(~np.isfinite(array))[0].tolist()}")
    return array
