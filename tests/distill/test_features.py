"""Matching what is inside two models: closed forms in numpy float64, what must not count, and where gradients go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limbeck.distill.features import (
    Heads,
    Tokens,
    add_matchers,
    attention_divergence,
    cosine_distance,
    matching,
    relation_divergence,
    relative_error,
)
from limbeck.distill.match_config import MatchConfig
from limbeck.distill.teacher import STUDENT as LEARNER
from limbeck.distill.teacher import distillation_loss, with_teacher
from limbeck.model.attention import stretches
from limbeck.model.config import ModelConfig
from limbeck.model.transformer import captured, init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.select import moved

B, T = 2, 7
TOKENS = Tokens(
    jnp.asarray([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 0]]), jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [5] * 5 + [0] * 2])
)
REAL = np.asarray(TOKENS.segments_BT) > 0
TEACHER = ModelConfig(vocab_size=31, width=24, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=16)
STUDENT = dataclasses.replace(TEACHER, width=16, depth=2, num_heads=2, num_kv_heads=1, attention_scale=0.5)
ALL = MatchConfig(hidden=1.0, attention=2.0, relations=0.5, relation_heads=2)
IDS = jax.random.randint(jax.random.key(9), (B, T), 0, 31)
BATCH = {"tokens_BT": IDS, "positions_BT": TOKENS.positions_BT, "segments_BT": TOKENS.segments_BT}


def made(config, student=STUDENT, teacher=TEACHER):
    match = matching(config, student, teacher)
    assert match is not None
    return match


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def masked_mean(d_BT):
    return d_BT[REAL].sum() / REAL.sum()


def log_softmax(scores):
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


def naive(student, teacher, tokens, window, heads):
    """The divergence of attention: a loop over queries and heads."""
    positions, segments = (np.asarray(array) for array in tokens)

    def rows(model, b, t, places):
        q, k = (np.asarray(array, np.float64) for array in model[:2])
        N, K, H = q.shape[2], k.shape[2], q.shape[3]
        scores = np.array([[q[b, t, n] @ k[b, s, n * K // N] for s in places] for n in range(N)])
        scores = scores * (H**-0.5 if model.scale is None else model.scale)
        scores = scores if model.cap is None else model.cap * np.tanh(scores / model.cap)
        logs = np.array([log_softmax(row) for row in scores])
        return np.log(np.exp(logs).mean(0, keepdims=True)) if heads == "mean" else logs

    d = np.zeros(segments.shape)
    for b, t in zip(*np.nonzero(segments), strict=True):
        places = [
            s for s in range(t + 1)
            if segments[b, s] == segments[b, t] and positions[b, t] - positions[b, s] < window
        ]  # fmt: skip
        q, p = rows(student, b, t, places), rows(teacher, b, t, places)
        d[b, t] = (np.exp(p) * (p - q)).sum(-1).mean()
    return d.sum() / (segments > 0).sum()


@functools.cache
def models():
    """(student's parameters, teacher's), with attention that is far from even."""
    both = []
    for seed, config in enumerate((STUDENT, TEACHER)):
        params = init(config, jax.random.key(seed))
        both.append({path: leaf * (3.0 if "/attn/" in path else 1.0) for path, leaf in params.items()})
    return both


@functools.cache
def seen(student=STUDENT, teacher=TEACHER):
    names = ("hidden", "k", "q", "v")
    run = jax.jit(functools.partial(captured, names=names), static_argnums=0)
    return [
        run(config, params, IDS, positions_BT=TOKENS.positions_BT, segments_BT=TOKENS.segments_BT)[1]
        for config, params in zip((student, teacher), models(), strict=True)
    ]


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


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_relation_divergence_is_a_loop_over_heads_that_are_cut_anew(heads):
    s, t = noise(0, B, T, 2, 6), noise(1, B, T, 3, 8)
    cut = [x.reshape(B, T, heads, -1) for x in (s, t)]
    expected = naive(Heads(cut[0], cut[0]), Heads(cut[1], cut[1]), TOKENS, 99, "each")
    assert expected > 0.05
    np.testing.assert_allclose(relation_divergence(s, t, TOKENS, heads), expected, rtol=1e-5)


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


def test_equal_models_are_matched_with_no_gradient():
    mine, _ = seen()
    for distance, heads in (("mse", "mean"), ("cosine", "each")):
        config = dataclasses.replace(ALL, hidden_distance=distance, attention_heads=heads)
        match = made(config, STUDENT, STUDENT)
        loss = jax.jit(jax.value_and_grad(lambda own, match=match: match.loss({}, own, mine, BATCH)[0]))
        value, gradient = loss(mine)
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        for name in match.names:
            np.testing.assert_allclose(gradient[name], 0.0, atol=1e-6, err_msg=name)


def test_the_loss_is_the_weighted_sum_over_the_layers_that_are_named():
    """Layer l of hidden states is what block l gives; attention counts blocks from 1. All other layers hold NaN."""
    mine, others = seen()
    config = dataclasses.replace(
        ALL, hidden_layers=((0, 1), (2, 3)), attention_layers=((1, 2), (2, 3)), relation_layers=(2, 1),
        related=("v",), hidden_distance="cosine",
    )  # fmt: skip
    params = add_matchers(config, STUDENT, TEACHER, {}, jax.random.key(0))
    assert {path: leaf.shape for path, leaf in params.items()} == {
        "matcher/hidden_0/kernel": (16, 24), "matcher/hidden_1/kernel": (16, 24),
    }  # fmt: skip
    states = [
        cosine_distance(mine["hidden"][i] @ params[f"matcher/hidden_{n}/kernel"], others["hidden"][j], TOKENS)
        for n, (i, j) in enumerate(((0, 1), (2, 3)))
    ]
    attention = [
        naive(Heads(mine["q"][i], mine["k"][i], 0.5), Heads(others["q"][j], others["k"][j]), TOKENS, 99, "mean")
        for i, j in ((0, 1), (1, 2))
    ]
    relations = relation_divergence(mine["v"][1], others["v"][0], TOKENS, 2)
    match = made(config)
    assert match.names == ("hidden", "k", "q", "v")

    def only(arrays, **layers):
        """NaN in all other layers."""
        kept = {name: np.isin(np.arange(len(x)), layers[name]) for name, x in arrays.items()}
        return {name: jnp.where(kept[name].reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan) for name, x in arrays.items()}

    value, metrics = jax.jit(match.loss)(
        params,
        only(mine, hidden=[0, 2], q=[0, 1], k=[0, 1], v=[1]),
        only(others, hidden=[1, 3], q=[1, 2], k=[1, 2], v=[0]),
        BATCH,
    )
    expected = {
        "match_hidden": np.mean(states), "match_attention": np.mean(attention), "match_relations": relations,
    }  # fmt: skip
    assert metrics.keys() == expected.keys()
    for name, right in expected.items():
        np.testing.assert_allclose(metrics[name], right, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(value, sum(np.array([1.0, 2.0, 0.5]) * [*expected.values()]), rtol=1e-5)


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


def test_relations_are_blind_to_a_rotation_inside_a_relation_head_alone():
    s, t = noise(0, B, T, 2, 6), noise(1, B, T, 2, 6)
    inside, across = (np.linalg.qr(np.random.default_rng(2).normal(size=(n, n)))[0] for n in (4, 12))
    turned = (s.reshape(B, T, 3, 4) @ jnp.asarray(inside, jnp.float32)).reshape(s.shape)
    mixed = (s.reshape(B, T, 12) @ jnp.asarray(across, jnp.float32)).reshape(s.shape)
    value = relation_divergence(s, t, TOKENS, 3)
    np.testing.assert_allclose(relation_divergence(turned, t, TOKENS, 3), value, rtol=1e-5)
    assert abs(relation_divergence(mixed, t, TOKENS, 3) - value) > 0.01 * value
    np.testing.assert_allclose(relation_divergence(turned, s, TOKENS, 3), 0.0, atol=1e-6)


@functools.cache
def both():
    """The student's parameters with its matchers, and the teacher's: in one dict, as in training."""
    mine, others = models()
    return with_teacher(add_matchers(ALL, STUDENT, TEACHER, mine, jax.random.key(3)), others)


@functools.cache
def whole_loss(**changes):
    """(parameters, batch) -> value and gradient of both models and the matching, as training runs them."""
    student, teacher = (dataclasses.replace(config, **changes) for config in (STUDENT, TEACHER))
    match = made(ALL, student, teacher)

    def loss(params, batch):
        places = {name: batch[name] for name in ("positions_BT", "segments_BT")}
        own = {path.removeprefix("teacher/"): leaf for path, leaf in params.items() if path.startswith("teacher/")}
        mine, others = (
            captured(config, leaves, batch["tokens_BT"], **places, names=match.names)[1]
            for config, leaves in ((student, params), (teacher, own))
        )
        return match.loss(params, mine, others, batch)[0]

    return jax.jit(jax.value_and_grad(loss))


def test_the_gradient_goes_to_the_student_and_the_matchers_alone():
    _, gradient = whole_loss()(both(), BATCH)
    for path, leaf in gradient.items():
        outside = path.startswith(("teacher/", "norm/"))  # states are taken before the final norm
        assert np.isfinite(leaf).all() and np.any(leaf != 0) != outside, path


def test_in_training_matchers_move_and_the_match_improves():
    batch = {**BATCH, "targets_BT": IDS, "weights_BT": jnp.asarray(REAL, jnp.float32)}
    loss_fn = distillation_loss(STUDENT, TEACHER, matching=made(ALL))
    optim = OptimConfig(learning_rate=1e-2, schedule="constant")
    fitted = fit(loss_fn, both(), lambda _: batch, FitConfig(30, B, T, optim, log_every=30), selection=LEARNER)
    taught = {path: leaf for path, leaf in both().items() if path.startswith("teacher/")}
    assert fitted.frozen.keys() == taught.keys() and not any(moved(taught, fitted.frozen).values())
    assert moved(both(), fitted.trainable)["matcher/hidden_0/kernel"]
    run = jax.jit(loss_fn)
    before, after = (run(params, batch, jax.random.key(0))[1] for params in (both(), fitted.trainable | taught))
    for name in ("match_hidden", "match_attention", "match_relations"):
        assert after[name] < 0.7 * before[name], name


def test_scanned_and_unrolled_students_are_one():
    value, gradient = whole_loss()(both(), BATCH)
    other, other_gradient = whole_loss(scan=False)(both(), BATCH)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for path, leaf in gradient.items():
        np.testing.assert_allclose(other_gradient[path], leaf, atol=1e-5 * max(1, float(np.abs(leaf).max())))


def test_packed_documents_count_as_each_by_itself():
    run = whole_loss()
    alone, sizes = [], []
    for row, start, stop in ((0, 0, 3), (0, 3, 7), (1, 0, 5)):
        ids = np.zeros((B, T), np.int32)
        ids[0, : stop - start] = IDS[row, start:stop]
        inside = np.arange(T) < stop - start
        batch = {
            "tokens_BT": jnp.asarray(ids),
            "positions_BT": np.stack([np.arange(T) * inside, np.zeros(T)]).astype(np.int32),
            "segments_BT": np.stack([inside, np.zeros(T)]).astype(np.int32),
        }
        alone.append(run(both(), batch)[0])
        sizes.append(stop - start)
    np.testing.assert_allclose(run(both(), BATCH)[0], np.average(alone, weights=sizes), rtol=1e-5)


@functools.cache
def matched():
    """(matchers, student's arrays, teacher's, segments) -> value and gradient of the matching alone."""

    def loss(matchers, mine, others, segments_BT):
        return made(ALL).loss(matchers, mine, others, {**BATCH, "segments_BT": segments_BT})[0]

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


MATCHERS = add_matchers(ALL, STUDENT, TEACHER, {}, jax.random.key(3))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30, -3.0])
def test_padding_may_hold_anything(garbage):
    arrays = seen()

    def soiled(array):
        real = REAL.reshape(1, B, T, *(1,) * (array.ndim - 3))
        return jnp.where(real, array, garbage)

    value, gradients = matched()(MATCHERS, *arrays, TOKENS.segments_BT)
    soiled_value, soiled_gradients = matched()(MATCHERS, *jax.tree.map(soiled, arrays), TOKENS.segments_BT)
    np.testing.assert_array_equal(value, soiled_value)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(soiled_gradients), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in arrays[0]:
        assert (np.asarray(soiled_gradients[1][name])[:, ~REAL] == 0).all(), name
        assert (np.asarray(soiled_gradients[1][name])[:, REAL] != 0).any(), name


def test_a_batch_of_padding_alone_weighs_nothing():
    value, gradients = matched()(MATCHERS, *seen(), jnp.zeros((B, T), jnp.int32))
    assert value == 0 and all((leaf == 0).all() for leaf in jax.tree.leaves(gradients))


def test_matchers_are_there_where_they_are_needed_or_asked_for():
    key, given = jax.random.key(0), {"embed/embedding": jnp.ones(3)}
    assert add_matchers(MatchConfig(), STUDENT, TEACHER, given, key) == given
    assert add_matchers(MatchConfig(hidden=1.0), STUDENT, STUDENT, given, key) == given
    asked = add_matchers(MatchConfig(hidden=1.0, projected=True), STUDENT, STUDENT, given, key)
    assert asked.keys() - given.keys() == {f"matcher/hidden_{i}/kernel" for i in range(3)}
    np.testing.assert_array_equal(asked["matcher/hidden_1/kernel"], np.eye(16))
    assert matching(MatchConfig(), STUDENT, TEACHER) is None
    assert made(MatchConfig(hidden=1.0)).names == ("hidden",)
    assert made(MatchConfig(relations=1.0, related=("v",), relation_heads=1)).names == ("v",)
