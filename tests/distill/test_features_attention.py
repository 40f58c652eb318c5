"""Matching attention: a loop over queries and a dense softmax as oracles, windows, and memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matched_pair import BATCH, STUDENT, TEACHER, TOKENS, B, T, made, naive, noise, seen

from limbeck.distill.features import Heads, Tokens, attention_divergence
from limbeck.distill.match_config import MatchConfig
from limbeck.model.attention import stretches


@pytest.mark.parametrize("heads", ["mean", "each"])
@pytest.mark.parametrize("window", [16, 2])
def test_attention_divergence_is_a_loop_over_queries(heads, window):
    student = Heads(2 * noise(0, B, T, 4, 6), noise(1, B, T, 2, 6), 0.7, 3.0)
    teacher = Heads(2 * noise(2, B, T, 4, 8), noise(3, B, T, 4, 8))

    @jax.jit
    def run(q, k, teacher_q, teacher_k):
        return attention_divergence(Heads(q, k, 0.7, 3.0), Heads(teacher_q, teacher_k), TOKENS, window, heads)

    got = run(*student[:2], *teacher[:2])
    expected = naive(student, teacher, TOKENS, window, heads)
    assert expected > 0.05
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("heads", ["mean", "each"])
def test_in_stretches_as_at_once(heads):
    """Value and gradient of rows long enough for several stretches, against one dense softmax."""
    length = 67
    assert stretches(length) > 1
    tokens = Tokens(jnp.arange(length)[None] % 40, 1 + jnp.arange(length)[None] // 40)
    arrays = [2 * noise(i, 1, length, n, 4) for i, n in enumerate((4, 2, 4, 4))]
    mask = (tokens.segments_BT[0][:, None] == tokens.segments_BT[0]) & jnp.tri(length, dtype=bool)

    def logs(q, k):
        scores = jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, 4 // k.shape[2], 2)) / 2
        log = jax.nn.log_softmax(jnp.where(mask, scores, -1e9))
        return jnp.log(jnp.exp(log).mean(1, keepdims=True) + 1e-30) if heads == "mean" else log

    def dense(q, k, *teacher):
        mine, others = logs(q, k), logs(*teacher)
        return jnp.where(mask, jnp.exp(others) * (others - mine), 0).sum(-1).mean()

    def own(q, k, *teacher):
        return attention_divergence(Heads(q, k), Heads(*teacher), tokens, 99, heads)

    (one, right), (other, got) = (jax.jit(jax.value_and_grad(f, (0, 1)))(*arrays) for f in (dense, own))
    np.testing.assert_allclose(other, one, rtol=1e-5)
    for name, a, b in zip("qk", right, got, strict=True):
        assert np.abs(a).max() > 1e-3
        np.testing.assert_allclose(b, a, atol=1e-6, err_msg=name)


def test_no_layer_s_distributions_are_kept():
    """Four more pairs of layers cost less memory than the scores of one."""
    length, heads = 256, 4
    shape = dataclasses.replace(TEACHER, max_len=length, num_kv_heads=heads, head_dim=2, depth=5)
    tokens = {"positions_BT": jnp.arange(length)[None], "segments_BT": jnp.ones((1, length), jnp.int32)}
    arrays = {name: jax.ShapeDtypeStruct((5, 1, length, heads, 2), jnp.float32) for name in "qk"}

    def temporaries(pairs):
        match = made(MatchConfig(attention=1.0, attention_layers=pairs), shape, shape)
        loss = jax.grad(lambda mine, others: match.loss({}, mine, others, tokens)[0])
        memory = jax.jit(loss).lower(arrays, arrays).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    scores = 4 * heads * length * length
    one, five = temporaries(((1, 1),)), temporaries(tuple((layer, layer) for layer in range(1, 6)))
    assert five - one < scores, f"{one:,} and {five:,} bytes; the scores of a layer are {scores:,}"


def test_where_windows_differ_the_places_that_both_see_are_compared():
    narrow = dataclasses.replace(STUDENT, window=2, global_layers=(1,))
    mine, others = seen()
    match = made(MatchConfig(attention=1.0, attention_layers=((1, 1), (2, 1))), narrow, TEACHER)
    value, _ = jax.jit(match.loss)({}, mine, others, BATCH)
    teacher = Heads(others["q"][0], others["k"][0])
    expected = [
        naive(Heads(mine["q"][layer], mine["k"][layer], 0.5), teacher, TOKENS, window, "mean")
        for layer, window in ((0, 2), (1, 99))
    ]
    np.testing.assert_allclose(value, np.mean(expected), rtol=1e-5)
