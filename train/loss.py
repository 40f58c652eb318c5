"""Loss functions: `(params, batch, key) -> (loss, metrics)`, and the cross-entropy that never holds all logits.

Dimension key: `N` tokens, `X` chunks, `G` groups of devices, each with rows of a batch of its own (1 without a mesh),
`C` tokens of one chunk and group, `D` width, `V` vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.chosen import filled_outside
from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.sharding import ROWS, constrain, platform, spread
from limbeck.model.transformer import head_kernel, hidden

Array = jax.Array | np.ndarray
Batch = Mapping[str, Array]  # tokens_BT targets_BT weights_BT positions_BT segments_BT, for some heads values_BTC
Metrics = dict[str, jax.Array]
# The loss is a mean, and metrics["weight"] the sum of the weights that it was divided by, so that portions of a batch
# can be put together; the other metrics are means by the same weights.
LossFn = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]

# Of float32 logits at a time and device. On CPU 1 to 40 MiB differ by a tenth, and 8 is among the best. Elsewhere a
# chunk of C rows has 6 C FLOPs for each number of the head, to 12 bytes: the head is read twice, its gradient's sum
# read and written. Accelerators do 150 to 600 FLOPs in the time of a byte, which is C of 300 to 1,200: with 512 MiB and
# 128,000 tokens C is 1,000, and at a width of 4,096 the head's gradient alone weighs four times the logits.
_CPU_BYTES, _BYTES = 8 << 20, 512 << 20


def chunk_rows(vocab_size: int, rows: int) -> int:
    """How many rows of logits to hold at once, on all devices together: as many on each that has rows of its own."""
    groups, parts = spread(ROWS), spread("tensor")
    columns = vocab_size if vocab_size % parts else vocab_size // parts
    cpu, own = platform() == "cpu", -(-rows // groups)
    fit = max(1, min(own, (_CPU_BYTES if cpu else _BYTES) // (4 * columns)))
    # Large chunks are as many as these would be, but all as long, so that little is padded.
    return groups * (fit if cpu else -(-own // -(-own // fit)))


def in_chunks(x_N: jax.Array, chunk: int) -> jax.Array:
    """x_XGC of an array [N, ...]: chunks of about that many rows, the last ones filled up with zeros.

    Of every chunk each group of devices has its part, and of its own rows: none moves. Therefore a chunk takes rows
    from all over the batch; a contiguous one would lie on one of several devices.
    """
    groups, rest = spread(ROWS), x_N.shape[1:]
    own, of_chunk = -(-len(x_N) // groups), -(-chunk // groups)
    same = [(0, 0)] * len(rest)
    x_GN = jnp.pad(x_N, [(0, groups * own - len(x_N)), *same]).reshape(groups, own, *rest)
    x_GCX = jnp.pad(x_GN, [(0, 0), (0, -own % of_chunk), *same]).reshape(groups, of_chunk, -1, *rest)
    return constrain(jnp.moveaxis(x_GCX, 2, 0), None, ROWS, None, *[None] * len(rest))


def scan_groups(step: Callable[[Any, Any], tuple[Any, Any]], zeros: Any, chunks: Any) -> tuple[Any, Any]:
    """`lax.scan` of a step from sums and a chunk x_C to sums and outputs: (sums, outputs_XGC), chunks as x_XGC.

    Each group of devices goes over its own rows and has its own sums, which are put together once, behind the last
    chunk: in the loop the groups have nothing to say to each other.
    """
    groups = jax.tree.leaves(chunks)[0].shape[1]
    if groups == 1:  # not a batch of one: its products would be rounded otherwise
        sums, outputs = jax.lax.scan(step, zeros, jax.tree.map(lambda x_XGC: x_XGC[:, 0], chunks))
        return sums, jax.tree.map(lambda x_XC: x_XC[:, None], outputs)
    zeros_G = jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, *x.shape)), zeros)
    sums_G, outputs = jax.lax.scan(jax.vmap(step, spmd_axis_name=ROWS), zeros_G, chunks)
    return jax.tree.map(lambda x_G: x_G.sum(0), sums_G), outputs


def fetched(head_DV: jax.Array, dtype: Any) -> jax.Array:
    """The head as a loop over chunks reads it: of its part of the vocabulary every device has all, fetched once."""
    # Without the first layout the devices would send each other what they have before it is cast.
    return constrain(constrain(head_DV.astype(dtype), "fsdp", "tensor"), None, "tensor")


def with_outer(sum_DV: jax.Array, hidden_CD: jax.Array, gradient_CV: jax.Array) -> jax.Array:
    """The sum so far of the head's gradient, float32, and that of a chunk, from the gradient of its logits."""
    update_DV = jnp.dot(hidden_CD.T, gradient_CV, preferred_element_type=jnp.float32)
    return constrain(sum_DV + update_DV, None, "tensor")


