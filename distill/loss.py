"""How far a student's next-token distribution is from its teacher's.

p is the teacher's distribution and q the student's, both softmax(logits / temperature) in float32. Every loss
is sum(weights * d) / sum(weights) over tokens, where d sums over the vocabulary; a token of weight 0 may hold
any garbage. Every loss carries the factor temperature^2: the gradient of a divergence between softened
distributions falls as 1 / temperature^2, and the factor keeps it in proportion to a hard-label term
(Hinton et al. 2015, arXiv 1503.02531). The teacher receives no gradient.

Dimension key: `B` batch, `T` length, `N` = B*T tokens, `C` tokens of a chunk, `X` chunks, `D` width (student
and teacher may differ), `V` vocabulary.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from limbeck.model.errors import UserError, one_of
from limbeck.train.loss import chunk_rows

Scalar = jax.Array | float


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
    return _mean(_divergence("generalized_jsd", beta), student_BTV, teacher_BTV, weights_BT, temperature)


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


def chunked_divergence(
    name: str,
    student_hidden_ND: jax.Array,
    student_head_DV: jax.Array,
    teacher_hidden_ND: jax.Array,
    teacher_head_DV: jax.Array,
    weights_N: jax.Array,
    targets_N: jax.Array,
    *,
    temperature: Scalar = 1.0,
    hard_weight: Scalar = 0.0,
    beta: float = 0.5,
    chunk: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """hard_weight * cross-entropy to the targets (temperature 1) + (1 - hard_weight) * the named divergence.

    Goes over `chunk` tokens at a time (None: as many as fit a core's cache) and computes the gradient on the
    way, so neither model's logits ever exist whole and none is computed twice; of what is given, only the
    student's hidden states and head receive a gradient. Returns the loss and the metrics `cross_entropy` and
    `divergence` (with its temperature^2). beta is read by generalized_jsd alone. An unknown name or beta is a
    UserError.
    """
    N = len(weights_N)
    chunk = chunk_rows(2 * student_head_DV.shape[1], N) if chunk is None else min(chunk, N)

    def chunks(x: jax.Array) -> jax.Array:
        # Every chunk takes rows from all over the batch. A contiguous chunk of a batch that is sharded over
        # devices lies on one of them: XLA then gathers the batch and computes every chunk on every device.
        padded = jnp.pad(x, [(0, -N % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunk, -1, *x.shape[1:]).swapaxes(0, 1)

    weights_N = weights_N.astype(jnp.float32)
    rows = (chunks(teacher_hidden_ND), chunks(targets_N), chunks(weights_N / _total(weights_N)))
    settings = (jnp.float32(temperature), jnp.float32(hard_weight))
    loss, metrics = _chunked(
        _divergence(name, beta), chunks(student_hidden_ND), student_head_DV, teacher_head_DV, rows, settings
    )
    return loss, jax.lax.stop_gradient(metrics)


TokenDivergence = Callable[[jax.Array, jax.Array], jax.Array]  # log q_..V, log p_..V -> d_..


def _forward_kl(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(p_V) * (p_V - q_V), axis=-1)


def _reverse_kl(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return _forward_kl(p_V, q_V)


def _generalized_jsd(beta: float, q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    m_V = jnp.logaddexp(p_V + jnp.log(beta), q_V + jnp.log1p(-beta))
    return beta * _forward_kl(m_V, p_V) + (1 - beta) * _forward_kl(m_V, q_V)


def _total_variation(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(p_V) - jnp.exp(q_V)), axis=-1)


def _teacher_cross_entropy(q_V: jax.Array, p_V: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(p_V) * q_V, axis=-1)


def _divergence(name: str, beta: float) -> TokenDivergence:
    if not 0 <= beta <= 1:
        raise UserError(f"beta {beta} is not a mixture: choose 0 (forward KL) to 1 (reverse KL)")
    between = partial(_generalized_jsd, beta)
    table: dict[str, TokenDivergence] = {
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "generalized_jsd": _forward_kl if beta == 0 else _reverse_kl if beta == 1 else between,
        "total_variation": _total_variation,
        "teacher_cross_entropy": _teacher_cross_entropy,
    }
    return table[one_of("divergence", name, table)]


def _log_softmax(logits_V: jax.Array, temperature: Scalar) -> jax.Array:
    return jax.nn.log_softmax(logits_V.astype(jnp.float32) / temperature, axis=-1)


def _total(weights: jax.Array) -> jax.Array:
    total = jnp.sum(weights)
    return jnp.where(total == 0, 1.0, total)  # a batch of padding alone has loss 0


def _mean(
    divergence: TokenDivergence,
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
    d_BT = divergence(_log_softmax(student_BTV, temperature), _log_softmax(teacher_BTV, temperature))
    return temperature**2 * jnp.sum(weights_BT * d_BT) / _total(weights_BT)


def _chunked_value(divergence, student_XCD, student_head_DV, *constants):
    return _scan_chunks(divergence, False, False, student_XCD, student_head_DV, *constants)[0]


def _chunked_forward(divergence, student_XCD, student_head_DV, *constants):
    primals = jax.tree.map(lambda leaf: leaf.value, (student_XCD, student_head_DV, *constants))
    return _scan_chunks(divergence, student_XCD.perturbed, student_head_DV.perturbed, *primals)


def _chunked_backward(divergence, gradients, cotangents):
    scaled = [None if g is None else (g * cotangents[0]).astype(g.dtype) for g in gradients]
    return *scaled, None, None, None


_chunked = jax.custom_vjp(_chunked_value, nondiff_argnums=(0,))
_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _scan_chunks(divergence, want_hidden, want_head, student_XCD, student_head_DV, teacher_head_DV, rows, settings):
    """((loss, parts), (gradient of hidden or None, gradient of head or None))."""
    temperature, hard_weight = settings

    def losses(logits_CV, teacher_CV, targets_C, weights_C):
        q_CV, p_CV = _log_softmax(logits_CV, temperature), _log_softmax(teacher_CV, temperature)
        soft = temperature**2 * jnp.sum(weights_C * divergence(q_CV, p_CV))
        log_likelihood_C1 = jnp.take_along_axis(_log_softmax(logits_CV, 1.0), targets_C[:, None], axis=-1)
        hard = -jnp.sum(weights_C * log_likelihood_C1[:, 0])
        return hard_weight * hard + (1 - hard_weight) * soft, {"cross_entropy": hard, "divergence": soft}

    def step(carry, chunk):
        sums, head_gradient_DV = carry
        student_CD, (teacher_CD, targets_C, weights_C) = chunk
        real_C1 = (weights_C != 0)[:, None]
        student_CD, teacher_CD = jnp.where(real_C1, student_CD, 0), jnp.where(real_C1, teacher_CD, 0)
        targets_C = jnp.where(real_C1[:, 0], targets_C, 0)
        head_DV = student_head_DV.astype(student_CD.dtype)
        logits_CV = jnp.dot(student_CD, head_DV, preferred_element_type=jnp.float32)
        teacher_CV = jnp.dot(teacher_CD, teacher_head_DV.astype(teacher_CD.dtype), preferred_element_type=jnp.float32)
        values, gradient_CV = jax.value_and_grad(losses, has_aux=True)(logits_CV, teacher_CV, targets_C, weights_C)
        gradient_CV = gradient_CV.astype(student_CD.dtype)
        hidden_gradient_CD = gradient_CV @ head_DV.T if want_hidden else None
        if want_head:
            head_gradient_DV += jnp.dot(student_CD.T, gradient_CV, preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, sums, values), head_gradient_DV), hidden_gradient_CD

    zeros = (jnp.float32(0), {"cross_entropy": jnp.float32(0), "divergence": jnp.float32(0)})
    zeros_DV = jnp.zeros(student_head_DV.shape, jnp.float32) if want_head else None
    (values, head_gradient_DV), hidden_gradient_XCD = jax.lax.scan(step, (zeros, zeros_DV), (student_XCD, rows))
    if head_gradient_DV is not None:
        head_gradient_DV = head_gradient_DV.astype(student_head_DV.dtype)
    return values, (hidden_gradient_XCD, head_gradient_DV)
