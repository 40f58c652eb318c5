"""Matching what is inside two models: which layers count, what must not, and where gradients go."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matched_pair import ALL, BATCH, IDS, REAL, STUDENT, TEACHER, TOKENS, B, T, made, models, naive, seen

from limbeck.distill.features import Heads, add_matchers, cosine_distance, matching, relation_divergence
from limbeck.distill.match_config import MatchConfig
from limbeck.distill.teacher import STUDENT as LEARNER
from limbeck.distill.teacher import distillation_loss, with_teacher
from limbeck.model.transformer import captured
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.select import moved


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
