"""Loss functions: `(params, batch, key) -> (loss, metrics)`, and the cross-entropy that never holds all logits."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.chosen import filled_outside
from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.transformer import head_kernel, hidden

Array = jax.Array | np.ndarray
Batch = Mapping[str, Array]  # tokens_BT targets_BT weights_BT positions_BT segments_BT, for some heads values_BTC
Metrics = dict[str, jax.Array]
# The loss is a mean, and metrics["weight"] the sum of the weights that it was divided by, so that portions of a batch
# can be put together; the other metrics are means by the same weights.
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]

_CHUNK_BYTES = 8 << 20  # of float32 logits at a time: on CPU 1 to 40 MiB differ by a tenth, 8 is among the best


def chunk_rows(vocab_size: int, rows: int) -> int:
    """How many rows of logits to hold at once."""
    return max(1, min(rows, _CHUNK_BYTES // (4 * vocab_size)))


class Terms(NamedTuple):
    """What is done to the plain cross-entropy: a cap on the logits, smoothed labels, the square of log Z."""

    softcap: float | None = None
    smoothing: float = 0.0
    z_loss: float = 0.0


PLAIN = Terms()


def cross_entropy(
    hidden_ND: jax.Array, head_DV: jax.Array, targets_N: jax.Array, weights_N: jax.Array, terms: Terms = PLAIN
) -> tuple[jax.Array, jax.Array]:
    """(objective, cross-entropy), summed over rows by weight, float32, in chunks: no [N, V] array exists.

    The objective is `(1 - s) * -log p(target) + s * mean_V(-log p) + z * log(Z)^2`, with label smoothing s (Szegedy et
    al. 2016, arXiv 1512.00567) and z-loss z (PaLM, arXiv 2204.02311, section 5); only it has a gradient. The gradient
    is computed beside the value, while a chunk's probabilities are at hand, and only for the inputs that are
    differentiated: a frozen head costs nothing. A row of weight 0 adds exactly nothing, whatever it holds.
    """
    rows = hidden_ND.shape[0]
    chunk = chunk_rows(head_DV.shape[1], rows)

    def chunks(x: jax.Array) -> jax.Array:
        # Every chunk takes rows from all over the batch: contiguous ones would each lie on one of several devices.
        padded = jnp.pad(x, [(0, -rows % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunk, -1, *x.shape[1:]).swapaxes(0, 1)

    return _nll(chunks(hidden_ND), head_DV, chunks(targets_N), chunks(weights_N.astype(jnp.float32)), terms)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _nll(hidden_XCD, head_DV, targets_XC, weights_XC, terms):
    return _scan_chunks(hidden_XCD, head_DV, targets_XC, weights_XC, terms, False, False)[0]


def _nll_forward(hidden_XCD, head_DV, targets_XC, weights_XC, terms):
    sums, *gradients = _scan_chunks(
        hidden_XCD.value,
        head_DV.value,
        targets_XC.value,
        weights_XC.value,
        terms,
        hidden_XCD.perturbed,
        head_DV.perturbed,
    )
    return sums, gradients


def _nll_backward(terms, gradients, cotangents):
    scaled = [None if g is None else (g * cotangents[0]).astype(g.dtype) for g in gradients]
    return (*scaled, None, None)


_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


def _scan_chunks(hidden_XCD, head_DV, targets_XC, weights_XC, terms, want_hidden, want_head):
    """((objective, cross-entropy), gradient of hidden or None, gradient of head or None), C rows at a time."""
    vocab_size = head_DV.shape[1]

    def step(carry, chunk):
        objective, loss, head_gradient_DV = carry
        hidden_CD, targets_C, weights_C = chunk
        logits_CV = jnp.dot(hidden_CD, head_DV.astype(hidden_CD.dtype), preferred_element_type=jnp.float32)
        slope_CV = 1.0
        if terms.softcap is not None:
            tanh_CV = jnp.tanh(logits_CV / terms.softcap)
            logits_CV, slope_CV = terms.softcap * tanh_CV, 1.0 - jnp.square(tanh_CV)
        top_C1 = logits_CV.max(-1, keepdims=True)
        exp_CV = jnp.exp(logits_CV - top_C1)
        total_C1 = exp_CV.sum(-1, keepdims=True)
        picked_C = jnp.take_along_axis(logits_CV, targets_C[:, None], -1)[:, 0]
        log_z_C = jnp.log(total_C1[:, 0]) + top_C1[:, 0]
        nll_C = own_C = log_z_C - picked_C
        if terms.smoothing:
            own_C = (1 - terms.smoothing) * nll_C + terms.smoothing * (log_z_C - logits_CV.mean(-1))
        if terms.z_loss:
            own_C = own_C + terms.z_loss * jnp.square(log_z_C)
        loss = loss + jnp.where(weights_C > 0, weights_C * nll_C, 0.0).sum()
        objective = objective + jnp.where(weights_C > 0, weights_C * own_C, 0.0).sum()
        hidden_gradient_CD = None
        if want_hidden or want_head:
            hit_CV = jnp.arange(vocab_size) == targets_C[:, None]
            scale_C1 = (weights_C / total_C1[:, 0])[:, None]
            pull_C1 = (1 - terms.smoothing) * total_C1  # what the target's probability is measured against, times Z
            push_CV = exp_CV * (1 + 2 * terms.z_loss * log_z_C[:, None]) if terms.z_loss else exp_CV
            if terms.smoothing:
                push_CV = push_CV - terms.smoothing / vocab_size * total_C1
            gradient_CV = jnp.where(hit_CV, push_CV - pull_C1, push_CV) * scale_C1 * slope_CV
            gradient_CV = jnp.where(weights_C[:, None] > 0, gradient_CV, 0.0).astype(hidden_CD.dtype)
            if want_hidden:
                hidden_gradient_CD = gradient_CV @ head_DV.T.astype(hidden_CD.dtype)
            if want_head:
                clean_CD = jnp.where(weights_C[:, None] > 0, hidden_CD, 0.0)
                update_DV = jnp.dot(clean_CD.T, gradient_CV, preferred_element_type=jnp.float32)
                head_gradient_DV = head_gradient_DV + update_DV
        return (objective, loss, head_gradient_DV), hidden_gradient_CD

    zero_DV = jnp.zeros(head_DV.shape, jnp.float32) if want_head else None
    (objective, loss, head_gradient_DV), hidden_gradient_XCD = jax.lax.scan(
        step, (jnp.float32(0), jnp.float32(0), zero_DV), (hidden_XCD, targets_XC, weights_XC)
    )
    if head_gradient_DV is not None:
        head_gradient_DV = head_gradient_DV.astype(head_DV.dtype)
    return (objective, loss), hidden_gradient_XCD, head_gradient_DV


def token_loss(config: ModelConfig, *, smoothing: float = 0.0, z_loss: float = 0.0) -> LossFn:
    """Mean cross-entropy of the model's head over tokens, each by its weight (padding and prompts weigh 0).

    The head is the vocabulary's, or a classifier's (`config.labels`): there a target is a label's index, at the last
    token of each text. `smoothing` and `z_loss` are terms of what is minimised (see `cross_entropy`); the metric `loss`
    is the plain cross-entropy in nats, `weight` the sum of weights.
    """
    terms = Terms(None if config.labels else config.logit_softcap, smoothing, z_loss)

    def loss_fn(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        params = filled_outside(params)  # once, for a head that is the embedding too
        head_DV = head_kernel(params)
        hidden_ND, weights_N = _tokens(config, params, batch)
        targets_N = jnp.asarray(batch["targets_BT"]).reshape(-1)
        objective, total = cross_entropy(hidden_ND, head_DV, targets_N, weights_N, terms)
        return _means(objective, total, weights_N)

    return loss_fn


def multi_label_loss(config: ModelConfig) -> LossFn:
    """Mean over texts of the sum over labels of the binary cross-entropy to `values_BTC`, each 0 or 1.

    Metrics: `loss`, `weight`, as in `token_loss`.
    """

    def per_row(scores_NC: jax.Array, values_NC: jax.Array) -> jax.Array:
        return (jax.nn.softplus(scores_NC) - values_NC * scores_NC).sum(-1)

    return _value_loss(config, per_row)


def regression_loss(config: ModelConfig) -> LossFn:
    """Mean over texts of the squared distance to the number in `values_BTC` (C = 1). Metrics: `loss`, `weight`."""

    def per_row(scores_NC: jax.Array, values_NC: jax.Array) -> jax.Array:
        return jnp.square(scores_NC - values_NC).sum(-1)

    return _value_loss(config, per_row)


def _value_loss(config: ModelConfig, per_row: Callable[[jax.Array, jax.Array], jax.Array]) -> LossFn:
    def loss_fn(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        hidden_ND, weights_N = _tokens(config, params, batch)
        score_DC = head_kernel(params).astype(hidden_ND.dtype)
        scores_NC = jnp.dot(hidden_ND, score_DC, preferred_element_type=jnp.float32)
        values_NC = jnp.asarray(batch["values_BTC"]).reshape(scores_NC.shape).astype(jnp.float32)
        real_N = weights_N > 0  # a token of weight 0 is kept out of the arithmetic, not only out of the sum
        rows_N = per_row(jnp.where(real_N[:, None], scores_NC, 0.0), values_NC)
        total = jnp.where(real_N, weights_N * rows_N, 0.0).sum()
        return _means(total, total, weights_N)

    return loss_fn


def _tokens(config: ModelConfig, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(hidden_ND, weights_N) of a batch's tokens, side by side."""
    hidden_BTD, _ = hidden(
        config,
        params,
        jnp.asarray(batch["tokens_BT"]),
        positions_BT=jnp.asarray(batch["positions_BT"]),
        segments_BT=jnp.asarray(batch["segments_BT"]),
    )
    return hidden_BTD.reshape(-1, config.width), jnp.asarray(batch["weights_BT"]).reshape(-1).astype(jnp.float32)


def _means(objective: jax.Array, loss: jax.Array, weights_N: jax.Array) -> tuple[jax.Array, Metrics]:
    weight = weights_N.sum()
    safe = jnp.maximum(weight, 1e-9)  # a portion without a target adds nothing
    return objective / safe, {"loss": loss / safe, "weight": weight}
