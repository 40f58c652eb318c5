"""The chunked cross-entropy against its definition, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.transformer import apply, classify, init, softcap
from limbeck.train import loss as loss_module
from limbeck.train.loss import Terms, cross_entropy, multi_label_loss, regression_loss, token_loss

N, D, V = 37, 8, 29


def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden_ND, head_DV = jax.random.normal(keys[0], (N, D)), jax.random.normal(keys[1], (D, V))
    targets_N = jax.random.randint(keys[2], (N,), 0, V)
    return hidden_ND, head_DV, targets_N, (jnp.arange(N) % 3).astype(jnp.float32)


def dense(hidden_ND, head_DV, targets_N, weights_N, terms):
    """The definition, with every logit at once and by optax: (objective, cross-entropy)."""
    logits_NV = softcap(hidden_ND @ head_DV, terms.softcap)
    labels_NV = optax.smooth_labels(jax.nn.one_hot(targets_N, V), terms.smoothing)
    z_N = terms.z_loss * jnp.square(jax.nn.logsumexp(logits_NV, -1))
    objective = weights_N @ (optax.softmax_cross_entropy(logits_NV, labels_NV) + z_N)
    return objective, weights_N @ optax.softmax_cross_entropy_with_integer_labels(logits_NV, targets_N)


@pytest.mark.parametrize("chunk", [1, 7, 37, 64])
@pytest.mark.parametrize(
    "terms", [Terms(), Terms(softcap=3.0), Terms(smoothing=0.2), Terms(z_loss=0.01), Terms(3.0, 0.1, 0.02)]
)
def test_chunked_equals_dense(monkeypatch, chunk, terms):
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocab, rows: min(chunk, rows))
    arguments = inputs()
    values, gradients = jax.value_and_grad(cross_entropy, (0, 1), has_aux=True)(*arguments, terms)
    expected, expected_gradients = jax.value_and_grad(dense, (0, 1), has_aux=True)(*arguments, terms)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    for got, right in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, right, atol=2e-6)


def test_a_row_of_weight_zero_may_hold_anything():
    hidden_ND, head_DV, targets_N, weights_N = inputs()
    garbage_ND = jnp.where(weights_N[:, None] > 0, hidden_ND, jnp.nan)
    clean = jax.value_and_grad(cross_entropy, (0, 1), has_aux=True)(hidden_ND, head_DV, targets_N, weights_N)
    dirty = jax.value_and_grad(cross_entropy, (0, 1), has_aux=True)(garbage_ND, head_DV, targets_N, weights_N)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)


def test_memory_is_flat_in_the_vocabulary_and_a_frozen_head_costs_nothing():
    def compiled(rows, vocab, wrt):
        shapes = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in (
                ((rows, 64), jnp.float32),
                ((64, vocab), jnp.float32),
                ((rows,), jnp.int32),
                ((rows,), jnp.float32),
            )
        ]
        analysis = jax.jit(jax.grad(cross_entropy, wrt, has_aux=True)).lower(*shapes).compile()
        memory, cost = analysis.memory_analysis(), analysis.cost_analysis()
        assert memory is not None and cost is not None
        return memory.temp_size_in_bytes, cost["flops"]

    logits = 4 * 4096 * 8192
    assert compiled(4096, 8192, 0)[0] < logits / 4
    # A scan's body is counted once; the head's gradient is a third product in it.
    assert compiled(4096, 8192, 0)[1] < 0.75 * compiled(4096, 8192, (0, 1))[1]


def test_token_loss_is_the_mean_over_weighted_tokens():
    config = ModelConfig(vocab_size=V, width=8, depth=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=8)
    params = init(config, jax.random.key(0))
    ids_BT = jax.random.randint(jax.random.key(1), (2, 7), 0, V)
    weights_BT = jnp.asarray([[0, 1, 1, 0, 1, 1], [0, 0, 2, 1, 0, 0]], jnp.float32)
    batch = {
        "tokens_BT": ids_BT[:, :-1],
        "targets_BT": ids_BT[:, 1:],
        "weights_BT": weights_BT,
        "positions_BT": jnp.tile(jnp.arange(6), (2, 1)),
        "segments_BT": jnp.ones((2, 6), jnp.int32),
    }
    loss, metrics = token_loss(config)(params, batch, jax.random.key(0))
    logprobs_BTV = jax.nn.log_softmax(apply(config, params, ids_BT[:, :-1]).logits_BTV)
    nll_BT = -jnp.take_along_axis(logprobs_BTV, ids_BT[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(loss, (weights_BT * nll_BT).sum() / 7, rtol=1e-6)
    assert metrics["weight"] == 7


def head_batch(labels):
    """Two texts in each of two rows, and the same four on their own, right-padded."""
    config = ModelConfig(
        vocab_size=V, width=8, depth=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8, max_len=8, labels=labels,
    )  # fmt: skip
    params = init(config, jax.random.key(0))
    lengths_B = np.array([3, 4, 5, 2])
    ids_BT = np.asarray(jax.random.randint(jax.random.key(1), (4, 5), 1, V))
    names = ("tokens_BT", "positions_BT", "segments_BT", "targets_BT")
    batch: dict[str, np.ndarray] = {name: np.zeros((2, 8), np.int32) for name in names}
    batch["weights_BT"] = np.zeros((2, 8), np.float32)
    ends = []
    for text, length in enumerate(lengths_B):
        row, start = text // 2, lengths_B[text - 1] if text % 2 else 0
        batch["tokens_BT"][row, start : start + length] = ids_BT[text, :length]
        batch["positions_BT"][row, start : start + length] = np.arange(length)
        batch["segments_BT"][row, start : start + length] = text + 1
        batch["weights_BT"][row, start + length - 1] = 1
        ends.append((row, start + length - 1))
    scores_BC = classify(config, params, jnp.asarray(ids_BT), jnp.asarray(lengths_B))
    return config, params, batch, tuple(zip(*ends, strict=True)), scores_BC


def test_the_loss_of_a_head_is_read_off_the_last_token_of_each_packed_text():
    config, params, batch, ends, scores_BC = head_batch(("a", "b", "c"))
    batch["targets_BT"][ends] = targets_B = np.array([2, 0, 1, 1])
    loss, metrics = token_loss(config)(params, batch, jax.random.key(0))
    expected = optax.softmax_cross_entropy_with_integer_labels(scores_BC, targets_B).mean()
    np.testing.assert_allclose([loss, metrics["loss"], metrics["weight"]], np.array([expected, expected, 4]), rtol=1e-5)

    values_BC = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0]], np.float32)
    batch["values_BTC"] = np.zeros((2, 8, 3), np.float32)
    batch["values_BTC"][ends] = values_BC
    loss, metrics = multi_label_loss(config)(params, batch, jax.random.key(0))
    expected = optax.sigmoid_binary_cross_entropy(scores_BC, values_BC).sum(-1).mean()
    np.testing.assert_allclose([loss, metrics["weight"]], np.array([expected, 4]), rtol=1e-5)


def test_a_regression_is_a_mean_squared_distance():
    config, params, batch, ends, scores_B1 = head_batch(("score",))
    batch["values_BTC"] = np.full((2, 8, 1), np.nan, np.float32)  # what stands at other tokens is not read
    batch["values_BTC"][ends] = values_B1 = np.array([[0.5], [5], [2.25], [-1]], np.float32)
    loss, _ = regression_loss(config)(params, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, np.square(scores_B1 - values_B1).mean(), rtol=1e-5)
