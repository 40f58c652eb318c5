"""Training over eight simulated devices: what one computes, and each with its part of the state alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from limbeck.model.chosen import choose
from limbeck.model.compiled import captured_warnings
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import merge
from limbeck.model.sharding import over, over_rows, placed
from limbeck.model.transformer import init
from limbeck.train.adapters import add_lora
from limbeck.train.config import FitConfig, OptimConfig
from limbeck.train.data import Rows, batches
from limbeck.train.loop import Evaluation, fit
from limbeck.train.loss import token_loss
from limbeck.train.optim import make_optimizer
from limbeck.train.select import Selection, apply_selection, chosen_only
from limbeck.train.step import init_state, make_step

CONFIG = ModelConfig(
    vocab_size=96, width=32, depth=2, num_heads=8, num_kv_heads=4, head_dim=8, mlp_dim=64, max_len=32
)
MESHES = (("data=8",), ("fsdp=8",), ("data=2", "fsdp=2", "tensor=2"), ("fsdp=2", "tensor=4"))
FIT = FitConfig(steps=3, batch_size=8, length=16, optim=OptimConfig(weight_decay=0.1), log_every=1)
CHOSEN = {  # entries inside the blocks, of leaves that are cut either way, and outside
    path: np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(size), (*layers, 1)), axis=-1)[..., :40])
    for path, layers, size in (
        ("blocks/attn/q/kernel", (2,), 32 * 64),
        ("blocks/mlp/down/kernel", (2,), 64 * 32),
        ("embed/embedding", (), 96 * 32),
    )
}
WAYS = {
    "full": (Selection(), lambda params: params),
    "lora": (Selection((r".*/lora_[ab]",)), lambda params: add_lora(params, jax.random.key(1), rank=4)),
    "last block": (Selection((r"blocks/1/.*", "norm/.*")), lambda params: params),
    "masked": (chosen_only(), lambda params: choose(params, CHOSEN)),
}


def stream():
    random = np.random.default_rng(0)
    tokens_BT = random.integers(1, 96, (32, 17)).astype(np.int32)
    arrays = {
        "tokens_BT": tokens_BT[:, :-1],
        "targets_BT": tokens_BT[:, 1:],
        "weights_BT": random.integers(0, 2, (32, 16)).astype(np.float32),
        "positions_BT": np.tile(np.arange(16, dtype=np.int32), (32, 1)),
        "segments_BT": np.ones((32, 16), np.int32),
    }
    return batches(Rows((arrays,), np.array([b""])), 8, 0)


@pytest.fixture(scope="module")
def params():
    return init(CONFIG, jax.random.key(0))


def fitted(params, way, settings=FIT, mesh=(), **more):
    selection, add = WAYS[way]
    with over(mesh):
        there = placed(CONFIG, add(params))
        found = fit(token_loss(CONFIG), there, stream(), settings, selection=selection, **more)
        return found, {path: jax.device_get(leaf) for path, leaf in found.trainable.items()}


@pytest.fixture(scope="module")
def alone(params):
    return {way: fitted(params, way) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mesh", MESHES, ids=" ".join)
def test_a_mesh_trains_what_one_device_does(mesh, way, params, alone):
    right, right_leaves = alone[way]
    found, leaves = fitted(params, way, mesh=mesh)
    np.testing.assert_allclose([loss for _, loss in found.curve], [loss for _, loss in right.curve], atol=1e-5)
    assert leaves.keys() == right_leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_allclose(leaf, right_leaves[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_every_optimiser_trains_on_a_mesh_as_alone(name, params):
    settings = dataclasses.replace(FIT, optim=OptimConfig(name, average=0.9, learning_rate=1e-3), accumulate=2)
    right = fitted(params, "full", settings)[1]
    found = fitted(params, "full", settings, ("data=2", "fsdp=2", "tensor=2"))[1]
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, right[path], atol=1e-4 if name == "muon" else 1e-5, err_msg=path)


def test_every_device_has_its_part_of_the_state_alone(params):
    """Bytes: of everything that is cut, parameters, moments, average and what a step gives back, a fourth of each."""
    optimizer = make_optimizer(OptimConfig(average=0.9), 3)
    with over(["data=2", "fsdp=2", "tensor=2"]):
        there = placed(CONFIG, params)
        state = init_state(optimizer, there)
        step = make_step(token_loss(CONFIG), optimizer, like=state)
        after, metrics = step(state, {}, stream()(0), jax.random.key(0))
    assert all(not leaf.is_deleted() for leaf in there.values())  # the state has arrays of its own
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))  # and the step takes them
    big = [leaf for leaf in jax.tree.leaves((after.trainable, after.opt)) if leaf.ndim >= 2 and leaf.size > 1000]
    assert len(big) == 4 * 8
    for leaf in big:
        assert {each.data.nbytes for each in leaf.addressable_shards} == {leaf.nbytes // 4}
    total = sum(leaf.nbytes for leaf in jax.tree.leaves((after.trainable, after.opt)))
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((after.trainable, after.opt)))
    assert here < 0.27 * total
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(metrics))


def test_a_frozen_model_stays_where_it_is_bit_for_bit(params):
    selection, add = WAYS["lora"]
    with over(["fsdp=4", "tensor=2"]):
        there = placed(CONFIG, add(params))
        trainable, frozen = apply_selection(selection, there)
        found = fit(token_loss(CONFIG), there, stream(), FIT, selection=selection)
    assert frozen.keys() == found.frozen.keys()
    for path, leaf in found.frozen.items():
        assert leaf.sharding == there[path].sharding
        np.testing.assert_array_equal(jax.device_get(leaf), jax.device_get(there[path]))
    where = trainable["blocks/attn/q/lora_b"].sharding
    assert isinstance(where, NamedSharding) and where.spec == P(None, None, "tensor")
    assert merge(found.trainable, found.frozen).keys() == there.keys()


def test_the_best_lies_where_the_last_does(params):
    settings = dataclasses.replace(FIT, keep="best", evaluate_every=1)
    with over(["fsdp=4", "tensor=2"]):
        there = placed(CONFIG, params)
        scores = iter([1.0, 3.0, 2.0])
        found = fit(
            token_loss(CONFIG), there, stream(), settings, evaluate=lambda params: Evaluation(next(scores), {})
        )
    for path, leaf in found.trainable.items():
        assert leaf.sharding == there[path].sharding


def test_a_stack_that_is_cut_where_training_begins_keeps_its_layout(params):
    with over(["fsdp=2", "tensor=4"]):
        trainable, frozen = apply_selection(WAYS["last block"][0], placed(CONFIG, params))
    for part, name in ((trainable, "blocks/1:2/mlp/up/kernel"), (frozen, "blocks/0:1/mlp/up/kernel")):
        assert part[name].addressable_shards[0].data.shape == (1, 16, 16)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_over_another_mesh_from_its_checkpoint(way, params, alone, tmp_path):
    """Eight devices, then 2 x 4, then one: values equal to a run that was never stopped."""
    right = alone[way][1]
    first = dataclasses.replace(FIT, checkpoint_every=1)
    for stop, mesh in ((1, ("fsdp=8",)), (2, ("fsdp=2", "tensor=4")), (3, ())):

        class Enough(Exception):
            pass

        def log(row, stop=stop):
            if row["step"] == stop + 1:
                raise Enough

        try:
            leaves = fitted(params, way, first, mesh, checkpoints=tmp_path, log=log)[1]
        except Enough:
            continue
    for path, leaf in leaves.items():
        np.testing.assert_allclose(leaf, right[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize(("batch_size", "accumulate", "least"), [(6, 1, 4), (4, 2, 8)])
def test_a_batch_that_the_devices_do_not_divide(batch_size, accumulate, least, params):
    settings = dataclasses.replace(FIT, batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(UserError, match=f"4 devices of data x fsdp: make it a multiple of {least}"):
        fitted(params, "full", settings, ("data=2", "fsdp=2", "tensor=2"))


def test_random_parameters_are_made_where_they_lie(params):
    with over(["fsdp=4", "tensor=2"]):
        there = init(CONFIG, jax.random.key(0))
        again = placed(CONFIG, there)
    for path, leaf in there.items():
        assert leaf.sharding.is_equivalent_to(again[path].sharding, leaf.ndim)
        np.testing.assert_allclose(jax.device_get(leaf), jnp.asarray(params[path]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if mesh != ("fsdp=8",)], ids=" ".join)
def test_nothing_is_gathered_whole_to_be_laid_out_anew(mesh, way, params):
    selection, add = WAYS[way]
    with over(mesh), captured_warnings() as warned:
        trainable, frozen = apply_selection(selection, placed(CONFIG, add(params)))
        optimizer = make_optimizer(FIT.optim, FIT.steps)
        state = init_state(optimizer, trainable)
        step = jax.jit(make_step(token_loss(CONFIG), optimizer, like=state))
        step.lower(state, frozen, over_rows(stream()(0)), jax.random.key(0)).compile()
    assert not warned
