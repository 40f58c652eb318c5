"""Loss functions: `(params, batch, key) -> (loss, metrics)`, and the cross-entropy that never holds all logits."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.transformer import head_kernel, hidden

Array = jax.Array | np.ndarray
Batch = Mapping[str, Array]  # tokens_BT targets_BT weights_BT positions_BT segments_BT
Metrics = dict[str, jax.Array]
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]

_CHUNK_BYTES = 8 << 20  # of float32 logits at a time: on CPU 1 to 40 MiB differ by a tenth, 8 is among the best


def chunk_rows(vocab_size: int, rows: int) -> int:
    """How many rows of logits to hold at once."""
    return max(1, min(rows, _CHUNK_BYTES // (4 * vocab_size)))


def cross_entropy(
    hidden_ND: jax.Array, head_DV: jax.Array, targets_N: jax.Array, weights_N: jax.Array, softcap: float | None = None
) -> jax.Array:
    """Sum of `weights * -log p(target)`, float32, in chunks of rows: no [N, V] array exists.

    The gradient is computed beside the value, while a chunk's probabilities are at hand, and only for the inputs
    that are differentiated: a frozen head costs nothing. A row of weight 0 adds exactly nothing, whatever it holds.
    """
    rows = hidden_ND.shape[0]
    chunk = chunk_rows(head_DV.shape[1], rows)

    def chunks(x: jax.Array) -> jax.Array:
        # Every chunk takes rows from all over the batch: contiguous ones would each lie on one of several devices.
        padded = jnp.pad(x, [(0, -rows % chunk)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(chunk, -1, *x.shape[1:]).swapaxes(0, 1)

    return _nll(chunks(hidden_ND), head_DV, chunks(targets_N), chunks(weights_N.astype(jnp.float32)), softcap)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _nll(hidden_XCD, head_DV, targets_XC, weights_XC, cap):
    return _scan_chunks(hidden_XCD, head_DV, targets_XC, weights_XC, cap, False, False)[0]


def _nll_forward(hidden_XCD, head_DV, targets_XC, weights_XC, cap):
    loss, *gradients = _scan_chunks(
        hidden_XCD.value,
        head_DV.value,
        targets_XC.value,
        weights_XC.value,
        cap,
        hidden_XCD.perturbed,
        head_DV.perturbed,
    )
    return loss, gradients


def _nll_backward(cap, gradients, cotangent):
    scaled = [None if g is None else (g * cotangent).astype(g.dtype) for g in gradients]
    return (*scaled, None, None)


_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


def _scan_chunks(hidden_XCD, head_DV, targets_XC, weights_XC, cap, want_hidden, want_head):
    """(loss, gradient of hidden or None, gradient of head or None), a chunk of C rows at a time."""

    def step(carry, chunk):
        loss, head_gradient_DV = carry
        hidden_CD, targets_C, weights_C = chunk
        logits_CV = jnp.dot(hidden_CD, head_DV.astype(hidden_CD.dtype), preferred_element_type=jnp.float32)
        slope_CV = 1.0
        if cap is not None:
            tanh_CV = jnp.tanh(logits_CV / cap)
            logits_CV, slope_CV = cap * tanh_CV, 1.0 - jnp.square(tanh_CV)
        top_C1 = logits_CV.max(-1, keepdims=True)
        exp_CV = jnp.exp(logits_CV - top_C1)
        total_C1 = exp_CV.sum(-1, keepdims=True)
        picked_C = jnp.take_along_axis(logits_CV, targets_C[:, None], -1)[:, 0]
        nll_C = jnp.log(total_C1[:, 0]) + top_C1[:, 0] - picked_C
        loss = loss + jnp.where(weights_C > 0, weights_C * nll_C, 0.0).sum()
        hidden_gradient_CD = None
        if want_hidden or want_head:
            hit_CV = jnp.arange(logits_CV.shape[-1]) == targets_C[:, None]
            scale_C1 = (weights_C / total_C1[:, 0])[:, None]
            gradient_CV = jnp.where(hit_CV, exp_CV - total_C1, exp_CV) * scale_C1 * slope_CV
            gradient_CV = jnp.where(weights_C[:, None] > 0, gradient_CV, 0.0).astype(hidden_CD.dtype)
            if want_hidden:
                hidden_gradient_CD = gradient_CV @ head_DV.T.astype(hidden_CD.dtype)
            if want_head:
                clean_CD = jnp.where(weights_C[:, None] > 0, hidden_CD, 0.0)
                update_DV = jnp.dot(clean_CD.T, gradient_CV, preferred_element_type=jnp.float32)
                head_gradient_DV = head_gradient_DV + update_DV
        return (loss, head_gradient_DV), hidden_gradient_CD

    zero_DV = jnp.zeros(head_DV.shape, jnp.float32) if want_head else None
    (loss, head_gradient_DV), hidden_gradient_XCD = jax.lax.scan(
        step, (jnp.float32(0), zero_DV), (hidden_XCD, targets_XC, weights_XC)
    )
    return loss, hidden_gradient_XCD, None if head_gradient_DV is None else head_gradient_DV.astype(head_DV.dtype)


def token_loss(config: ModelConfig) -> LossFn:
    """The language-model loss: mean cross-entropy over tokens, each by its weight (padding and prompts weigh 0).

    Metrics: `loss` (nats a token), `tokens` (the sum of weights).
    """

    def loss_fn(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        hidden_BTD, _ = hidden(
            config,
            params,
            jnp.asarray(batch["tokens_BT"]),
            positions_BT=jnp.asarray(batch["positions_BT"]),
            segments_BT=jnp.asarray(batch["segments_BT"]),
        )
        weights_N = jnp.asarray(batch["weights_BT"]).reshape(-1).astype(jnp.float32)
        total = cross_entropy(
            hidden_BTD.reshape(-1, config.width),
            head_kernel(params),
            jnp.asarray(batch["targets_BT"]).reshape(-1),
            weights_N,
            config.logit_softcap,
        )
        tokens = weights_N.sum()
        loss = total / jnp.maximum(tokens, 1e-9)
        return loss, {"loss": loss, "tokens": tokens}

    return loss_fn
