"""The distilling loss of heads whose outputs are no distribution over options: a yes or no for each label, or a number.

Dimension key: `N` texts (tokens of which one a text counts), `D` width, `C` outputs of the head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from limbeck.distill.loss import Scalar, TokenDivergence, mean_divisor
from limbeck.distill.sources import Teacher, mixed


class Texts(NamedTuple):
    """What the student makes of the texts, what they are said to be, and what each counts."""

    hidden_ND: jax.Array
    head_DC: jax.Array
    values_NC: jax.Array
    weights_N: jax.Array


def label_loss(
    divergence: TokenDivergence,
    teachers: Sequence[Teacher],
    taught_N: jax.Array,
    texts: Texts,
    temperature: Scalar,
    hard_weight: Scalar,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The divergence between yes and no, of probabilities sigmoid(score / temperature), summed over labels.

    Several teachers: the mean of their probabilities. The hard term is the binary cross-entropy to the values, 0 or 1,
    summed over labels. Weights, temperature^2 and metrics as in `chunked_loss`.
    """

    def yes_no(scores_NC: jax.Array) -> jax.Array:
        softened = scores_NC / temperature
        return jnp.stack([jax.nn.log_sigmoid(softened), jax.nn.log_sigmoid(-softened)], -1)

    scores_NC, values_NC, theirs, real_N, soft_N = _measured(teachers, taught_N, texts)
    log_p = mixed([yes_no(each_NC) for each_NC in theirs], [each.share for each in teachers])
    soft = temperature**2 * (soft_N * divergence(yes_no(scores_NC), log_p).sum(-1)).sum()
    hard = (real_N * (jax.nn.softplus(scores_NC) - values_NC * scores_NC).sum(-1)).sum()
    return hard_weight * hard + (1 - hard_weight) * soft, {"cross_entropy": hard, "divergence": soft}


def number_loss(
    teachers: Sequence[Teacher], taught_N: jax.Array, texts: Texts, hard_weight: Scalar
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The squared distance to the teacher's number, or the mean of several; the hard term is that to the value.

    Weights as in `chunked_loss`; the metrics are `squared_error` and `divergence`.
    """
    scores_NC, values_NC, theirs, real_N, soft_N = _measured(teachers, taught_N, texts)
    teacher_NC = sum(each.share * each_NC for each, each_NC in zip(teachers, theirs, strict=True))
    soft = (soft_N * jnp.square(scores_NC - teacher_NC).sum(-1)).sum()
    hard = (real_N * jnp.square(scores_NC - values_NC).sum(-1)).sum()
    return hard_weight * hard + (1 - hard_weight) * soft, {"squared_error": hard, "divergence": soft}


class _Measured(NamedTuple):
    """Scores, values and the teachers' scores, zero where they do not count; each text's share of the two terms."""

    scores_NC: jax.Array
    values_NC: jax.Array
    theirs: list[jax.Array]
    real_N: jax.Array
    soft_N: jax.Array


def _measured(teachers: Sequence[Teacher], taught_N: jax.Array, texts: Texts) -> _Measured:
    weights_N = texts.weights_N.astype(jnp.float32)
    real_N = weights_N / mean_divisor(weights_N)
    soft_N = jnp.where(taught_N, real_N, 0.0)

    def scores(hidden_ND: jax.Array, head_DC: jax.Array, share_N: jax.Array) -> jax.Array:
        clean_ND = jnp.where(share_N[:, None] != 0, hidden_ND, jnp.zeros((), hidden_ND.dtype))
        return jnp.dot(clean_ND, head_DC.astype(hidden_ND.dtype), preferred_element_type=jnp.float32)

    values_NC = jnp.where(real_N[:, None] != 0, texts.values_NC.astype(jnp.float32), 0.0)
    theirs = [jax.lax.stop_gradient(scores(each.hidden_ND, each.head_DV, soft_N)) for each in teachers]
    return _Measured(scores(texts.hidden_ND, texts.head_DC, real_N), values_NC, theirs, real_N, soft_N)
