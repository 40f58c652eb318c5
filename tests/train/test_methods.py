"""Every way of tuning: begins as the base, moves what it says and not one bit else, ends as a plain model."""

import dataclasses
import tempfile
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import count, join, merge
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.quantize import dequantized
from limbeck.model.transformer import apply, init
from limbeck.train.config import FitConfig, MethodConfig, OptimConfig
from limbeck.train.loop import fit
from limbeck.train.loss import token_loss
from limbeck.train.masks import random_entries
from limbeck.train.methods import METHODS, Ground, plain, prepare, with_added, with_trained
from limbeck.train.optim import average_of, make_optimizer
from limbeck.train.peft_format import load_adapter, save_adapter
from limbeck.train.select import apply_selection, describe, moved, table
from limbeck.train.step import init_state, make_step

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=16,
    tied_embedding=False,
)  # fmt: skip
BASE = init(CONFIG, jax.random.key(0))
TOKENS_BT = jax.random.randint(jax.random.key(3), (2, 9), 0, 31)
# Decay, clipping, accumulation and the average: the usual ways in which a frozen weight moves all the same.
OPTIM = OptimConfig(learning_rate=3e-3, warmup=0.0, weight_decay=0.1, decays=(".*",), clip=0.5, average=0.9)
SETTINGS = MethodConfig(rank=2, share=0.1, length=3, text="12 5 7", examples=4)
BEGINS_ELSEWHERE = {"prompt", "p_tuning", "prefix", "qlora"}  # virtual tokens are seen at once; codes are rounded
ROUNDED = {"pissa": 2e-6, "dora": 2e-6}  # the kernel is taken apart, or divided by its own norm


def batch(seed: int, rows: int = 4):
    """Random rows of two packed texts each, some of whose tokens do not count."""
    rng = np.random.default_rng(seed)
    ids_BT = rng.integers(1, 31, (rows, 13))
    return {
        "tokens_BT": ids_BT[:, :-1],
        "targets_BT": ids_BT[:, 1:],
        "weights_BT": (rng.random((rows, 12)) < 0.7).astype(np.float32),
        "positions_BT": np.tile(np.arange(12) % 7, (rows, 1)),
        "segments_BT": np.tile(1 + np.arange(12) // 7, (rows, 1)),
    }


def ground(settings: MethodConfig = SETTINGS, params=BASE, config=CONFIG) -> Ground:
    def examples(rows: int):
        return token_loss(config), [batch(9, rows)]

    return Ground(config, params, settings, 1, examples, lambda text: [*map(int, text.split())])


def made(name: str, settings: MethodConfig = SETTINGS):
    if name != "entries":
        return prepare(name, ground(settings), OPTIM)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mask.npz"
        np.savez(file, **random_entries(BASE, targets="blocks/attn/q/kernel|embed/embedding", share=0.1))  # pyright: ignore[reportArgumentType]
        return prepare(name, ground(dataclasses.replace(settings, entries=str(file))), OPTIM)


@jax.jit
def _logits(params):
    return apply(CONFIG, params, TOKENS_BT).logits_BTV


def logits(params):
    return np.asarray(_logits(params))


@pytest.mark.parametrize("name", METHODS)
def test_what_trains_moves_and_not_one_bit_else(name, tmp_path):
    prepared = made(name)
    trainable, frozen = apply_selection(prepared.selection, prepared.params)
    before = {path: np.array(leaf) for path, leaf in frozen.items()}
    settings = FitConfig(
        steps=4, batch_size=4, length=12, optim=prepared.optim, accumulate=2, log_every=1, checkpoint_every=2
    )
    fitted = fit(token_loss(CONFIG), prepared.params, lambda step: batch(step), settings,
                 selection=prepared.selection, checkpoints=tmp_path)  # fmt: skip
    assert fitted.frozen.keys() == before.keys()
    for path, leaf in fitted.frozen.items():
        assert np.asarray(leaf).tobytes() == before[path].tobytes(), path
    assert all(moved(trainable, fitted.trainable).values()), moved(trainable, fitted.trainable)
    assert count(fitted.trainable) == count(trainable)


@pytest.mark.parametrize("name", METHODS)
def test_the_optimiser_and_the_average_exist_for_what_trains_alone(name):
    prepared = made(name)
    trainable, _ = apply_selection(prepared.selection, prepared.params)
    opt = jax.eval_shape(make_optimizer(prepared.optim, 4).init, trainable)
    # Two moments and the average of each trainable number, and a few counters.
    assert 0 <= sum(leaf.size for leaf in jax.tree.leaves(opt)) - 3 * count(trainable) < 8
    average = average_of(opt)
    assert average is not None and average.keys() == trainable.keys()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BEGINS_ELSEWHERE])
def test_a_method_begins_as_its_base(name):
    begun = logits(made(name).params)
    if name in ROUNDED:
        np.testing.assert_allclose(begun, logits(BASE), atol=ROUNDED[name])
    else:
        np.testing.assert_array_equal(begun, logits(BASE))


