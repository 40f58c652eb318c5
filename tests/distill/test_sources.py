"""Cached distributions and mixtures of teachers: what they hold in full they reproduce, and samples are unbiased."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.distill.chunked import chunked_loss
from limbeck.distill.config import DistilConfig
from limbeck.distill.loss import divergence, forward_kl
from limbeck.distill.sources import Teacher, cached, live

N, V, K = 12, 11, 4
EYE = jnp.eye(V)  # hidden states are the logits themselves


@pytest.fixture
def example():
    keys = jax.random.split(jax.random.key(0), 3)
    student, teacher = (jax.random.normal(key, (N, V)) * 2 for key in keys[:2])
    weights = (jnp.arange(N) % 3 > 0) * jnp.linspace(0.5, 1.5, N)
    return student, teacher, weights, jax.random.randint(keys[2], (N,), 0, V)


def entries(teacher_NV, k, dtype: type = np.float32):
    """The k likeliest tokens of each, in no particular order, and their log-probabilities."""
    logprobs = np.asarray(jax.nn.log_softmax(teacher_NV))
    ids = np.random.default_rng(0).permuted(np.argsort(-logprobs)[:, :k], axis=1)
    return jnp.asarray(ids), jnp.asarray(np.take_along_axis(logprobs, ids, 1).astype(dtype))


def run(source, student_NV, weights, targets, temperature=1.0, hard_weight=0.0):
    def loss(student_NV):
        return chunked_loss(
            source, student_NV, EYE, targets, weights, temperature=temperature, hard_weight=hard_weight, chunk=5
        )

    return jax.value_and_grad(loss, has_aux=True)(student_NV)


@partial(jax.jit, static_argnums=(0, 1, 2))
def from_cache(objective, cache, temperature, ids, logprobs, student_NV, weights, targets):
    source = cached(divergence(DistilConfig(objective)), cache, ids, logprobs, V, temperature)
    return run(source, student_NV, weights, targets, temperature, 0.3)


@partial(jax.jit, static_argnums=(0, 1))
def from_live(objective, temperature, teacher_NV, student_NV, weights, targets):
    of_tokens = divergence(DistilConfig(objective))
    source = live(of_tokens, [Teacher(teacher_NV, EYE)], jnp.ones(len(weights), bool), V, temperature)
    return run(source, student_NV, weights, targets, temperature, 0.3)


close = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))


@pytest.mark.parametrize(
    ("objective", "cache", "temperature"),
    [
        ("forward_kl", "topk", 2.0),
        ("forward_kl", "topk", 1.0),
        ("teacher_cross_entropy", "topk", 2.0),
        ("skewed_forward_kl", "topk", 2.0),
        ("forward_kl", "topk_tail", 1.0),
        ("forward_kl", "sampled", 1.0),
    ],
)
def test_a_cache_of_the_whole_vocabulary_is_the_live_teacher(example, objective, cache, temperature):
    student, teacher, weights, targets = example
    found = from_cache(objective, cache, temperature, *entries(teacher, V), student, weights, targets)
    close(found, from_live(objective, temperature, teacher, student, weights, targets))


def closed_form(student, teacher, weights, kept, tail, temperature):
    """The cached KL in float64: `kept` marks the entries that are there."""
    log_q = np.asarray(student, np.float64) / temperature
    log_q = log_q - np.log(np.exp(log_q).sum(-1, keepdims=True))
    p = np.exp(np.asarray(teacher, np.float64))
    p = p / p.sum(-1, keepdims=True)
    if tail:
        q_rest, p_rest = (np.where(kept, 0, x).sum(-1) for x in (np.exp(log_q), p))
    else:
        p = p ** (1 / temperature)
        p, q_rest, p_rest = p / np.where(kept, p, 0).sum(-1, keepdims=True), np.ones(len(p)), np.zeros(len(p))
    d = np.where(kept, p * (np.log(p) - log_q), 0).sum(-1)
    d = d + np.where(p_rest > 0, p_rest * (np.log(np.where(p_rest > 0, p_rest, 1)) - np.log(q_rest)), 0)
    return temperature**2 * (np.asarray(weights, np.float64) * d).sum() / np.asarray(weights, np.float64).sum()


@pytest.mark.parametrize(("cache", "temperature"), [("topk", 1.0), ("topk", 2.0), ("topk_tail", 1.0)])
@pytest.mark.parametrize("unused", [0, 2])
def test_the_closed_form_of_what_is_cached(example, cache, temperature, unused):
    """Slots that are not used (-inf) are not there, though they name a token."""
    student, teacher, weights, targets = example
    ids, logprobs = entries(teacher, K)
    if unused:
        ids, logprobs = ids.at[:, -unused:].set(0), logprobs.at[:, -unused:].set(-jnp.inf)
    kept = np.zeros((N, V), bool)
    np.put_along_axis(kept, np.asarray(ids[:, : K - unused]), True, 1)
    (_, metrics), gradient = from_cache("forward_kl", cache, temperature, ids, logprobs, student, weights, targets)
    expected = closed_form(student, teacher, weights, kept, cache == "topk_tail", temperature)
    np.testing.assert_allclose(metrics["divergence"], expected, rtol=1e-6)

    def moved(step):  # along the gradient of the whole loss, of which 0.7 is the divergence
        at = np.asarray(student, np.float64) + step * np.asarray(gradient, np.float64)
        log_q = at - np.log(np.exp(at).sum(-1, keepdims=True))
        picked = np.take_along_axis(log_q, np.asarray(targets)[:, None], 1)[:, 0]
        hard = -np.average(picked, weights=np.asarray(weights))
        return 0.3 * hard + 0.7 * closed_form(at, teacher, weights, kept, cache == "topk_tail", temperature)

    slope = (moved(1e-4) - moved(-1e-4)) / 2e-4
    np.testing.assert_allclose((np.asarray(gradient, np.float64) ** 2).sum(), slope, rtol=1e-5)


def test_the_tail_of_a_sure_student_is_not_rounded_away():
    """All but one part in 10^9 of the student lies on what is cached: 1 minus that would be 0 in float32."""
    student = jnp.zeros((1, V)).at[0, 0].set(23.0)
    teacher = jnp.zeros((1, V)).at[0, 0].set(5.0)
    ids, logprobs = jnp.asarray([[0]]), jax.nn.log_softmax(teacher)[:, :1]
    one = jnp.ones(1)
    (_, metrics), gradient = from_cache("forward_kl", "topk_tail", 1.0, ids, logprobs, student, one, ids[0])
    kept = np.arange(V)[None] == 0
    expected = closed_form(student, teacher, one, kept, True, 1.0)
    np.testing.assert_allclose(metrics["divergence"], expected, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_half_precision_of_the_cache_costs_no_more_than_its_rounding(example):
    student, teacher, weights, targets = example
    for cache, k in (("topk", K), ("topk_tail", K), ("topk_tail", V - 1), ("sampled", V)):
        (whole, _), half = (
            from_cache("forward_kl", cache, 1.0, *entries(teacher, k, dtype), student, weights, targets)
            for dtype in (np.float32, np.float16)
        )
        np.testing.assert_allclose(half[0][0], whole[0], rtol=5e-3)
        assert np.isfinite(half[1]).all()


@pytest.mark.parametrize("cache", ["topk", "topk_tail", "sampled"])
def test_padding_changes_nothing_at_all(example, cache):
    student, teacher, weights, targets = example
    ids, logprobs = entries(teacher, K)
    clean = from_cache("forward_kl", cache, 1.0, ids, logprobs, student, weights, targets)
    padding = (weights == 0)[:, None]
    for garbage in (np.nan, np.inf, -np.inf):
        spoilt = from_cache(
            "forward_kl",
            cache,
            1.0,
            jnp.where(padding, 10**6, ids),
            jnp.where(padding, garbage, logprobs),
            jnp.where(padding, garbage, student),
            weights,
            targets,
        )
        jax.tree.map(np.testing.assert_array_equal, clean, spoilt)


@pytest.mark.parametrize("cache", ["topk", "topk_tail"])
def test_a_token_without_entries_has_no_teacher(example, cache):
    """Its target counts all the same, and the mean is over all tokens."""
    student, teacher, weights, targets = example
    ids, logprobs = entries(teacher, K)
    there = jnp.arange(N) % 4 != 1
    logprobs = jnp.where(there[:, None], logprobs, -jnp.inf)
    (_, found), gradient = from_cache("forward_kl", cache, 1.0, ids, logprobs, student, weights, targets)
    (_, kept), _ = from_cache("forward_kl", cache, 1.0, ids, logprobs, student, weights * there, targets)
    (_, whole), _ = from_cache("forward_kl", cache, 1.0, *entries(teacher, K), student, weights, targets)
    share = (weights * there).sum() / weights.sum()
    np.testing.assert_allclose(found["divergence"], kept["divergence"] * share, rtol=1e-5)
    np.testing.assert_allclose(found["cross_entropy"], whole["cross_entropy"], rtol=1e-6)
    assert np.isfinite(gradient).all()


# Samples: the mean gradient over many draws is the live one, as far as its standard error can tell.

DRAWS, REPEATS = 4, 3000


def sampled_gradients(estimate):
    """[REPEATS, 3, V]: what each set of draws says of three tokens' gradient; and the live gradient [3, V]."""
    teacher = np.asarray(jax.random.normal(jax.random.key(3), (3, V)) * 2, np.float64)
    student = jax.random.normal(jax.random.key(4), (3, V))
    p = np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)
    rng = np.random.default_rng(5)
    counts = np.stack([rng.multinomial(DRAWS, row, REPEATS) for row in p], 1).reshape(-1, V)
    ids = np.argsort(-counts, axis=1)[:, :DRAWS]
    kept = np.take_along_axis(counts, ids, 1)
    logprobs = estimate(kept, np.take_along_axis(np.tile(p, (REPEATS, 1)), ids, 1))
    rows = 3 * REPEATS
    source = cached(divergence(DistilConfig()), "sampled", jnp.asarray(ids), jnp.asarray(logprobs, jnp.float32), V, 1.0)
    students, targets = jnp.tile(student, (REPEATS, 1)), jnp.zeros(rows, jnp.int32)
    gradient = jax.jit(partial(run, source))(students, jnp.ones(rows), targets)[1]
    exact = jax.grad(forward_kl)(student[None], jnp.asarray(teacher, jnp.float32)[None], jnp.ones((1, 3)))[0]
    return np.asarray(gradient, np.float64).reshape(REPEATS, 3, V) * rows, 3 * np.asarray(exact, np.float64)


