"""The chunked cross-entropy against its definition, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.transformer import apply, init, softcap
from limbeck.train import loss as loss_module
from limbeck.train.loss import cross_entropy, token_loss

N, D, V = 37, 8, 29


def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden_ND, head_DV = jax.random.normal(keys[0], (N, D)), jax.random.normal(keys[1], (D, V))
    targets_N = jax.random.randint(keys[2], (N,), 0, V)
    return hidden_ND, head_DV, targets_N, (jnp.arange(N) % 3).astype(jnp.float32)


def dense(hidden_ND, head_DV, targets_N, weights_N, cap):
    logprobs_NV = jax.nn.log_softmax(softcap(hidden_ND @ head_DV, cap))
    return -(weights_N * jnp.take_along_axis(logprobs_NV, targets_N[:, None], 1)[:, 0]).sum()


@pytest.mark.parametrize("chunk", [1, 7, 37, 64])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_chunked_equals_dense(monkeypatch, chunk, cap):
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocab, rows: min(chunk, rows))
    arguments = inputs()
    value, gradients = jax.value_and_grad(cross_entropy, (0, 1))(*arguments, cap)
    expected, expected_gradients = jax.value_and_grad(dense, (0, 1))(*arguments, cap)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, right in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, right, atol=2e-6)


def test_a_row_of_weight_zero_may_hold_anything():
    hidden_ND, head_DV, targets_N, weights_N = inputs()
    garbage_ND = jnp.where(weights_N[:, None] > 0, hidden_ND, jnp.nan)
    clean = jax.value_and_grad(cross_entropy, (0, 1))(hidden_ND, head_DV, targets_N, weights_N)
    dirty = jax.value_and_grad(cross_entropy, (0, 1))(garbage_ND, head_DV, targets_N, weights_N)
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
        analysis = jax.jit(jax.grad(cross_entropy, wrt)).lower(*shapes).compile()
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
    assert metrics["tokens"] == 7
