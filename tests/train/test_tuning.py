"""Every way of tuning moves what it selects and not one bit else; training resumes to the same parameters."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params, count, join, merge
from limbeck.model.transformer import apply, init
from limbeck.train.adapters import add_lora, fold_lora
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.loss import token_loss
from limbeck.train.optim import make_optimizer, optimizer_bytes, schedule
from limbeck.train.select import Selection, apply_selection, bias_norm, last_blocks, lora_only, moved
from limbeck.train.step import init_state, make_step

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=3, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16,
    attention_bias=True, mlp_bias=True,
)
# Decay and clipping on: the usual ways in which a frozen weight moves all the same.
OPTIM = OptimConfig(learning_rate=1e-2, weight_decay=0.1, clip=0.5)
BASE = init(CONFIG, jax.random.key(0))
LORA = add_lora(BASE, jax.random.key(1), rank=4, alpha=8, targets="blocks/attn/(q|o)/kernel")


def stream():
    """Random rows of two packed texts each, some of whose tokens do not count."""

    def batch_at(step):
        rng = np.random.default_rng(step)
        ids_BT = rng.integers(1, 31, (4, 13))
        return {
            "tokens_BT": ids_BT[:, :-1],
            "targets_BT": ids_BT[:, 1:],
            "weights_BT": (rng.random((4, 12)) < 0.7).astype(np.float32),
            "positions_BT": np.tile(np.arange(12) % 7, (4, 1)),
            "segments_BT": 8 * step + 2 * np.arange(4)[:, None] + 1 + np.arange(12) // 7,
        }

    return batch_at


def train(params, selection, optim=OPTIM, steps=3, **more):
    settings = FitConfig(steps=steps, batch_size=4, length=12, optim=optim, log_every=1, checkpoint_every=2)
    return fit(token_loss(CONFIG), params, stream(), settings, selection=selection, **more)


SELECTIONS = {
    "full": (BASE, Selection()),
    "bias_norm": (BASE, bias_norm()),
    "last_block": (BASE, last_blocks(3)),
    "last_two": (BASE, last_blocks(3, 2)),
    "lora": (LORA, lora_only()),
    "embedding": (BASE, Selection(("embed/.*",))),
    "one_layer_attention": (BASE, Selection((r"blocks/1/attn/.*/kernel",))),
}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_what_is_selected_moves_and_what_is_frozen_does_not(name, optimizer):
    params, selection = SELECTIONS[name]
    trainable, frozen = apply_selection(selection, params)
    fitted = train(params, selection, dataclasses.replace(OPTIM, name=optimizer))
    assert all(moved(trainable, fitted.trainable).values())
    assert not any(moved(frozen, fitted.frozen).values())
    assert count(fitted.trainable) + count(fitted.frozen) == count(params)
    assert join(merge(fitted.trainable, fitted.frozen)).keys() == params.keys()
    if name == "full":
        assert not frozen


def test_the_optimiser_exists_for_the_trainable_part_alone():
    trainable, _ = apply_selection(bias_norm(), BASE)
    assert optimizer_bytes(make_optimizer(OPTIM, 10), trainable) == pytest.approx(8 * count(trainable), abs=16)


def test_frozen_layers_below_have_no_backward_pass():
    def flops(selection):
        trainable, frozen = apply_selection(selection, BASE)
        unrolled = dataclasses.replace(CONFIG, scan=False)
        optimizer = make_optimizer(OPTIM, 10)
        step = make_step(token_loss(unrolled), optimizer)
        arguments = (init_state(optimizer, trainable), frozen, stream()(0), jax.random.key(0))
        return step.lower(*arguments).compile().cost_analysis()["flops"]

    assert flops(last_blocks(3)) < 0.65 * flops(Selection())


def test_lora_starts_as_the_base_bitwise_and_folds_to_itself():
    tokens_BT = jax.random.randint(jax.random.key(3), (2, 9), 0, 31)
    np.testing.assert_array_equal(
        apply(CONFIG, LORA, tokens_BT).logits_BTV, apply(CONFIG, BASE, tokens_BT).logits_BTV
    )
    fitted = train(LORA, lora_only())
    tuned = join(merge(fitted.trainable, fitted.frozen))
    folded = fold_lora(tuned)
    assert folded.keys() == BASE.keys()
    difference = np.abs(apply(CONFIG, tuned, tokens_BT).logits_BTV - apply(CONFIG, BASE, tokens_BT).logits_BTV).max()
    assert difference > 1e-3
    np.testing.assert_allclose(
        apply(CONFIG, folded, tokens_BT).logits_BTV, apply(CONFIG, tuned, tokens_BT).logits_BTV, atol=1e-5
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 2, "targets": "blocks/attn/p/kernel"}, "matches no parameter; did you mean"),
        ({"rank": 2, "targets": "embed/.*"}, "beside the kernels inside the blocks"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        add_lora(BASE, jax.random.key(0), **arguments)


def test_adamw_equals_optax_on_the_same_gradients():
    """The step against optax used by hand, three steps.

    A large epsilon: with the usual one Adam blows up gradients that are nothing but rounding.
    """
    loss_fn, batch_at = token_loss(CONFIG), stream()
    optim = dataclasses.replace(OPTIM, eps=1e-2)
    optimizer = make_optimizer(optim, 3)
    params, opt = BASE, optimizer.init(BASE)
    for step in range(3):
        gradients = jax.grad(lambda p, step=step: loss_fn(p, batch_at(step), jax.random.key(0))[0])(params)
        updates, opt = optimizer.update(gradients, opt, params)
        params = cast(Params, optax.apply_updates(params, updates))
    fitted = train(BASE, Selection(), optim)
    for path, leaf in params.items():
        np.testing.assert_allclose(fitted.trainable[path], leaf, atol=1e-6, err_msg=path)


def test_only_kernels_and_embeddings_decay():
    optimizer = make_optimizer(OptimConfig(learning_rate=1.0, weight_decay=0.5, warmup=0.0, schedule="constant"), 10)
    zeros = jax.tree.map(jnp.zeros_like, BASE)
    updates, _ = optimizer.update(zeros, optimizer.init(BASE), BASE)
    decayed = {path for path, update in cast(Params, updates).items() if jnp.any(update != 0)}
    assert decayed == {path for path in BASE if path.endswith(("/kernel", "/embedding"))}


@pytest.mark.parametrize(
    "kind, expected", [("constant", [0.5, 1, 1, 1]), ("linear", [0.5, 1, 0.6, 0.2]), ("cosine", [0.5, 1, 0.6, 0.2])]
)
def test_schedules(kind, expected):
    config = OptimConfig(learning_rate=1.0, schedule=kind, warmup=0.2, final=0.2)
    rate = schedule(config, 10)
    np.testing.assert_allclose([jnp.asarray(rate(step)) for step in (0, 1, 6, 10)], expected, atol=1e-6)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 2, 3, 5])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, kill_at):
    whole = train(BASE, Selection(), steps=6)

    def batches_until_killed(step):
        if step == kill_at:
            raise Killed
        return stream()(step)

    settings = FitConfig(steps=6, batch_size=4, length=12, optim=OPTIM, log_every=1, checkpoint_every=2)
    with pytest.raises(Killed):
        fit(token_loss(CONFIG), BASE, batches_until_killed, settings, checkpoints=tmp_path)
    resumed = fit(token_loss(CONFIG), BASE, stream(), settings, checkpoints=tmp_path)
    assert not any(moved(whole.trainable, resumed.trainable).values())
    assert resumed.curve == whole.curve


def test_a_loss_that_is_no_number_stops_the_run():
    broken = {**BASE, "norm/scale": BASE["norm/scale"].at[0].set(jnp.nan)}
    told = r"step 1: the loss is nan, .* in 17 leaves, blocks.*; examples 0, 1, .*lower the learning rate"
    with pytest.raises(UserError, match=told):
        train(broken, Selection())
