"""Masked gradients: which entries are chosen, that they train as under a dense mask, and that no other one moves."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limbeck.model.chosen import choose, unchosen
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params, count, cut, join, merge
from limbeck.model.transformer import init
from limbeck.train import masks
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.loss import token_loss
from limbeck.train.masks import fisher_entries, gradient_entries, magnitude_entries, random_entries, targeted
from limbeck.train.optim import make_optimizer, optimizer_bytes, schedule
from limbeck.train.select import apply_selection, chosen_only
from limbeck.train.step import init_state, make_step

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=3, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16
)  # fmt: skip
BASE = init(CONFIG, jax.random.key(0))
Q, UP, EMBED, NORM = "blocks/attn/q/kernel", "blocks/mlp/up/kernel", "embed/embedding", "norm/scale"
TARGETS = f"{Q}|{UP}|{EMBED}|{NORM}"
KEY = jax.random.key(0)


def batch_at(step):
    rng = np.random.default_rng(step)
    ids_BT = rng.integers(1, 31, (4, 9))
    return {
        "tokens_BT": ids_BT[:, :-1],
        "targets_BT": ids_BT[:, 1:],
        "weights_BT": (rng.random((4, 8)) < 0.7).astype(np.float32),
        "positions_BT": np.tile(np.arange(8), (4, 1)),
        "segments_BT": np.tile(4 * step + np.arange(4)[:, None] + 1, (1, 8)),
    }


def flat(leaf, index):
    """A leaf's rows of entries, as many as its index has."""
    return np.asarray(leaf).reshape(*index.shape[:-1], -1)