@pytest.mark.parametrize("name", METHODS)
def test_what_was_trained_is_computed_by_the_plain_model_too(name):
    prepared = made(name)
    trainable, frozen = apply_selection(prepared.selection, prepared.params)
    tuned = join(merge(bent(trainable), frozen))
    folded = plain(tuned)
    assert np.abs(logits(tuned) - logits(prepared.params)).max() > 1e-4
    np.testing.assert_allclose(logits(folded), logits(tuned), atol=1e-5)
    kept_beside = ("prompt/", "blocks/attn/prefix", "blocks/attn_adapter", "blocks/mlp_adapter")
    extra = {path for path in folded.keys() - BASE.keys() if not path.startswith(kept_beside)}
    assert extra == ({path for path in folded if path.endswith("/bias")} if name in ("bias", "bias_norm") else set())


def bent(trainable):
    """Other values of what trains."""
    keys = jax.random.split(jax.random.key(5), len(trainable))
    return {
        path: leaf + 0.05 * jax.random.normal(key, leaf.shape)
        for key, (path, leaf) in zip(keys, sorted(trainable.items()), strict=True)
    }


@pytest.mark.parametrize(
    "name, base",
    [(name, "as_is") for name in ("lora", "rslora", "lora_orthogonal", "pissa", "dora", "vera", "ia3", "prompt")]
    + [("p_tuning", "as_is"), ("prefix", "as_is"), ("qlora", "as_is"), ("pissa", "int8"), ("rslora", "bfloat16")],
)
def test_the_adapter_of_a_run_makes_of_its_base_what_was_tuned(name, base, tmp_path):
    """As runs write it; over a base in few bits, what the tuned leaves make of the base in full."""
    settings = dataclasses.replace(SETTINGS, base=base)
    prepared, begun = made(name, settings), with_added(name, ground(settings))
    assert prepared.added == begun.keys() - BASE.keys()
    trainable, frozen = apply_selection(prepared.selection, prepared.params)
    tuned = merge(bent(trainable), frozen)
    whole = with_trained(begun, tuned, trainable)
    if name != "qlora" and base == "as_is":
        np.testing.assert_allclose(logits(whole), logits(tuned), atol=1e-6)
    assert np.abs(logits(whole) - logits(BASE)).max() > 1e-3
    save_adapter(tmp_path, CONFIG, BASE, whole)
    np.testing.assert_allclose(logits(load_adapter(tmp_path, CONFIG, BASE)), logits(whole), atol=1e-5)


@pytest.mark.parametrize(
    "name, base",
    [("lora", "bfloat16"), ("lora", "int8"), ("dora", "nf4"), ("vera", "int8"), ("ia3", "nf4"), ("prefix", "int8"),
     ("norms", "int8"), ("pfeiffer", "nf4")],
)  # fmt: skip
def test_any_method_has_its_base_in_fewer_bits(name, base):
    prepared = made(name, dataclasses.replace(SETTINGS, base=base))
    trainable, frozen = apply_selection(prepared.selection, prepared.params)
    assert not any(leaf.dtype == jnp.float32 and path.endswith("/kernel") and "block" in path and "adapter" not in path
                   for path, leaf in frozen.items())  # fmt: skip
    assert all(leaf.dtype == jnp.float32 for leaf in trainable.values())
    optimizer = make_optimizer(prepared.optim, 4)
    before = {path: np.array(leaf) for path, leaf in frozen.items()}
    state, metrics = make_step(token_loss(CONFIG), optimizer)(
        init_state(optimizer, trainable), frozen, batch(0), jax.random.key(0)
    )
    assert np.isfinite(metrics["loss"])
    assert all(np.asarray(frozen[path]).tobytes() == before[path].tobytes() for path in frozen)
    np.testing.assert_allclose(
        logits(dequantized(prepared.params)), logits(prepared.params), atol=2e-2 if base == "bfloat16" else 1e-5
    )
    assert any(moved(trainable, state.trainable).values())


def test_a_pattern_is_a_way_of_tuning_too():
    prepared = prepare(r"blocks/1/attn/q/kernel", ground(), OPTIM)
    assert set(apply_selection(prepared.selection, prepared.params)[0]) == {"blocks/1:2/attn/q/kernel"}
    assert prepared.optim == OPTIM


def test_a_head_trains_beside_the_method():
    prepared = prepare("lora", ground(), OPTIM, also=("head/.*",))
    assert "head/kernel" in apply_selection(prepared.selection, prepared.params)[0]