def furthest(gradients, exact):
    """How many standard errors the mean gradient is from the exact one, at the worst of 33 numbers."""
    error = gradients.std(0) / np.sqrt(len(gradients))
    return np.abs((gradients.mean(0) - exact) / np.maximum(error, 1e-12)).max()


def test_the_gradient_of_samples_is_unbiased():
    with np.errstate(divide="ignore"):
        assert furthest(*sampled_gradients(lambda counts, p: np.log(counts / DRAWS))) < 4.5
        # The same draws with other weights: the test tells, were these taken for the right ones.
        by_probability = sampled_gradients(lambda counts, p: np.where(counts > 0, np.log(p), -np.inf))
        assert furthest(*by_probability) > 20
        assert furthest(*sampled_gradients(lambda counts, p: np.where(counts > 0, 0.0, -np.inf))) > 20


def test_several_teachers_are_the_mixture_of_their_probabilities(example):
    student, teacher, weights, targets = example
    other = jnp.roll(teacher, 3, axis=1)
    shares, temperature = (0.25, 0.75), 2.0
    mixture = sum(share * jax.nn.softmax(x / temperature) for share, x in zip(shares, (teacher, other), strict=True))
    for objective in ("forward_kl", "generalized_jsd"):
        of_tokens = divergence(DistilConfig(objective))
        taught = jnp.ones(N, bool)
        teachers = [Teacher(x, EYE, None, share) for share, x in zip(shares, (teacher, other), strict=True)]
        source = live(of_tokens, teachers, taught, V, temperature)
        found = jax.jit(partial(run, source, temperature=temperature, hard_weight=0.3))(student, weights, targets)
        as_one = temperature * jnp.log(jnp.asarray(mixture))
        close(found, from_live(objective, temperature, as_one, student, weights, targets))


