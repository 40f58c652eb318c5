"""Matching hidden states: closed forms in numpy float64, and a projection that is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matched_pair import REAL, STUDENT, TEACHER, TOKENS, B, T, made, noise

from limbeck.distill.features import add_matchers, cosine_distance, relative_error
from limbeck.distill.match_config import MatchConfig


def masked_mean(d_BT):
    return d_BT[REAL].sum() / REAL.sum()


def test_relative_error_is_its_closed_form_at_any_scale():
    s, t = noise(0, B, T, 6), noise(1, B, T, 6)
    s64, t64 = np.asarray(s, np.float64), np.asarray(t, np.float64)
    expected = masked_mean(np.square(s64 - t64).sum(-1) / np.square(t64).sum(-1))
    for scale in (1.0, 1e-3, 300.0):
        np.testing.assert_allclose(relative_error(scale * s, scale * t, TOKENS), expected, rtol=1e-5)
    np.testing.assert_allclose(relative_error(0 * s, t, TOKENS), 1.0, rtol=1e-6)
    long = t.at[0, 0].multiply(1000.0)  # one long state does not drown the others
    assert abs(relative_error(s, long, TOKENS) - expected) < 2 * expected / REAL.sum() * 3
    none = t.at[0, 1].set(0)
    without = np.square(s64 - t64).sum(-1) / np.square(t64).sum(-1)
    without[0, 1] = 0
    np.testing.assert_allclose(relative_error(s, none, TOKENS), masked_mean(without), rtol=1e-5)


def test_cosine_distance_is_its_closed_form_and_sees_directions_alone():
    s, t = noise(0, B, T, 6), noise(1, B, T, 6)
    s64, t64 = np.asarray(s, np.float64), np.asarray(t, np.float64)
    cosine = (s64 * t64).sum(-1) / np.linalg.norm(s64, axis=-1) / np.linalg.norm(t64, axis=-1)
    for a, b in ((1, 1), (7, noise(2, B, T, 1) ** 2)):
        np.testing.assert_allclose(cosine_distance(a * s, b * t, TOKENS), masked_mean(1 - cosine), rtol=1e-5)
    np.testing.assert_allclose(cosine_distance(-t, t, TOKENS), 2.0, rtol=1e-6)
    value, gradient = jax.value_and_grad(cosine_distance)(s.at[0, 0].set(0), t, TOKENS)
    assert np.isfinite(value) and np.isfinite(gradient).all() and (gradient[0, 0] == 0).all()


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_a_learned_projection_finds_a_turned_and_scaled_teacher(distance):
    student_BTD = noise(0, B, 20, 16)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))
    teacher_BTD = 40 * student_BTD @ jnp.asarray(turn[:16], jnp.float32)
    config = MatchConfig(hidden=1.0, hidden_layers=((1, 1),), hidden_distance=distance)
    tokens = {"positions_BT": jnp.tile(jnp.arange(20), (B, 1)), "segments_BT": jnp.ones((B, 20), jnp.int32)}
    mine, others = ({"hidden": jnp.stack([jnp.full_like(x, jnp.nan), x])} for x in (student_BTD, teacher_BTD))
    match = made(config)
    params = add_matchers(config, STUDENT, TEACHER, {}, jax.random.key(2))
    optimizer = optax.adam(0.3)

    @jax.jit
    def train(params):
        def step(state, _):
            value, gradient = jax.value_and_grad(lambda p: match.loss(p, mine, others, tokens)[0])(state[0])
            updates, opt = optimizer.update(gradient, state[1])
            return (optax.apply_updates(state[0], updates), opt), value

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=300)[1]

    values = train(params)
    assert values[0] > 0.5 and values[-1] < 0.01
