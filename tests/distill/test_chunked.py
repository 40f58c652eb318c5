"""The loss over chunks against the dense one: value, gradient, padding, memory, and what a tracer may be."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill import loss as dense_losses
from limbeck.distill.chunked import chunked_loss
from limbeck.distill.config import DistilConfig
from limbeck.distill.loss import divergence, forward_kl, teacher_cross_entropy
from limbeck.distill.sources import Teacher, live
from limbeck.model.errors import UserError

N, D, D_TEACHER, V = 24, 5, 8, 11
OBJECTIVES = (
    "forward_kl",
    "reverse_kl",
    "generalized_jsd",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "teacher_cross_entropy",
)


def chunked(name, student_ND, student_DV, teacher_ND, teacher_DV, weights, targets, *, temperature=1.0, **settings):
    """The core with one live teacher, of all tokens if nothing else is said."""
    taught = settings.pop("taught", jnp.ones(len(weights), bool))
    cap = settings.get("cap")
    of_tokens = divergence(DistilConfig(name))
    source = live(of_tokens, [Teacher(teacher_ND, teacher_DV, cap)], taught, V, temperature)
    return chunked_loss(source, student_ND, student_DV, targets, weights, temperature=temperature, **settings)


def dense(name, student_ND, student_DV, teacher_ND, teacher_DV, weights, targets, *, temperature, hard_weight):
    student_NV, teacher_NV = student_ND @ student_DV, teacher_ND @ teacher_DV
    one_hot_NV = jnp.where(jax.nn.one_hot(targets, V) > 0, 0.0, -1e9)
    hard = teacher_cross_entropy(student_NV, one_hot_NV, weights)
    soft = getattr(dense_losses, name)(student_NV, teacher_NV, weights, temperature=temperature)
    return hard_weight * hard + (1 - hard_weight) * soft, {"cross_entropy": hard, "divergence": soft}


@pytest.fixture
def hidden():
    keys = jax.random.split(jax.random.key(1), 5)
    shapes = [(N, D), (D, V), (N, D_TEACHER), (D_TEACHER, V)]
    arrays = [jax.random.normal(k, shape) for k, shape in zip(keys[:4], shapes, strict=True)]
    weights = (jnp.arange(N) % 3 > 0) * jnp.linspace(0.5, 1.5, N)
    return *arrays, weights, jax.random.randint(keys[4], (N,), 0, V)


def value_and_gradient(f, *arguments):
    return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(*arguments)


@pytest.mark.parametrize(
    ("name", "chunk", "temperature", "hard_weight"),
    [(name, 7, 2.0, 0.3) for name in OBJECTIVES]
    + [("forward_kl", chunk, 2.0, 0.3) for chunk in (1, 8, 24, 100, None)]
    + [("reverse_kl", 7, 1.0, 0.3), ("forward_kl", 7, 1.0, 0.0), ("forward_kl", 7, 2.0, 0.0)],
)
def test_chunked_is_dense(hidden, name, chunk, temperature, hard_weight):
    settings = {"temperature": temperature, "hard_weight": hard_weight}
    both = [
        value_and_gradient(partial(f, name, **settings), *hidden) for f in (partial(chunked, chunk=chunk), dense)
    ]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *both)


def test_traced_settings_are_numbers(hidden):
    """One compiled program for all temperatures and hard weights, also for those that are special as numbers."""
    compiled = []

    @jax.jit
    def traced(temperature, hard_weight):
        compiled.append(temperature)
        settings = {"temperature": temperature, "hard_weight": hard_weight, "chunk": 7}

        def loss(student_ND, student_DV):
            return chunked("forward_kl", student_ND, student_DV, *hidden[2:], **settings)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*hidden[:2])

    for temperature, hard_weight in ((1.0, 0.0), (2.0, 0.3), (1.0, 1.0)):
        settings = {"temperature": temperature, "hard_weight": hard_weight}
        expected = value_and_gradient(partial(dense, "forward_kl", **settings), *hidden)
        found = traced(jnp.float32(temperature), jnp.float32(hard_weight))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    assert len(compiled) == 1


def test_a_token_without_a_teacher_counts_in_the_hard_term_alone(hidden):
    models, (weights, targets) = hidden[:4], hidden[4:]
    taught = jnp.arange(N) % 4 != 1
    settings: dict[str, Any] = {"temperature": 2.0, "hard_weight": 0.3, "chunk": 7, "taught": taught}

    def found(student_ND, student_DV):
        return chunked("forward_kl", student_ND, student_DV, *hidden[2:], **settings)

    def expected(student_ND, student_DV):
        of_both = partial(dense, "forward_kl", student_ND, student_DV, *models[2:], temperature=2.0, hard_weight=0.0)
        soft, _ = of_both(weights * taught, targets)
        _, parts = of_both(weights, targets)
        soft *= (weights * taught).sum() / weights.sum()  # the mean is over all tokens, so that portions add up
        hard = parts["cross_entropy"]
        return 0.3 * hard + 0.7 * soft, {"cross_entropy": hard, "divergence": soft}

    both = [value_and_gradient(f, *models[:2]) for f in (found, expected)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *both)


def test_capped_logits(hidden):
    def capped(student_ND, student_DV):
        student_NV, teacher_NV = (2 * jnp.tanh(x / 2) for x in (student_ND @ student_DV, hidden[2] @ hidden[3]))
        return forward_kl(student_NV, teacher_NV, hidden[4], temperature=2.0)

    def found(student_ND, student_DV):
        return chunked("forward_kl", student_ND, student_DV, *hidden[2:], temperature=2.0, cap=2.0, chunk=7)[0]

    both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*hidden[:2]) for f in (capped, found)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *both)


def test_under_a_scaled_and_partial_gradient(hidden):
    """A factor on the loss scales the gradient; freezing head or hidden state leaves the other's as it is."""

    def loss(student_ND, student_DV):
        return chunked("reverse_kl", student_ND, student_DV, *hidden[2:], hard_weight=0.5, chunk=5)[0]

    both = jax.grad(loss, argnums=(0, 1))(*hidden[:2])
    scaled = jax.grad(lambda *x: -3.0 * loss(*x), argnums=(0, 1))(*hidden[:2])
    for i in range(2):
        np.testing.assert_array_equal(jax.grad(loss, argnums=i)(*hidden[:2]), both[i])
        np.testing.assert_allclose(scaled[i], -3.0 * both[i], rtol=1e-6)


