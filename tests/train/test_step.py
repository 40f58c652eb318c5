"""The step's arguments: portions of a batch, float32 masters, every optimiser, the average, steps that are left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.transformer import init
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.loss import token_loss
from limbeck.train.optim import average_of, make_optimizer
from limbeck.train.step import init_state, make_step

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16,
)  # fmt: skip
BASE = init(CONFIG, jax.random.key(0))
KEY = jax.random.key(0)


def batch_at(step: int) -> dict:
    """Rows whose tokens count very unevenly, so that a mean of means is not the mean."""
    rng = np.random.default_rng(step)
    ids_BT = rng.integers(1, 31, (8, 13))
    share_B1 = np.where(np.arange(8) % 2, 0.1, 1.0)[:, None]
    return {
        "tokens_BT": ids_BT[:, :-1],
        "targets_BT": ids_BT[:, 1:],
        "weights_BT": (rng.random((8, 12)) < share_B1).astype(np.float32),
        "positions_BT": np.tile(np.arange(12), (8, 1)),
        "segments_BT": np.tile(8 * step + np.arange(8)[:, None] + 1, (1, 12)),
    }


@pytest.mark.parametrize("portions", [2, 8])
def test_portions_of_a_batch_are_the_batch(portions):
    """Gradients are seen through plain SGD at a rate of 1: what moved is the gradient."""
    optimizer = optax.sgd(1.0)
    whole, metrics = make_step(token_loss(CONFIG), optimizer)(init_state(optimizer, BASE), {}, batch_at(0), KEY)
    parts, part_metrics = make_step(token_loss(CONFIG), optimizer, accumulate=portions)(
        init_state(optimizer, BASE), {}, batch_at(0), KEY
    )
    for path, leaf in whole.trainable.items():
        np.testing.assert_allclose(parts.trainable[path], leaf, atol=1e-6, err_msg=path)
    assert metrics.keys() == part_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(part_metrics[name], value, rtol=2e-6, err_msg=name)


def test_a_mean_of_means_would_be_seen():
    def gradient(batch):
        return jax.grad(lambda params: token_loss(CONFIG)(params, batch, KEY)[0])(BASE)["embed/embedding"]

    halves = [gradient({name: array[part::2] for name, array in batch_at(0).items()}) for part in (0, 1)]
    assert jnp.abs(gradient(batch_at(0)) - sum(halves) / 2).max() > 1e-3


def test_what_trains_is_kept_in_float32_and_small_updates_are_not_lost():
    """bfloat16 has 8 bits: an update of 2^-12 of a parameter would be rounded away each time."""
    rate, optimizer = 2.0**-12, optax.sgd(1.0)

    def loss_fn(params, batch, key):
        loss = -rate * params["x"].astype(jnp.float32).sum()
        return loss, {"loss": loss, "weight": jnp.float32(1)}

    state = init_state(optimizer, {"x": jnp.ones(3, jnp.bfloat16)})
    step = make_step(loss_fn, optimizer)
    for _ in range(64):
        state, _ = step(state, {}, {}, KEY)
    assert state.trainable["x"].dtype == jnp.float32
    np.testing.assert_allclose(state.trainable["x"], 1 + 64 * rate)


def test_a_model_in_bfloat16_trains_close_to_one_in_float32():
    def losses(config):
        fitted = fit(token_loss(config), BASE, batch_at, FitConfig(steps=8, log_every=1))
        return np.array(fitted.curve)[:, 1]

    exact, rounded = losses(CONFIG), losses(dataclasses.replace(CONFIG, dtype="bfloat16"))
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert (rounded != exact).all()


@pytest.mark.parametrize(
    "name, rate", [("adamw", 1e-2), ("adafactor", 1e-2), ("lion", 5e-3), ("muon", 1e-2), ("sgd", 1)]
)
def test_every_optimiser_learns_a_batch_by_heart(name, rate):
    optim = OptimConfig(name, learning_rate=rate, weight_decay=0.01)
    fitted = fit(token_loss(CONFIG), BASE, lambda step: batch_at(0), FitConfig(steps=60, optim=optim, log_every=20))
    assert fitted.curve[-1][1] < 0.6 * np.log(31)


def test_adafactor_keeps_rows_and_columns_where_adam_keeps_all():
    params = {"blocks/mlp/up/kernel": jnp.zeros((2, 128, 256))}
    state = make_optimizer(OptimConfig("adafactor"), 10).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2 * (128 + 256) + 8


def test_the_average_is_that_of_the_parameters_so_far():
    optim, decay = OptimConfig(learning_rate=1e-2, average=0.5), 0.5
    optimizer = make_optimizer(optim, 4)
    state, step = init_state(optimizer, BASE), make_step(token_loss(CONFIG), optimizer)
    average = np.asarray(BASE["norm/scale"], np.float64)
    for number in range(4):
        state, _ = step(state, {}, batch_at(number), KEY)
        kept = min(decay, (1 + number) / (10 + number))
        average = kept * average + (1 - kept) * np.asarray(state.trainable["norm/scale"], np.float64)
    found = average_of(state.opt)
    assert found is not None
    np.testing.assert_allclose(found["norm/scale"], average, rtol=1e-6)
    fitted = fit(token_loss(CONFIG), BASE, batch_at, FitConfig(steps=4, optim=optim))
    np.testing.assert_array_equal(fitted.trainable["norm/scale"], found["norm/scale"])
    assert average_of(make_optimizer(OptimConfig(), 4).init(BASE)) is None


def spoilt_at(*steps: int):
    """The loss of `token_loss`, but infinite where the first token of the batch says so."""
    plain = token_loss(CONFIG)

    def batch(step):
        return {**batch_at(step), "spoilt_B": np.full(8, step in steps)}

    def loss_fn(params, batch, key):
        loss, metrics = plain(params, batch, key)
        factor = jnp.where(batch["spoilt_B"].any(), jnp.inf, 1.0)
        return loss * factor, {**metrics, "loss": metrics["loss"] * factor}

    return loss_fn, batch


def test_a_step_that_is_no_number_is_left_out_at_most_as_often_as_allowed(capsys):
    loss_fn, batch = spoilt_at(3, 5)
    settings = FitConfig(steps=8, optim=OptimConfig(skip=2, average=0.9), log_every=4)
    fitted = fit(loss_fn, BASE, batch, settings)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in fitted.trainable.values())
    assert [line.split(":")[0] for line in fitted.skipped] == ["train, step 4", "train, step 6"]
    assert "step 4: the loss is inf, the gradient's norm" in fitted.skipped[0]
    assert "examples 24, 25, 26, 27, 28, 29, 30, 31" in fitted.skipped[0]  # of batch 3, eight in each
    assert "the step was left out" in capsys.readouterr().err
    less = dataclasses.replace(settings, optim=dataclasses.replace(settings.optim, skip=1))
    with pytest.raises(UserError, match=r"step 6: .*\(1 such steps were left out before\): look at these examples"):
        fit(loss_fn, BASE, batch, less)


def test_a_step_that_is_left_out_changes_nothing():
    """Not the parameters, not the moments, not the average: only the batch is passed over."""
    optim = OptimConfig(learning_rate=1e-2, skip=1, average=0.9, schedule="constant", warmup=0.0, weight_decay=0.1)
    loss_fn, batch = spoilt_at(2)
    spoilt = fit(loss_fn, BASE, batch, FitConfig(steps=5, optim=optim))
    clean = fit(token_loss(CONFIG), BASE, lambda step: batch_at(step + (step >= 2)), FitConfig(steps=4, optim=optim))
    for path, leaf in clean.trainable.items():
        np.testing.assert_allclose(spoilt.trainable[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"accumulate": 3}, "accumulate=3 does not divide batch_size=32"),
        ({"patience": 2}, "patience=2 counts evaluations: say evaluate_every"),
        ({"evaluate_every": 0}, "evaluate_every=0: must be at least 1"),
        ({"keep": "better"}, "unknown keep 'better': one of last, best; did you mean 'best'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        FitConfig(**settings)


@pytest.mark.parametrize("settings, words", [({"average": 1.0}, "average=1.0"), ({"skip": -1}, "skip=-1")])
def test_optimiser_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        OptimConfig(**settings)
