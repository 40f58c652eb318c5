"""Every divergence against its closed form in numpy float64."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.loss import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    teacher_cross_entropy,
    total_variation,
)
from limbeck.model.errors import UserError

B, T, V = 2, 5, 11


def softmax64(logits, temperature):
    scaled = np.asarray(logits, np.float64) / temperature
    exp = np.exp(scaled - scaled.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def jsd(beta):
    def closed_form(p, q):
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    return closed_form


def skewed(skew):
    return lambda p, q: kl(p, skew * p + (1 - skew) * q)


CLOSED_FORMS = {  # of the teacher's p and the student's q
    "forward_kl": (forward_kl, kl),
    "reverse_kl": (reverse_kl, lambda p, q: kl(q, p)),
    "jsd 0.5": (partial(generalized_jsd, beta=0.5), jsd(0.5)),
    "jsd 0.1": (partial(generalized_jsd, beta=0.1), jsd(0.1)),
    "jsd 0": (partial(generalized_jsd, beta=0.0), kl),
    "jsd 1": (partial(generalized_jsd, beta=1.0), lambda p, q: kl(q, p)),
    "skewed_forward_kl 0.1": (skewed_forward_kl, skewed(0.1)),
    "skewed_forward_kl 0": (partial(skewed_forward_kl, skew=0.0), kl),
    "skewed_reverse_kl 0.3": (partial(skewed_reverse_kl, skew=0.3), lambda p, q: skewed(0.3)(q, p)),
    "skewed_reverse_kl 0": (partial(skewed_reverse_kl, skew=0.0), lambda p, q: kl(q, p)),
    "total_variation": (total_variation, lambda p, q: 0.5 * np.abs(p - q).sum(-1)),
    "teacher_cross_entropy": (teacher_cross_entropy, lambda p, q: -(p * np.log(q)).sum(-1)),
}
every_loss = pytest.mark.parametrize(("loss", "closed_form"), CLOSED_FORMS.values(), ids=CLOSED_FORMS)


@cache
def compiled(loss):
    """(student, teacher, weights, temperature) -> value, gradient; one compilation for all temperatures."""
    return jax.jit(jax.value_and_grad(lambda *x: loss(*x[:3], temperature=x[3])))


@pytest.fixture
def example():
    keys = jax.random.split(jax.random.key(0), 3)
    student, teacher = (jax.random.normal(k, (B, T, V)) * 2 for k in keys[:2])
    weights = jnp.asarray([[1, 1, 0, 0.5, 1], [0, 2, 1, 1, 0]], jnp.float32)
    return student, teacher, weights


def numerical_gradient(f, x, step=1e-5):
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_value_and_gradient_are_the_closed_forms(example, loss, closed_form, temperature):
    student, teacher, weights = (np.asarray(x, np.float64) for x in example)

    def oracle(student64):
        d = closed_form(softmax64(teacher, temperature), softmax64(student64, temperature))
        return temperature**2 * (weights * d).sum() / weights.sum()

    value, gradient = compiled(loss)(*example, temperature)
    assert value.shape == () and value.dtype == jnp.float32
    np.testing.assert_allclose(value, oracle(student), rtol=1e-6)
    np.testing.assert_allclose(gradient, numerical_gradient(oracle, student), atol=1e-6)


@every_loss
def test_equal_distributions(example, loss, closed_form):
    student, _, weights = example
    shifted = student + 3.0  # other logits, the same distribution
    value, gradient = compiled(loss)(student, shifted, weights, 1.0)
    if loss is teacher_cross_entropy:
        p = softmax64(student, 1.0)
        entropy = (np.asarray(weights) * -(p * np.log(p)).sum(-1)).sum() / float(weights.sum())
        np.testing.assert_allclose(value, entropy, rtol=1e-6)
    else:
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
    if loss is not total_variation:  # which has a kink there
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_teacher_cross_entropy_has_the_gradient_of_forward_kl_and_another_value(example):
    kl_value, kl_gradient = jax.value_and_grad(partial(forward_kl, temperature=2.0))(*example)
    ce_value, ce_gradient = jax.value_and_grad(partial(teacher_cross_entropy, temperature=2.0))(*example)
    np.testing.assert_allclose(ce_gradient, kl_gradient, atol=1e-6)
    assert ce_value > kl_value + 0.5


def test_beta_limits(example):
    """Over beta, JSD goes to KL(teacher || student); over 1 - beta, to KL(student || teacher)."""
    student, teacher, weights = example
    example = (student, 0.3 * teacher, weights)  # a flat teacher, so that the two KLs are far apart
    assert reverse_kl(*example) < 0.8 * forward_kl(*example)
    small = 1e-3
    near_forward = generalized_jsd(*example, beta=small) / small
    near_reverse = generalized_jsd(*example, beta=1 - small) / small
    np.testing.assert_allclose(near_forward, forward_kl(*example), rtol=0.05)
    np.testing.assert_allclose(near_reverse, reverse_kl(*example), rtol=0.05)
    for beta in (-0.1, 1.1):
        with pytest.raises(UserError, match="beta"):
            generalized_jsd(*example, beta=beta)


def test_a_skewed_kl_stays_finite_where_the_plain_one_explodes():
    """A token that one side is sure of and the other rules out costs at most log(1 / skew)."""
    sure, other = 200 * jax.nn.one_hot(jnp.asarray([[0], [1]]), V)[:, None, 0]
    weights = jnp.ones((1, 1))
    for loss in (skewed_forward_kl, skewed_reverse_kl):
        value, gradient = compiled(loss)(sure[None], other[None], weights, 1.0)
        np.testing.assert_allclose(value, np.log(10), rtol=1e-5)
        assert np.isfinite(gradient).all()
        with pytest.raises(UserError, match="skew 1"):
            loss(sure[None], other[None], weights, skew=1.0)
    assert forward_kl(sure[None], other[None], weights) > 100


def test_a_token_that_the_teacher_rules_out_entirely_adds_nothing(example):
    """-inf among a teacher's logits (a token it may not say) is probability 0, not 0 * inf."""
    student, teacher, weights = example
    teacher = teacher.at[..., 3].set(-jnp.inf)
    for loss, closed_form in (CLOSED_FORMS[name] for name in ("forward_kl", "total_variation", "jsd 0.5")):
        value, gradient = compiled(loss)(student, teacher, weights, 1.0)
        p = softmax64(teacher, 1.0)
        q = softmax64(student, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            kept = closed_form(p[..., p[0, 0] > 0], q[..., p[0, 0] > 0])
        gone = {"forward_kl": 0.0, "total_variation": 0.5 * q[..., 3], "jsd 0.5": 0.5 * np.log(2) * q[..., 3]}
        expected = kept + gone[next(name for name, (each, _) in CLOSED_FORMS.items() if each is loss)]
        np.testing.assert_allclose(value, np.average(expected, weights=weights), rtol=1e-5)
        assert np.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_padding_changes_nothing_at_all(example, loss, closed_form, garbage):
    student, teacher, weights = example
    clean = compiled(loss)(student, teacher, weights, 1.0)
    padding = (weights == 0)[..., None]
    spoilt = compiled(loss)(jnp.where(padding, garbage, student), jnp.where(padding, -garbage, teacher), weights, 1.0)
    np.testing.assert_array_equal(clean[0], spoilt[0])
    np.testing.assert_array_equal(clean[1], spoilt[1])
    assert not np.any(np.asarray(spoilt[1])[np.asarray(weights) == 0])
    assert compiled(loss)(student, teacher, jnp.zeros_like(weights), 1.0)[0] == 0.0


@every_loss
def test_the_teacher_gets_no_gradient(example, loss, closed_form):
    student, teacher, weights = example
    assert not np.any(jax.grad(loss, argnums=1)(student, teacher, weights))


def test_hot_limit_is_half_the_variance_of_the_logit_difference(example):
    """T^2 KL goes to Var_v(student - teacher) / 2, its gradient to the centred difference / V.."""
    student, teacher, weights = example
    weights = jnp.ones_like(weights)
    value, gradient = jax.value_and_grad(partial(forward_kl, temperature=200.0))(student, teacher, weights)
    difference = np.asarray(student - teacher, np.float64)
    np.testing.assert_allclose(value, difference.var(-1).mean() / 2, rtol=0.02)
    centred = difference - difference.mean(-1, keepdims=True)
    np.testing.assert_allclose(gradient, centred / V / (B * T), rtol=0.1, atol=2e-4)
