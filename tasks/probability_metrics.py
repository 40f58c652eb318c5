"""How good a model's probabilities are. Dimension key: `N` records or documents, `R` resamples, `B` bins."""

import numpy as np
from numpy.typing import ArrayLike

from limbeck.tasks.intervals import Score, bootstrap_counts, some

_LARGEST_NLL = 700.0  # exp of more is infinite, which no report can hold


def calibration_error(confidences: ArrayLike, hits: ArrayLike, bins: int = 15) -> Score:
    """The expected calibration error: the mean |hit rate - confidence| over bins, weighted by their records.

    confidences [N] in [0, 1] and hits [N], right or wrong; bins of equal width, (0, 1/B] and so on (Guo et al. 2017,
    arXiv 1706.04599). Chance alone makes it greater than 0, and resampling greater once more; so the interval is
    the bootstrap's mirrored about the value (the basic one), never below 0 and never short of the value. No records
    is a UserError.
    """
    confidences_N, hits_N = np.asarray(confidences, np.float64), np.asarray(hits, np.float64)
    if confidences_N.shape != hits_N.shape or confidences_N.ndim != 1:
        raise ValueError(f"one confidence a hit: shapes {confidences_N.shape} and {hits_N.shape}")
    if not ((confidences_N >= 0) & (confidences_N <= 1)).all():
        raise ValueError("a confidence is a probability, from 0 to 1")
    n = some(confidences_N.size)
    bin_N = np.maximum(np.ceil(confidences_N * bins) - 1, 0).astype(np.int64)
    gap_NB = np.where(bin_N[:, None] == np.arange(bins), (hits_N - confidences_N)[:, None], 0.0)

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        return np.abs(counts_RN @ gap_NB).sum(axis=1) / n

    value = float(statistic(np.ones((1, n)))[0])
    low, high = bootstrap_counts(n, statistic)
    return Score(value, (max(0.0, 2 * value - high), max(value, 2 * value - low)), n)


def perplexity(nll: ArrayLike, tokens: ArrayLike) -> Score:
    """exp of the mean negative log-likelihood of a token, with a bootstrap interval over documents.

    nll [N] is each document's sum in nats, tokens [N] how many it has, at least 1. Less is better; it hangs on the
    tokenizer. No documents is a UserError.
    """
    nll_N, tokens_N = np.asarray(nll, np.float64), np.asarray(tokens, np.float64)
    if nll_N.shape != tokens_N.shape or nll_N.ndim != 1:
        raise ValueError(f"one sum and one number of tokens a document: shapes {nll_N.shape} and {tokens_N.shape}")
    if not np.isfinite(nll_N).all() or not (tokens_N >= 1).all():
        raise ValueError("each document has a finite negative log-likelihood and at least one token")
    n = some(nll_N.size)

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum((counts_RN @ nll_N) / (counts_RN @ tokens_N), _LARGEST_NLL))

    return Score(float(statistic(np.ones((1, n)))[0]), bootstrap_counts(n, statistic), n)
