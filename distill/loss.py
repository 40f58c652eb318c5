"""How far a student's next-token distribution is from its teacher's.

p is the teacher's distribution and q the student's, both softmax(logits / temperature) in float32. Every loss
is sum(weights * d) / sum(weights) over tokens, where d sums over the vocabulary; a token of weight 0 may hold
any garbage. Every loss carries the factor temperature^2: the gradient of a divergence between softened
distributions falls as 1 / temperature^2, and the factor keeps it in proportion to a hard-label term
(Hinton et al. 2015, arXiv 1503.02531). The teacher receives no gradient.

These are the losses whole, for logits that are there; training goes over the same divergences in chunks (`chunked.py`).

Dimension key: `B` batch, `T` length, `V` vocabulary.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from limbeck.distill.config import DistilConfig

Scalar = jax.Array | float
TokenDivergence = Callable[[jax.Array, jax.Array], jax.Array]  # log q_..V, log p_..V -> d_..


def forward_kl(
    student_BTV: jax.Array, teacher_BTV: jax.Array, weights_BT: jax.Array, *, temperature: Scalar = 1.0
) -> jax.Array:
    """KL(p || q), teacher first: the student must cover what the teacher finds possible."""
    return _mean(_forward_kl, student_BTV, teacher_BTV, weights_BT, temperature)


def reverse_kl(
    student_BTV: jax.Array, teacher_BTV: jax.Array, weights_BT: jax.Array, *, temperature: Scalar = 1.0
) -> jax.Array:
    """KL(q || p), student first: the student keeps to what the teacher finds likely."""
    return _mean(_reverse_kl, student_BTV, teacher_BTV, weights_BT, temperature)


def generalized_jsd(
    student_BTV: jax.Array,
    teacher_BTV: jax.Array,
    weights_BT: jax.Array,
    *,
    temperature: Scalar = 1.0,
    beta: float = 0.5,
) -> jax.Array:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (GKD, arXiv 2306.13649).

    At beta 0 and 1 that expression is 0 for any student, so the limits of it over beta (1 - beta) take its
    place: beta 0 is forward_kl and beta 1 is reverse_kl. beta is a number known at tracing; outside [0, 1]
    it is a UserError.
    """
    of_tokens = divergence(DistilConfig("generalized_jsd", beta=beta))
    return _mean(of_tokens, student_BTV, teacher_BTV, weights_BT, temperature)


def skewed_forward_kl(
    student_BTV: jax.Array,
    teacher_BTV: jax.Array,
    weights_BT: jax.Array,
    *,
    temperature: Scalar = 1.0,
    skew: float = 0.1,
) -> jax.Array:
    """KL(p || skew p + (1 - skew) q): at most log(1 / skew) for a token that the student rules out.

    DistiLLM (Ko et al. 2024, arXiv 2402.03898). skew is a number known at tracing; outside [0, 1) it is a UserError.
    """
    of_tokens = divergence(DistilConfig("skewed_forward_kl", skew=skew))
    return _mean(of_tokens, student_BTV, teacher_BTV, weights_BT, temperature)


def skewed_reverse_kl(
    student_BTV: jax.Array,
    teacher_BTV: jax.Array,
    weights_BT: jax.Array,
    *,
    temperature: Scalar = 1.0,
    skew: float = 0.1,
) -> jax.Array:
    """KL(q || (1 - skew) p + skew q): at most log(1 / skew) for a token that the teacher rules out.

    DistiLLM (Ko et al. 2024, arXiv 2402.03898). skew is a number known at tracing; outside [0, 1) it is a UserError.
    """
    of_tokens = divergence(DistilConfig("skewed_reverse_kl", skew=skew))
    return _mean(of_tokens, student_BTV, teacher_BTV, weights_BT, temperature)


def total_variation(
    student_BTV: jax.Array, teacher_BTV: jax.Array, weights_BT: jax.Array, *, temperature: Scalar = 1.0
) -> jax.Array:
    """Half of sum |p - q|, in [0, temperature^2]."""
    return _mean(_total_variation, student_BTV, teacher_BTV, weights_BT, temperature)


def teacher_cross_entropy(
    student_BTV: jax.Array, teacher_BTV: jax.Array, weights_BT: jax.Array, *, temperature: Scalar = 1.0
) -> jax.Array:
    """-sum p log q: forward_kl plus the teacher's entropy, so the same gradient but never 0."""
    return _mean(_teacher_cross_entropy, student_BTV, teacher_BTV, weights_BT, temperature)


def divergence(config: DistilConfig) -> TokenDivergence:
    """The divergence that the config names, of each token: from log q and log p, [..., V], to [...]."""
    beta, skew = config.beta, config.skew
    table: dict[str, TokenDivergence] = {
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "generalized_jsd": _forward_kl if beta == 0 else _reverse_kl if beta == 1 else partial(_generalized_jsd, beta),
        "skewed_forward_kl": partial(_skewed_kl, skew) if skew else _forward_kl,
        "skewed_reverse_kl": partial(_skewed_reverse_kl, skew) if skew else _reverse_kl,
        "total_variation": _total_variation,
        "teacher_cross_entropy": _teacher_cross_entropy,
    }
    return table[config.objective]


def log_softmax(logits_V: jax.Array, temperature: Scalar) -> jax.Array:
    """log softmax(logits / temperature) in float32."""
    return jax.nn.log_softmax(logits_V.astype(jnp.float32) / temperature, axis=-1)


def mean_divisor(weights: jax.Array) -> jax.Array:
    """The sum of the weights; 1 for padding alone, whose loss is then 0."""
    total = jnp.sum(weights)
    return jnp.where(total == 0, 1.0, total)


def _expected(p_V: jax.Array, x_V: jax.Array) -> jax.Array:
    """sum p x of log p; what has no probability at all adds nothing, whatever x is."""
    return jnp.sum(jnp.where(p_V == -jnp.inf, 0.0, jnp.exp(p_V) * x_V), axis=-1)


def _forward_kl(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return _expected(p_V, p_V - q_V)


def _reverse_kl(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return _forward_kl(p_V, q_V)


def _generalized_jsd(beta: float, q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    m_V = jnp.logaddexp(p_V + jnp.log(beta), q_V + jnp.log1p(-beta))
    return beta * _forward_kl(m_V, p_V) + (1 - beta) * _forward_kl(m_V, q_V)


def _skewed_kl(skew: float, q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return _forward_kl(jnp.logaddexp(p_V + jnp.log(skew), q_V + jnp.log1p(-skew)), p_V)


def _skewed_reverse_kl(skew: float, q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return _skewed_kl(skew, p_V, q_V)


def _total_variation(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(p_V) - jnp.exp(q_V)), axis=-1)


def _teacher_cross_entropy(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return -_expected(p_V, q_V)


def _mean(
    of_tokens: TokenDivergence,
    student_BTV: jax.Array,
    teacher_BTV: jax.Array,
    weights_BT: jax.Array,
    temperature: Scalar,
) -> jax.Array:
    weights_BT = weights_BT.astype(jnp.float32)
    # Replaced before anything is computed from it, else 0 * inf would reach the value or the gradient.
    real_BT1 = (weights_BT != 0)[..., None]
    student_BTV = jnp.where(real_BT1, student_BTV, 0)
    teacher_BTV = jnp.where(real_BT1, jax.lax.stop_gradient(teacher_BTV), 0)
    d_BT = of_tokens(log_softmax(student_BTV, temperature), log_softmax(teacher_BTV, temperature))
    return temperature**2 * jnp.sum(weights_BT * d_BT) / mean_divisor(weights_BT)