def dense(index, shape):
    mask = np.zeros((*index.shape[:-1], int(np.prod(shape)) // (index.shape[0] if index.ndim == 2 else 1)), bool)
    np.put_along_axis(mask, index, True, -1)
    return mask.reshape(shape)


def picked(leaf, index):
    return jnp.take_along_axis(leaf.reshape(*index.shape[:-1], -1), index, -1)


@pytest.mark.parametrize(
    "way", [{}, {"scan": False}, {"remat": "full", "dtype": "bfloat16"}], ids=["scan", "loop", "bfloat16"]
)
def test_five_steps_equal_those_under_a_dense_mask_bitwise(way):
    """The dense way: whole gradients; moments, decay and update of all entries; a mask of 0 and 1 on the update, last.

    What is clipped is the gradient of the chosen entries, so that the norm is theirs in both. The updates are worked
    out one operation after the other: compiled, a product and a sum become one operation where no mask is between
    them, which rounds once less. (bfloat16 with everything computed again: what is kept decides what is rounded.)
    """
    config = dataclasses.replace(CONFIG, **way)
    loss_fn, optim = token_loss(config), OptimConfig(learning_rate=1e-2, weight_decay=0.1, clip=0.1)
    indices = random_entries(BASE, targets=TARGETS, share=0.05)
    own, rest = {path: BASE[path] for path in indices}, {path: BASE[path] for path in BASE if path not in indices}
    trainable, frozen = apply_selection(chosen_only(), choose(BASE, indices))
    optimizer = make_optimizer(optim, 5)
    rule = optax.adamw(
        schedule(optim, 5), optim.b1, optim.b2, optim.eps, weight_decay=0.1, mask={path: path != NORM for path in own}
    )
    of_chosen = jax.jit(jax.grad(lambda own, batch: loss_fn(merge(own, frozen), batch, KEY)[0]))
    of_all = jax.jit(jax.grad(lambda own, batch: loss_fn(merge(own, rest), batch, KEY)[0]))
    moving, opt, dense_opt = trainable, optimizer.init(trainable), rule.init(own)
    for number in range(5):
        updates, opt = optimizer.update(of_chosen(moving, batch_at(number)), opt, moving)
        moving = cast(Params, optax.apply_updates(moving, updates))

        gradient = of_all(own, batch_at(number))
        norm = optax.tree.norm({path: picked(leaf, indices[path]) for path, leaf in gradient.items()})
        assert norm > 0.1
        gradient = {path: leaf / norm * 0.1 for path, leaf in gradient.items()}
        whole, dense_opt = rule.update(gradient, dense_opt, own)
        updates = cast(Params, whole)
        own = {path: own[path] + updates[path] * dense(indices[path], own[path].shape) for path in own}
    tuned = unchosen(merge(moving, frozen))
    for path in BASE:
        np.testing.assert_array_equal(tuned[path], own.get(path, BASE[path]), err_msg=path)
    assert all((tuned[path] != BASE[path]).sum() == indices[path].size for path in indices)

    state, step = init_state(optimizer, trainable), make_step(loss_fn, optimizer)
    for number in range(5):
        state, _ = step(state, frozen, batch_at(number), KEY)
    for path, leaf in state.trainable.items():
        np.testing.assert_allclose(leaf, moving[path], atol=2e-2 if "dtype" in way else 1e-6, err_msg=path)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_no_other_entry_moves(optimizer):
    """With decay, clipping, portions of a batch and the moving average on; the base comes back bit for bit."""
    params = choose(BASE, random_entries(BASE, targets=TARGETS, share=0.05))
    optim = OptimConfig(optimizer, learning_rate=1e-2, weight_decay=0.1, clip=0.5, average=0.5)
    settings = FitConfig(steps=3, batch_size=4, length=8, optim=optim, accumulate=2)
    fitted = fit(token_loss(CONFIG), params, batch_at, settings, selection=chosen_only())
    for path, leaf in fitted.frozen.items():
        assert np.asarray(leaf).tobytes() == np.asarray(params[path]).tobytes()
    tuned = unchosen(merge(fitted.trainable, fitted.frozen))
    assert tuned.keys() == BASE.keys()
    for path, leaf in BASE.items():
        same = np.asarray(leaf) == np.asarray(tuned[path])
        index = params.get(f"{path}_index")
        chosen = np.zeros(leaf.shape, bool) if index is None else dense(np.asarray(index), leaf.shape)
        assert same[~chosen].all() and not same[chosen].any(), path


def test_the_optimiser_exists_for_the_chosen_entries_alone():
    params = choose(BASE, random_entries(BASE, targets=TARGETS, share=0.02))
    trainable, _ = apply_selection(chosen_only(), params)
    chosen = count(trainable)
    assert chosen == sum(max(1, round(0.02 * n)) * layers for n, layers in [(256, 3), (384, 3), (496, 1), (16, 1)])
    assert optimizer_bytes(make_optimizer(OptimConfig(), 10), trainable) == pytest.approx(8 * chosen, abs=16)


def test_chosen_entries_decay_as_their_leaves_do():
    params = choose(BASE, random_entries(BASE, targets=f"{Q}|{NORM}", share=0.1))
    trainable, _ = apply_selection(chosen_only(), params)
    optimizer = make_optimizer(OptimConfig(learning_rate=1.0, weight_decay=0.5, warmup=0.0), 10)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    updates = cast(Params, optimizer.update(zeros, optimizer.init(trainable), trainable)[0])
    np.testing.assert_allclose(updates[f"{Q}_chosen"], -0.5 * trainable[f"{Q}_chosen"], rtol=1e-6)
    assert not updates[f"{NORM}_chosen"].any()


def test_a_base_in_bfloat16_keeps_its_bits_and_small_updates_add_up():
    base = {path: leaf.astype(jnp.bfloat16) for path, leaf in BASE.items()}
    params = choose(base, random_entries(base, targets=TARGETS, share=0.05))
    settings = FitConfig(steps=3, batch_size=4, length=8, optim=OptimConfig(learning_rate=1e-5))
    fitted = fit(token_loss(CONFIG), params, batch_at, settings, selection=chosen_only())
    assert all(leaf.dtype == jnp.float32 for leaf in fitted.trainable.values())
    moved = fitted.trainable[f"{Q}_chosen"] - params[f"{Q}_chosen"]
    assert (np.abs(moved) > 0).all() and np.abs(moved).max() < 1e-4
    tuned = unchosen(merge(fitted.trainable, fitted.frozen))
    assert {leaf.dtype for leaf in tuned.values()} == {jnp.dtype(jnp.bfloat16)}


def per_row_gradients(path):
    """One row after the other: the gradient of its summed log-likelihood."""
    loss_fn = token_loss(CONFIG)

    def summed(leaf, row):
        loss, metrics = loss_fn({**BASE, path: leaf}, row, KEY)
        return loss * metrics["weight"]

    gradient = jax.jit(jax.grad(summed))
    rows = [{name: array[[i]] for name, array in batch.items()} for batch in map(batch_at, (0, 1)) for i in range(4)]
    return np.stack([np.asarray(gradient(BASE[path], row), np.float64) for row in rows])


def best(scores, k):
    """The k highest of each row, by sorting."""
    return np.sort(np.argsort(-scores, -1, kind="stable")[..., :k], -1)


def test_fisher_is_the_sum_of_squares_row_by_row(monkeypatch):
    found = fisher_entries(token_loss(CONFIG), BASE, [batch_at(0), batch_at(1)], targets=TARGETS, share=0.05)
    for path, index in found.items():
        scores = (per_row_gradients(path) ** 2).sum(0)
        np.testing.assert_array_equal(index, best(flat(scores, index), index.shape[-1]), err_msg=path)
    monkeypatch.setattr(masks, "_GROUP_BYTES", 1)  # leaf by leaf
    alone = fisher_entries(token_loss(CONFIG), BASE, [batch_at(0), batch_at(1)], targets=TARGETS, share=0.05)
    assert alone.keys() == found.keys()
    for path in found:
        np.testing.assert_array_equal(alone[path], found[path])


@pytest.mark.parametrize("score", ["gradient", "movement"])
def test_scores_of_the_gradient_over_all_rows(score):
    found = gradient_entries(
        token_loss(CONFIG), BASE, [batch_at(0), batch_at(1)], targets=f"{Q}|{EMBED}", share=0.05, score=score
    )
    for path, index in found.items():
        gradient, weights = per_row_gradients(path).sum(0), np.asarray(BASE[path], np.float64)
        wanted = {"gradient": abs(gradient), "movement": -weights * gradient}[score]
        np.testing.assert_array_equal(index, best(flat(wanted, index), index.shape[-1]), err_msg=path)
    with pytest.raises(UserError, match="unknown score 'move'.*did you mean 'movement'"):
        gradient_entries(token_loss(CONFIG), BASE, [batch_at(0)], targets=Q, share=0.1, score="move")  # pyright: ignore[reportArgumentType]


def test_magnitudes():
    for path, index in magnitude_entries(BASE, targets=TARGETS, share=0.1).items():
        scores = flat(np.abs(BASE[path]), index)
        np.testing.assert_array_equal(index, best(scores, index.shape[-1]))


def test_of_equal_scores_the_first_are_taken():
    assert magnitude_entries({"x": jnp.array([1.0, 2, 1, 1, 0])}, targets="x", share=0.6)["x"].tolist() == [0, 1, 2]
    assert magnitude_entries({"x": jnp.ones((2, 2))}, targets="x", share=1)["x"].tolist() == [0, 1, 2, 3]


def test_random_entries_depend_on_seed_and_path_alone():
    many = random_entries(BASE, targets=TARGETS, share=0.1)
    for path, index in many.items():
        alone = random_entries(BASE, targets=path, share=0.1)
        np.testing.assert_array_equal(alone[path], index)
        assert index.dtype == np.int32 and (np.diff(index) > 0).all() and index.min() >= 0
    assert len({row.tobytes() for row in many[Q]}) == 3
    assert (random_entries(BASE, targets=Q, share=0.1, seed=1)[Q] != many[Q]).any()
    pieces = random_entries(cut(BASE, [1]), targets=Q, share=0.1)
    np.testing.assert_array_equal(np.concatenate(list(pieces.values())), many[Q])
    draws = np.concatenate([random_entries(BASE, targets=Q, share=0.5, seed=seed)[Q] for seed in range(40)])
    share = np.bincount(draws.reshape(-1), minlength=256) / 120
    assert abs(share - 0.5).max() < 0.25 and share.mean() == 0.5  # 5.5 standard deviations


def test_some_layers_of_a_stack():
    loss_fn, batches = token_loss(CONFIG), [batch_at(0)]
    targets = "blocks/[02]/attn/q/kernel"
    names = {"blocks/0:1/attn/q/kernel", "blocks/2:3/attn/q/kernel"}
    assert targeted(BASE, targets, 0.1) == dict.fromkeys(names, 26)
    whole, some = (fisher_entries(loss_fn, BASE, batches, targets=which, share=0.1) for which in (Q, targets))
    assert some.keys() == names
    for low in (0, 2):
        np.testing.assert_array_equal(some[f"blocks/{low}:{low + 1}/attn/q/kernel"][0], whole[Q][low])
    once_cut = fisher_entries(loss_fn, cut(BASE, [2]), batches, targets=targets, share=0.1)
    for path in names:
        np.testing.assert_array_equal(once_cut[path], some[path])
    params = choose(BASE, some)
    settings = FitConfig(steps=2, batch_size=4, length=8, optim=OptimConfig(learning_rate=1e-2))
    fitted = fit(loss_fn, params, batch_at, settings, selection=chosen_only())
    tuned = unchosen(join(merge(fitted.trainable, fitted.frozen)))
    assert (tuned[Q] != BASE[Q]).sum((1, 2)).tolist() == [26, 0, 26]


@pytest.mark.parametrize(
    "targets, share, words",
    [
        ("blocks/atn/q/kernel", 0.1, "matches no parameter; did you mean 'blocks/attn/q/kernel'"),
        (Q, 0.0, "share=0.0: the share"),
        (Q, 1.5, "share=1.5: the share"),
        (Q, float("nan"), "share=nan"),
        ("numbers", 0.1, "target 'numbers' is int32: entries are chosen of leaves of floats"),
        ("huge", 0.1, "'huge': 2,147,483,648 in a layer are more than"),
    ],
)
def test_targets_that_cannot_be_are_refused(targets, share, words):
    params = {**BASE, "numbers": jnp.zeros(3, jnp.int32), "huge": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}
    with pytest.raises(UserError, match=words):
        targeted(params, targets, share)  # pyright: ignore[reportArgumentType]


def test_scores_that_are_no_numbers_and_no_batches_are_refused():
    broken = {**BASE, NORM: BASE[NORM].at[0].set(jnp.nan)}
    with pytest.raises(UserError, match="norm/scale: some scores are no numbers"):
        magnitude_entries(broken, targets=NORM, share=0.1)
    with pytest.raises(UserError, match="no batches to take gradients of"):
        fisher_entries(token_loss(CONFIG), BASE, [], targets=Q, share=0.1)