def test_a_frozen_head_costs_nothing(hidden):
    """The gradient of the hidden states alone has no product of the head's size in it."""

    def loss(student_ND, student_DV):
        return chunked("forward_kl", student_ND, student_DV, *hidden[2:], chunk=6)[0]

    def head_sized(argnums):
        text = jax.jit(jax.grad(loss, argnums=argnums)).lower(*hidden[:2]).as_text()
        return text.count(f"-> tensor<{D}x{V}xf32>")

    assert head_sized((0,)) < head_sized((0, 1))


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_padding_changes_nothing_at_all(hidden, garbage):
    student_ND, student_DV, teacher_ND, teacher_DV, weights, targets = hidden

    @jax.jit
    def run(student_ND, teacher_ND, targets):
        return jax.value_and_grad(
            lambda h, w: chunked("generalized_jsd", h, w, teacher_ND, teacher_DV, weights, targets, hard_weight=0.5,
                                 temperature=2.0, chunk=7),
            argnums=(0, 1),
            has_aux=True,
        )(student_ND, student_DV)  # fmt: skip

    padding = weights == 0
    spoilt = run(
        jnp.where(padding[:, None], garbage, student_ND),
        jnp.where(padding[:, None], garbage, teacher_ND),
        jnp.where(padding, -100, targets),
    )
    jax.tree.map(np.testing.assert_array_equal, run(student_ND, teacher_ND, targets), spoilt)


def test_the_student_alone_moves(hidden):
    student_ND, student_DV, *others, targets = hidden

    def loss_and_metrics(teacher_ND, teacher_DV, weights):
        out = chunked(
            "forward_kl", student_ND, student_DV, teacher_ND, teacher_DV, weights, targets, hard_weight=0.5, chunk=7
        )
        return jnp.stack(jax.tree.leaves(out)).sum()

    gradients = jax.grad(loss_and_metrics, argnums=(0, 1, 2))(*others)
    assert not any(np.any(g) for g in gradients)


def test_in_bfloat16(hidden):
    half = [x.astype(jnp.bfloat16) for x in hidden[:4]]

    def loss(h, w):
        return chunked("forward_kl", h, w, *half[2:], *hidden[4:], hard_weight=0.5, chunk=8)[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*half[:2])
    full = dense("forward_kl", *[x.astype(jnp.float32) for x in half], *hidden[4:], temperature=1.0, hard_weight=0.5)
    assert value.dtype == jnp.float32 and all(g.dtype == jnp.bfloat16 for g in gradients)
    np.testing.assert_allclose(value, full[0], rtol=1e-5)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'forward_kl'"):
        DistilConfig("foward_kl")  # pyright: ignore[reportArgumentType]


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

    def in_chunks(student_ND, student_DV, teacher_ND, teacher_DV, weights, targets):
        taught = jnp.ones(len(weights), bool)
        teacher = Teacher(teacher_ND, teacher_DV)
        source = live(divergence(DistilConfig()), [teacher], taught, vocab, 2.0)
        settings = {"temperature": 2.0, "hard_weight": 0.5, "chunk": chunk}
        return chunked_loss(source, student_ND, student_DV, targets, weights, **settings)[0]

    def whole(*x):
        return forward_kl(x[0] @ x[1], x[2] @ x[3], x[4], temperature=2.0)

    growth, logits_growth = 512, 512 * vocab * 4  # from 512 to 1024 tokens
    assert temporary_bytes(whole, 1024) - temporary_bytes(whole, 512) >= logits_growth
    assert temporary_bytes(in_chunks, 1024) - temporary_bytes(in_chunks, 512) < 20 * growth * width * 4
    assert temporary_bytes(in_chunks, 1024) < 12 * chunk * vocab * 4
