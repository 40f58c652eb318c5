"""Every divergence against its closed form in numpy float64, and the chunked loss against the dense one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.loss import (
    chunked_divergence,
    forward_kl,
    generalized_jsd,
    reverse_kl,
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


CLOSED_FORMS = {  # of the teacher's p and the student's q
    "forward_kl": (forward_kl, kl),
    "reverse_kl": (reverse_kl, lambda p, q: kl(q, p)),
    "jsd 0.5": (partial(generalized_jsd, beta=0.5), jsd(0.5)),
    "jsd 0.1": (partial(generalized_jsd, beta=0.1), jsd(0.1)),
    "jsd 0": (partial(generalized_jsd, beta=0.0), kl),
    "jsd 1": (partial(generalized_jsd, beta=1.0), lambda p, q: kl(q, p)),
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


# The chunked loss

N, D, D_TEACHER = 24, 5, 8
LOSSES = {f.__name__: f for f in (forward_kl, reverse_kl, generalized_jsd, total_variation, teacher_cross_entropy)}


@pytest.fixture
def hidden():
    keys = jax.random.split(jax.random.key(1), 5)
    shapes = [(N, D), (D, V), (N, D_TEACHER), (D_TEACHER, V)]
    arrays = [jax.random.normal(k, shape) for k, shape in zip(keys[:4], shapes, strict=True)]
    weights = (jnp.arange(N) % 3 > 0) * jnp.linspace(0.5, 1.5, N)
    return *arrays, weights, jax.random.randint(keys[4], (N,), 0, V)


def dense(name, student_ND, student_DV, teacher_ND, teacher_DV, weights, targets, *, temperature, hard_weight):
    student_NV, teacher_NV = student_ND @ student_DV, teacher_ND @ teacher_DV
    one_hot_NV = jnp.where(jax.nn.one_hot(targets, V) > 0, 0.0, -1e9)
    hard = teacher_cross_entropy(student_NV, one_hot_NV, weights)
    soft = LOSSES[name](student_NV, teacher_NV, weights, temperature=temperature)
    return hard_weight * hard + (1 - hard_weight) * soft, {"cross_entropy": hard, "divergence": soft}


@pytest.mark.parametrize(
    ("name", "chunk"),
    [(name, 7) for name in LOSSES] + [("forward_kl", chunk) for chunk in (1, 8, 24, 100, None)],
)
def test_chunked_is_dense(hidden, name, chunk):
    settings = {"temperature": 2.0, "hard_weight": 0.3}
    both = [
        jax.jit(jax.value_and_grad(partial(f, name, **settings), argnums=(0, 1), has_aux=True))(*hidden)
        for f in (partial(chunked_divergence, chunk=chunk), dense)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *both)


def test_chunked_under_a_scaled_and_partial_gradient(hidden):
    """A factor on the loss scales the gradient; freezing head or hidden state leaves the other's as it is."""

    def loss(student_ND, student_DV):
        return chunked_divergence("reverse_kl", student_ND, student_DV, *hidden[2:], hard_weight=0.5, chunk=5)[0]

    both = jax.grad(loss, argnums=(0, 1))(*hidden[:2])
    scaled = jax.grad(lambda *x: -3.0 * loss(*x), argnums=(0, 1))(*hidden[:2])
    for i in range(2):
        np.testing.assert_array_equal(jax.grad(loss, argnums=i)(*hidden[:2]), both[i])
        np.testing.assert_allclose(scaled[i], -3.0 * both[i], rtol=1e-6)


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_chunked_padding_changes_nothing_at_all(hidden, garbage):
    student_ND, student_DV, teacher_ND, teacher_DV, weights, targets = hidden

    def run(student_ND, teacher_ND, targets):
        return jax.value_and_grad(
            lambda h, w: chunked_divergence(
                "generalized_jsd", h, w, teacher_ND, teacher_DV, weights, targets, hard_weight=0.5, chunk=7
            ),
            argnums=(0, 1),
            has_aux=True,
        )(student_ND, student_DV)

    padding = weights == 0
    spoilt = run(
        jnp.where(padding[:, None], garbage, student_ND),
        jnp.where(padding[:, None], garbage, teacher_ND),
        jnp.where(padding, -100, targets),
    )
    jax.tree.map(np.testing.assert_array_equal, run(student_ND, teacher_ND, targets), spoilt)


def test_chunked_moves_the_student_alone(hidden):
    student_ND, student_DV, *others, targets = hidden

    def loss_and_metrics(teacher_ND, teacher_DV, weights):
        arrays = (student_ND, student_DV, teacher_ND, teacher_DV, weights, targets)
        out = chunked_divergence("forward_kl", *arrays, hard_weight=0.5, chunk=7)
        return jnp.stack(jax.tree.leaves(out)).sum()

    gradients = jax.grad(loss_and_metrics, argnums=(0, 1, 2))(*others)
    assert not any(np.any(g) for g in gradients)


def test_chunked_in_bfloat16(hidden):
    half = [x.astype(jnp.bfloat16) for x in hidden[:4]]

    def loss(h, w):
        return chunked_divergence("forward_kl", h, w, *half[2:], *hidden[4:], hard_weight=0.5, chunk=8)[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*half[:2])
    full = dense("forward_kl", *[x.astype(jnp.float32) for x in half], *hidden[4:], temperature=1.0, hard_weight=0.5)
    assert value.dtype == jnp.float32 and all(g.dtype == jnp.bfloat16 for g in gradients)
    np.testing.assert_allclose(value, full[0], rtol=1e-5)


def test_an_unknown_name_is_answered_with_the_nearest(hidden):
    with pytest.raises(UserError, match="did you mean 'forward_kl'"):
        chunked_divergence("foward_kl", *hidden)


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    width, vocab, chunk = 8, 2048, 64

    def temporary_bytes(f, tokens):
        shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        head, states = shape((width, vocab)), shape((tokens, width))
        targets = jax.ShapeDtypeStruct((tokens,), jnp.int32)
        lowered = jax.jit(jax.grad(f, argnums=(0, 1))).lower(states, head, states, head, shape((tokens,)), targets)
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    def chunked(*x):
        return chunked_divergence("forward_kl", *x, temperature=2.0, hard_weight=0.5, chunk=chunk)[0]

    def whole(*x):
        return forward_kl(x[0] @ x[1], x[2] @ x[3], x[4], temperature=2.0)

    growth, logits_growth = 512, 512 * vocab * 4  # from 512 to 1024 tokens
    assert temporary_bytes(whole, 1024) - temporary_bytes(whole, 512) >= logits_growth
    assert temporary_bytes(chunked, 1024) - temporary_bytes(chunked, 512) < 20 * growth * width * 4
    assert temporary_bytes(chunked, 1024) < 12 * chunk * vocab * 4
