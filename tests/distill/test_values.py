"""Heads of yes and no and of numbers against float64 by hand, and what padding may hold there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.config import DistilConfig
from limbeck.distill.loss import divergence
from limbeck.distill.sources import Teacher
from limbeck.distill.values import Texts, label_loss, number_loss

N, D, C = 7, 5, 3
KEYS = jax.random.split(jax.random.key(0), 6)
STUDENT_ND, TEACHER_ND, OTHER_ND = (jax.random.normal(key, (N, D)) for key in KEYS[:3])
HEAD_DC, TEACHER_DC = (jax.random.normal(key, (D, C)) for key in KEYS[3:5])
WEIGHTS_N = jnp.asarray([0, 1, 0.5, 0, 2, 1, 0])
TAUGHT_N = jnp.asarray([True, True, False, True, True, True, True])
LABELS_NC = jax.random.bernoulli(KEYS[5], 0.5, (N, C)).astype(jnp.float32)


def teachers(*, shares=(1.0,), states=(TEACHER_ND,)):
    return [Teacher(x, TEACHER_DC, None, share) for x, share in zip(states, shares, strict=True)]


@partial(jax.jit, static_argnums=(0, 1))
def loss(kind, objective, hidden_ND, head_DC, several, values_NC, temperature, hard_weight):
    def value(hidden_ND, head_DC):
        texts = Texts(hidden_ND, head_DC, values_NC, WEIGHTS_N)
        whom = (teachers(shares=(0.25, 0.75), states=several), TAUGHT_N, texts)
        if kind == "multi_label":
            return label_loss(divergence(DistilConfig(objective)), *whom, temperature, hard_weight)
        return number_loss(*whom, hard_weight)

    return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(hidden_ND, head_DC)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def bernoulli_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def by_weight(d_N, counts: np.ndarray | float = 1.0):
    return float((np.asarray(WEIGHTS_N) * counts * d_N).sum() / np.asarray(WEIGHTS_N).sum())


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl"])
def test_labels_are_the_bernoulli_divergence(objective):
    temperature = 2.0
    several = (TEACHER_ND, OTHER_ND)
    (value, metrics), gradient = loss(
        "multi_label", objective, STUDENT_ND, HEAD_DC, several, LABELS_NC, temperature, 0.3
    )
    q = sigmoid(STUDENT_ND @ HEAD_DC / temperature)
    p = 0.25 * sigmoid(TEACHER_ND @ TEACHER_DC / temperature) + 0.75 * sigmoid(OTHER_ND @ TEACHER_DC / temperature)
    d_NC = bernoulli_kl(p, q) if objective == "forward_kl" else bernoulli_kl(q, p)
    soft = temperature**2 * by_weight(d_NC.sum(-1), np.asarray(TAUGHT_N))
    plain = sigmoid(STUDENT_ND @ HEAD_DC)
    labels = np.asarray(LABELS_NC)
    hard = by_weight(-(labels * np.log(plain) + (1 - labels) * np.log(1 - plain)).sum(-1))
    np.testing.assert_allclose(metrics["divergence"], soft, rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], hard, rtol=1e-5)
    np.testing.assert_allclose(value, 0.3 * hard + 0.7 * soft, rtol=1e-5)
    assert all(np.any(g) for g in gradient)


def test_numbers_are_squared_distances():
    several = (TEACHER_ND, OTHER_ND)
    (value, metrics), gradient = loss("regression", "forward_kl", STUDENT_ND, HEAD_DC, several, LABELS_NC, 1.0, 0.3)
    ours, theirs = (np.asarray(x, np.float64) for x in (STUDENT_ND @ HEAD_DC, 0.25 * TEACHER_ND + 0.75 * OTHER_ND))
    soft = by_weight(((ours - theirs @ np.asarray(TEACHER_DC, np.float64)) ** 2).sum(-1), np.asarray(TAUGHT_N))
    hard = by_weight(((ours - np.asarray(LABELS_NC)) ** 2).sum(-1))
    np.testing.assert_allclose(metrics["divergence"], soft, rtol=1e-5)
    np.testing.assert_allclose(metrics["squared_error"], hard, rtol=1e-5)
    np.testing.assert_allclose(value, 0.3 * hard + 0.7 * soft, rtol=1e-5)
    slopes = np.asarray(WEIGHTS_N)[:, None] / np.asarray(WEIGHTS_N).sum() * 2
    error = 0.3 * (ours - np.asarray(LABELS_NC))
    error += 0.7 * np.asarray(TAUGHT_N)[:, None] * (ours - theirs @ np.asarray(TEACHER_DC, np.float64))
    np.testing.assert_allclose(gradient[0], slopes * error @ np.asarray(HEAD_DC).T, atol=1e-5)


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_padding_changes_nothing_at_all(kind, garbage):
    def run(hidden_ND, several, values_NC):
        return loss(kind, "forward_kl", hidden_ND, HEAD_DC, several, values_NC, 2.0, 0.3)

    def spoilt(x_ND, counts_N):
        return jnp.where(counts_N[:, None], x_ND, garbage)

    real_N = WEIGHTS_N > 0
    clean = run(STUDENT_ND, (TEACHER_ND, OTHER_ND), LABELS_NC)
    states = tuple(spoilt(x, real_N & TAUGHT_N) for x in (TEACHER_ND, OTHER_ND))
    dirty = run(spoilt(STUDENT_ND, real_N), states, spoilt(LABELS_NC, real_N))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_the_teacher_gets_no_gradient():
    def of_teacher(states_ND, head_DC):
        whom = [Teacher(states_ND, head_DC)], TAUGHT_N, Texts(STUDENT_ND, HEAD_DC, LABELS_NC, WEIGHTS_N)
        labels, _ = label_loss(divergence(DistilConfig()), *whom, 2.0, 0.3)
        return labels + number_loss(*whom, 0.3)[0]

    assert not any(np.any(g) for g in jax.grad(of_teacher, argnums=(0, 1))(TEACHER_ND, TEACHER_DC))
