"""The distilling loss over the student's logits a chunk at a time, whatever the teacher's distribution comes from.

Of a chunk the core has the student's log-probabilities; how far they are from the teacher is a function that a
`Source` brings along, with the data that it reads of each token: the hidden states of a live teacher or of several, or
what a cache holds (`sources.py`).

Dimension key: `N` tokens, `X` chunks, `G` groups of devices with rows of their own (1 without a mesh), `C` tokens of
one chunk and group, `D` width, `V` vocabulary (a head has its labels as V), `K` entries of a distribution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from limbeck.distill.loss import Scalar, log_softmax, mean_divisor
from limbeck.model.layers import softcap
from limbeck.train.loss import chunk_rows, fetched, in_chunks, scan_groups, settled, with_outer

# (the student's log q_CV at the temperature, or log q_CK of the source's entries, the rows of the chunk, the constants)
# -> d_C. It closes over no array.
Distance = Callable[[jax.Array, Any, Any], jax.Array]


class Source(NamedTuple):
    """Where the teacher's distribution of each token comes from.

    `rows` are arrays [N, ...] of which the distance is given a chunk (zeros for a token that does not count),
    `constants` what it is given besides. Neither receives a gradient. `taught_N` says which tokens have a teacher's
    distribution at all; `vocab_size` how many of the student's logits are compared, from the first on; `columns` how
    many float32 numbers the distance holds for a token. A distance that reads but some entries of the student's
    distribution names them in `ids_NK`, and is given these alone: that takes far less time.
    """

    distance: Distance
    rows: Any
    constants: Any
    taught_N: jax.Array
    vocab_size: int
    columns: int
    ids_NK: jax.Array | None = None


class _Plan(NamedTuple):
    """What is known at tracing."""

    distance: Distance
    vocab_size: int
    softcap: float | None
    soft_alone: bool  # the hard-label term is measured, and moves nothing
    plain: bool  # temperature 1, and all of the student's logits are compared: one softmax serves both terms


def chunked_loss(
    source: Source,
    hidden_ND: jax.Array,
    head_DV: jax.Array,
    targets_N: jax.Array,
    weights_N: jax.Array,
    *,
    temperature: Scalar = 1.0,
    hard_weight: Scalar = 0.0,
    cap: float | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """hard_weight * cross-entropy to the targets (temperature 1) + (1 - hard_weight) * the distance * temperature^2.

    Both terms are sums by weight over the sum of all weights; for a token without a teacher's distribution the
    distance is 0, and the cross-entropy counts. That is over all of the student's logits, which `cap` caps.
    Temperature and hard weight may be traced; where they are numbers, what they make needless is left out.

    Goes over `chunk` tokens of all devices at a time (None: as many as `chunk_rows` says) and computes the gradient on
    the way, so no model's logits ever exist whole and none is computed twice; of what is given, only the student's
    hidden states and head receive a gradient, and each costs nothing where it is not asked for. Returns the loss and
    the metrics `cross_entropy` and `divergence` (with its temperature^2).
    """
    N, V = len(weights_N), head_DV.shape[1]
    chunk = chunk_rows(V + source.columns, N) if chunk is None else min(chunk, N)
    weights_N = weights_N.astype(jnp.float32)
    share_N = weights_N / mean_divisor(weights_N)
    own = (targets_N, share_N, jnp.where(source.taught_N, share_N, 0.0))
    plan = _Plan(
        source.distance,
        source.vocab_size,
        cap,
        soft_alone=isinstance(hard_weight, int | float) and hard_weight == 0,
        plain=isinstance(temperature, int | float) and temperature == 1 and source.vocab_size == V,
    )
    loss, metrics = _chunked(
        plan,
        in_chunks(hidden_ND, chunk),
        head_DV,
        jax.tree.map(lambda x_N: in_chunks(x_N, chunk), (own, (source.ids_NK, source.rows))),
        source.constants,
        (jnp.float32(temperature), jnp.float32(hard_weight)),
    )
    return loss, jax.lax.stop_gradient(metrics)


def _chunked_value(plan, hidden_XGCD, head_DV, *others):
    return _scan_chunks(plan, False, False, hidden_XGCD, head_DV, *others)[0]


def _chunked_forward(plan, hidden_XGCD, head_DV, *others):
    primals = jax.tree.map(lambda leaf: leaf.value, (hidden_XGCD, head_DV, *others))
    return _scan_chunks(plan, hidden_XGCD.perturbed, head_DV.perturbed, *primals)


def _chunked_backward(plan, gradients, cotangents):
    scaled = [None if g is None else (g * cotangents[0]).astype(g.dtype) for g in gradients]
    return *scaled, None, None, None


_chunked = jax.custom_vjp(_chunked_value, nondiff_argnums=(0,))
_chunked.defvjp(_chunked_forward, _chunked_backward, symbolic_zeros=True)


def _scan_chunks(plan: _Plan, want_hidden, want_head, hidden_XGCD, head_DV, rows, constants, settings):
    """((loss, parts), (gradient of hidden or None, gradient of head or None))."""
    temperature, hard_weight = settings
    own_head_DV = fetched(head_DV, hidden_XGCD.dtype)
    constants = jax.tree.map(lambda x: fetched(x, x.dtype) if jnp.ndim(x) == 2 else x, constants)

    def losses(logits_CV, own, ids_CK, rows):
        targets_C, weights_C, soft_C = own
        targets_C1 = targets_C[:, None]
        logits_CV = softcap(logits_CV, plan.softcap)
        if plan.plain and ids_CK is not None:
            log_q_CE = _picked(logits_CV, jnp.concatenate([ids_CK, targets_C1], -1), temperature)
            log_q, target_C1 = log_q_CE[:, :-1], log_q_CE[:, -1:]
        elif plan.plain:
            log_q = log_softmax(logits_CV, temperature)
            target_C1 = jnp.take_along_axis(log_q, targets_C1, axis=-1)
        else:
            target_C1 = _picked(logits_CV, targets_C1, jnp.float32(1))
            log_q = logits_CV[:, : plan.vocab_size]
            log_q = log_softmax(log_q, temperature) if ids_CK is None else _picked(log_q, ids_CK, temperature)
        hard = -jnp.sum(weights_C * target_C1[:, 0])
        soft = temperature**2 * jnp.sum(soft_C * plan.distance(log_q, rows, constants))
        loss = soft if plan.soft_alone else hard_weight * hard + (1 - hard_weight) * soft
        return loss, {"cross_entropy": hard, "divergence": soft}

    def step(carry, chunk):
        sums, head_gradient_DV = carry
        hidden_CD, ((targets_C, weights_C, soft_C), (ids_CK, rows)) = chunk
        hidden_CD, targets_C = _real(weights_C, (hidden_CD, targets_C))
        ids_CK, rows = _real(soft_C, (ids_CK, rows))
        own = (targets_C, weights_C, soft_C)
        logits_CV = jnp.dot(hidden_CD, own_head_DV, preferred_element_type=jnp.float32)
        values, gradient_CV = jax.value_and_grad(losses, has_aux=True)(logits_CV, own, ids_CK, rows)
        gradient_CV = gradient_CV.astype(hidden_CD.dtype)
        hidden_gradient_CD = gradient_CV @ own_head_DV.T if want_hidden else None
        if want_head:
            head_gradient_DV = with_outer(head_gradient_DV, hidden_CD, gradient_CV)
        return (jax.tree.map(jnp.add, sums, values), head_gradient_DV), hidden_gradient_CD

    zeros = (jnp.float32(0), {"cross_entropy": jnp.float32(0), "divergence": jnp.float32(0)})
    zeros_DV = jnp.zeros(head_DV.shape, jnp.float32) if want_head else None
    (values, head_gradient_DV), hidden_gradient_XGCD = scan_groups(step, (zeros, zeros_DV), (hidden_XGCD, rows))
    return values, settled(hidden_gradient_XGCD, head_gradient_DV, head_DV.dtype)


@jax.custom_vjp
def _picked(logits_CV: jax.Array, ids_CK: jax.Array, temperature: jax.Array) -> jax.Array:
    """log softmax(logits / temperature) of some entries; the exponentials of the value serve the gradient as well."""
    return _picked_forward(logits_CV, ids_CK, temperature)[0]


def _picked_forward(logits_CV, ids_CK, temperature):
    logits_CV = logits_CV / temperature
    top_C1 = logits_CV.max(-1, keepdims=True)
    exp_CV = jnp.exp(logits_CV - top_C1)
    total_C1 = exp_CV.sum(-1, keepdims=True)
    picked_CK = jnp.take_along_axis(logits_CV, ids_CK, axis=-1) - top_C1 - jnp.log(total_C1)
    return picked_CK, (exp_CV, total_C1, ids_CK, temperature)


def _picked_backward(kept, gradient_CK):
    exp_CV, total_C1, ids_CK, temperature = kept
    gradient_CK = gradient_CK / temperature
    gradient_CV = exp_CV * (-gradient_CK.sum(-1, keepdims=True) / total_C1)
    return gradient_CV.at[jnp.arange(len(ids_CK))[:, None], ids_CK].add(gradient_CK), None, None


_picked.defvjp(_picked_forward, _picked_backward)


def _real(weights_C: jax.Array, arrays: Any) -> Any:
    """The arrays with zeros for the tokens of weight 0, which may hold any garbage."""

    def clean(x: jax.Array) -> jax.Array:
        return jnp.where((weights_C != 0).reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))

    return jax.tree.map(clean, arrays)