def settled(hidden_gradient_XGCD: Any, head_gradient_DV: Any, dtype: Any) -> tuple[Any, Any]:
    """Both gradients of a loop (None: not wanted), the head's in that dtype and laid out as the head is."""
    if head_gradient_DV is None:
        return hidden_gradient_XGCD, None
    both = (hidden_gradient_XGCD, constrain(head_gradient_DV, "fsdp", "tensor").astype(dtype))
    # The blocks go on from the hidden states' gradient: behind the barrier, for else every device would keep all of the
    # head's until they are done, before the devices' are put together and cut.
    return jax.lax.optimization_barrier(both) if spread(ROWS) > 1 else both


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
    chunk = chunk_rows(head_DV.shape[1], len(hidden_ND))
    targets, weights = in_chunks(targets_N, chunk), in_chunks(weights_N.astype(jnp.float32), chunk)
    return _nll(in_chunks(hidden_ND, chunk), head_DV, targets, weights, terms)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _nll(hidden_XGCD, head_DV, targets_XGC, weights_XGC, terms):
    return _scan_chunks(hidden_XGCD, head_DV, targets_XGC, weights_XGC, terms, False, False)[0]


def _nll_forward(hidden_XGCD, head_DV, targets_XGC, weights_XGC, terms):
    sums, *gradients = _scan_chunks(
        hidden_XGCD.value,
        head_DV.value,
        targets_XGC.value,
        weights_XGC.value,
        terms,
        hidden_XGCD.perturbed,
        head_DV.perturbed,
    )
    return sums, gradients


def _nll_backward(terms, gradients, cotangents):
    scaled = [None if g is None else (g * cotangents[0]).astype(g.dtype) for g in gradients]
    return (*scaled, None, None)


_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


def _scan_chunks(hidden_XGCD, head_DV, targets_XGC, weights_XGC, terms, want_hidden, want_head):
    """((objective, cross-entropy), gradient of hidden or None, gradient of head or None), C rows at a time."""
    vocab_size = head_DV.shape[1]
    own_head_DV = fetched(head_DV, hidden_XGCD.dtype)

    def step(carry, chunk):
        objective, loss, head_gradient_DV = carry
        hidden_CD, targets_C, weights_C = chunk
        logits_CV = jnp.dot(hidden_CD, own_head_DV, preferred_element_type=jnp.float32)
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
                hidden_gradient_CD = gradient_CV @ own_head_DV.T
            if want_head:
                clean_CD = jnp.where(weights_C[:, None] > 0, hidden_CD, 0.0)
                head_gradient_DV = with_outer(head_gradient_DV, clean_CD, gradient_CV)
        return (objective, loss, head_gradient_DV), hidden_gradient_CD

    zero_DV = jnp.zeros(head_DV.shape, jnp.float32) if want_head else None
    (objective, loss, head_gradient_DV), hidden_gradient_XGCD = scan_groups(
        step, (jnp.float32(0), jnp.float32(0), zero_DV), (hidden_XGCD, targets_XGC, weights_XGC)
    )
    return (objective, loss), *settled(hidden_gradient_XGCD, head_gradient_DV, head_DV.dtype)


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