def test_logits_beyond_the_shared_vocabulary_are_left_out(example):
    """The student's own padding is in its cross-entropy to the targets, and in nothing else."""
    student, teacher, weights, targets = example
    wide = jnp.eye(V, V + 3).at[:, V:].set(0.1)
    wider = jnp.eye(V, V + 5).at[:, V:].set(9.0)
    of_tokens = divergence(DistilConfig())
    source = live(of_tokens, [Teacher(teacher, wider)], jnp.ones(N, bool), V, 1.0)

    @jax.jit
    def found(student):
        return chunked_loss(source, student, wide, targets, weights, hard_weight=0.3, chunk=5)

    value, metrics = found(student)
    (_, narrow), _ = from_live("forward_kl", 1.0, teacher, student, weights, targets)
    np.testing.assert_allclose(metrics["divergence"], narrow["divergence"], rtol=1e-6)
    log_q = jax.nn.log_softmax(student @ wide)
    hard = -(weights * jnp.take_along_axis(log_q, targets[:, None], 1)[:, 0]).sum() / weights.sum()
    np.testing.assert_allclose(metrics["cross_entropy"], hard, rtol=1e-6)
    np.testing.assert_allclose(value, 0.3 * hard + 0.7 * metrics["divergence"], rtol=1e-6)
