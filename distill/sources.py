"""Where the teacher's distribution of a token comes from: live teachers, or what a cache holds of it.

Each gives a `Source`, whose distance from the student is a divergence (`loss.divergence`) over the whole vocabulary, or
over the entries that a cache has.

Dimension key: that of `chunked.py`, and `K` entries of a cached distribution.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from limbeck.distill.chunked import Source
from limbeck.distill.config import Cache
from limbeck.distill.loss import Scalar, TokenDivergence, log_softmax
from limbeck.model.layers import softcap


class Teacher(NamedTuple):
    """What a live teacher brings to the loss: its last hidden states, its head, the cap on its logits, its share."""

    hidden_ND: jax.Array
    head_DV: jax.Array
    cap: float | None = None
    share: float = 1.0


def live(
    divergence: TokenDivergence,
    teachers: Sequence[Teacher],
    taught_N: jax.Array,
    vocab_size: int,
    temperature: Scalar,
) -> Source:
    """The mean of the teachers' probabilities at the temperature, by their shares (which sum to 1), over the first
    `vocab_size` tokens; what a model has beyond them is left out of its softmax."""
    of_each = tuple((teacher.cap, teacher.share) for teacher in teachers)
    return Source(
        partial(_from_live, divergence, of_each, vocab_size),
        [teacher.hidden_ND for teacher in teachers],
        (temperature, [teacher.head_DV.astype(teacher.hidden_ND.dtype) for teacher in teachers]),
        taught_N,
        vocab_size,
        sum(teacher.head_DV.shape[1] for teacher in teachers),
    )


def cached(
    divergence: TokenDivergence,
    cache: Cache,
    ids_NK: jax.Array,
    logprobs_NK: jax.Array,
    vocab_size: int,
    temperature: Scalar,
) -> Source:
    """K entries of the teacher's distribution, by their ids and log-probabilities at temperature 1.

    `topk`: what the K weigh is made to sum to 1 (at the temperature, which scales all log-probabilities alike), and the
    student is pulled towards too sharp a distribution. `topk_tail`: all other tokens together are one more entry, of
    the student as well. `sampled`: shares of draws, log(count / draws); the gradient is right on the average (Anshumann
    et al. 2025, arXiv 2503.16870). An unused slot is -inf; a token with nothing but unused slots has no teacher.
    """
    K = ids_NK.shape[1]
    taught_N = (logprobs_NK > -jnp.inf).any(-1)
    if cache == "topk_tail" and vocab_size > K:
        rows = (ids_NK, logprobs_NK)
        return Source(partial(_from_tail, divergence), rows, None, taught_N, vocab_size, vocab_size)
    return Source(partial(_from_entries, divergence), logprobs_NK, temperature, taught_N, vocab_size, 0, ids_NK)


def _from_live(divergence, of_each, vocab_size, q_CV, hidden, constants):
    temperature, heads = constants

    def log_probabilities(hidden_CD, head_DV, cap):
        logits_CV = jnp.dot(hidden_CD, head_DV.astype(hidden_CD.dtype), preferred_element_type=jnp.float32)
        return log_softmax(softcap(logits_CV, cap)[:, :vocab_size], temperature)

    log_p = [
        log_probabilities(hidden_CD, head_DV, cap)
        for hidden_CD, head_DV, (cap, _) in zip(hidden, heads, of_each, strict=True)
    ]
    return divergence(q_CV, mixed(log_p, [share for _, share in of_each]))


def mixed(log_p: Sequence[jax.Array], shares: Sequence[float]) -> jax.Array:
    """The log of the mean of probabilities, by shares that sum to 1."""
    if len(log_p) == 1:
        return log_p[0]
    return reduce(jnp.logaddexp, [x + jnp.log(share) for x, share in zip(log_p, shares, strict=True)])


def _from_entries(divergence, q_CK, logprobs_CK, temperature):
    return divergence(q_CK, log_softmax(logprobs_CK, temperature))


def _from_tail(divergence, q_CV, rows, constants):
    ids_CK, logprobs_CK = rows[0], rows[1].astype(jnp.float32)
    vocab_size = q_CV.shape[1]
    rest_C1 = 1 - jnp.exp(logprobs_CK).sum(-1, keepdims=True)
    rest_C1 = jnp.where(rest_C1 > 0, jnp.log(jnp.maximum(rest_C1, jnp.finfo(jnp.float32).tiny)), -jnp.inf)
    # The student's rest is summed, not 1 minus the others: of a sure student that would be rounding alone.
    used_CK = jnp.where(logprobs_CK > -jnp.inf, ids_CK, vocab_size)
    others_CV = q_CV.at[jnp.arange(len(ids_CK))[:, None], used_CK].set(-jnp.inf, mode="drop")
    q_rest_C1 = jax.nn.logsumexp(others_CV, axis=-1, keepdims=True)
    q_CK = jnp.take_along_axis(q_CV, ids_CK, axis=-1)
    p_CE = log_softmax(jnp.concatenate([logprobs_CK, rest_C1], -1), 1.0)
    return divergence(jnp.concatenate([q_CK, q_rest_C1], -1), p_CE)