def test_rates_are_the_methods_own():
    assert prepare("lora", ground(), OPTIM).optim.learning_rate == pytest.approx(10 * OPTIM.learning_rate)
    plainest = dataclasses.replace(OPTIM, name="sgd", b1=0.0, weight_decay=0.0, clip=None)
    prepared = prepare("lora_plus", ground(), plainest)
    trainable, _ = apply_selection(prepared.selection, prepared.params)
    optimizer = make_optimizer(prepared.optim, 4)
    ones = {path: jnp.ones_like(leaf) for path, leaf in trainable.items()}
    updates = cast(dict, optimizer.update(ones, optimizer.init(trainable), trainable)[0])
    for path, update in updates.items():
        factor = 16 if path.endswith("lora_b") else 1
        np.testing.assert_allclose(update, -factor * prepared.optim.learning_rate, rtol=1e-5)


def test_what_trains_is_told_before_the_first_step():
    prepared = made("lora")
    trainable, frozen = apply_selection(prepared.selection, prepared.params)
    lines = table(trainable, frozen).splitlines()
    assert len(lines) == len(trainable) == 14
    assert any("blocks/attn/q/lora_a" in line and "2 x 16 x 2" in line and " 64 " in line for line in lines)
    moving, total = count(trainable), count(prepared.params)
    assert describe(trainable, frozen).startswith(f"{moving:,} of {total:,} parameters train ({moving / total:.2%})")


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("lroa", SETTINGS, "'lroa' is no method; did you mean 'lora'.*matches no parameter"),
        ("last_blocks", dataclasses.replace(SETTINGS, blocks=4), "blocks=4: the model has 2"),
        ("lora", dataclasses.replace(SETTINGS, targets="blocks/attn/p/kernel"), "did you mean 'blocks/attn/"),
        ("pissa", dataclasses.replace(SETTINGS, rank=17), "rank=17.*too small"),
        ("entries", SETTINGS, "entries is empty"),
        ("full", dataclasses.replace(SETTINGS, base="int8"), "every dense kernel trains"),
    ],
)
def test_what_cannot_be_is_said(name, settings, words):
    with pytest.raises(UserError, match=words):
        prepare(name, ground(settings), OPTIM)


def test_a_head_that_is_the_embedding_does_not_train_alone():
    tied = dataclasses.replace(CONFIG, tied_embedding=True)
    params = {path: leaf for path, leaf in BASE.items() if path != "head/kernel"}
    with pytest.raises(UserError, match="head is its embedding; use `embeddings`"):
        prepare("head", ground(params=params, config=tied), OPTIM)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_takes_its_adapter_in_where_it_is_not_the_head_as_well(tied, tmp_path):
    config = dataclasses.replace(CONFIG, tied_embedding=tied)
    params = {path: leaf for path, leaf in BASE.items() if path != "head/kernel" or not tied}
    keys = jax.random.split(jax.random.key(7), 2)
    a_VR, b_RD = jax.random.normal(keys[0], (31, 2)), jax.random.normal(keys[1], (2, 16))
    tuned = params | {"embed/lora_a": a_VR, "embed/lora_b": b_RD, "embed/lora_scale": jnp.full(1, 0.5)}
    folded = plain(tuned)
    assert ("embed/lora_a" in folded) == tied
    save_pretrained(tmp_path / "model", config, folded)
    loaded = load_pretrained(tmp_path / "model").params
    for model in (folded, loaded):
        got, expected = (apply(config, each, TOKENS_BT).logits_BTV for each in (model, tuned))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(apply(config, params, TOKENS_BT).logits_BTV - expected).max() > 1e-2


@pytest.mark.parametrize("name", ["houlsby", "prefix", "p_tuning", "bias"])
def test_what_stays_beside_the_kernels_is_saved_with_the_model(name, tmp_path):
    tuned = plain(join(made(name).params))
    save_pretrained(tmp_path / "model", CONFIG, tuned)
    loaded = load_pretrained(tmp_path / "model").params
    assert loaded.keys() == tuned.keys()
    assert all(np.asarray(loaded[path]).tobytes() == np.asarray(leaf).tobytes() for path, leaf in tuned.items())


@pytest.mark.parametrize(
    "name, leaf, shape, words",
    [
        ("houlsby", "blocks/attn_adapter/up/kernel", (2, 3, 16), "do not fit the model or each other"),
        ("prefix", "prompt/embedding", (3, 15), "do not fit the model or each other"),
        ("lora", "blocks/attn/q/lora_c", (2, 3, 15), "surplus parameter blocks/attn/q/lora_c"),
    ],
)
def test_added_leaves_that_do_not_fit_are_refused_when_they_are_read(name, leaf, shape, words, tmp_path):
    save_pretrained(tmp_path / "model", CONFIG, {**join(made(name).params), leaf: jnp.zeros(shape)})
    with pytest.raises(UserError, match=words):
        load_pretrained(tmp_path / "model")


def test_entries_that_stand_apart_are_put_in_before_a_model_is_saved(tmp_path):
    with pytest.raises(UserError, match="unchosen"):
        save_pretrained(tmp_path / "model", CONFIG, made("random").params)
    assert not (tmp_path / "model").exists()
