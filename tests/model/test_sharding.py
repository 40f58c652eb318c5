"""Meshes of eight simulated devices: what lies where, and that the model computes what it computes on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import split
from limbeck.model.quantize import quantize
from limbeck.model.sharding import constrain, make_mesh, over, placed, spec
from limbeck.model.transformer import apply, init
from limbeck.train.adapters import add_biases, add_bottleneck, add_ia3, add_lora, add_vera

CONFIG = ModelConfig(
    vocab_size=96, width=32, depth=2, num_heads=8, num_kv_heads=4, head_dim=8, mlp_dim=64, max_len=32
)
MESHES = (("data=8",), ("fsdp=8",), ("data=2", "tensor=4"), ("fsdp=2", "tensor=2", "data=2"), ("tensor=8",))
TOKENS = np.random.default_rng(0).integers(1, 96, (8, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def right(params):
    return jax.device_get(jax.jit(apply, static_argnums=0)(CONFIG, params, TOKENS).logits_BTV)


@pytest.mark.parametrize("mesh", MESHES, ids=" ".join)
def test_a_mesh_computes_what_one_device_does(mesh, params, right):
    with over(mesh):
        out = jax.jit(apply, static_argnums=0)(CONFIG, placed(CONFIG, params), TOKENS)
        np.testing.assert_allclose(jax.device_get(out.logits_BTV), right, atol=1e-5)


def test_every_device_has_its_part_alone(params):
    with over(["data=2", "fsdp=2", "tensor=2"]):
        there = placed(CONFIG, params)
    kernels = [leaf for path, leaf in there.items() if path.endswith("kernel") or path == "embed/embedding"]
    for leaf in kernels:
        assert {each.data.nbytes for each in leaf.addressable_shards} == {leaf.nbytes // 4}
    up = there["blocks/mlp/up/kernel"]
    assert up.addressable_shards[0].data.shape == (2, 16, 32)
    assert there["norm/scale"].is_fully_replicated
    np.testing.assert_array_equal(jax.device_get(up), params["blocks/mlp/up/kernel"])


def test_nothing_is_cut_within_a_head():
    mesh = make_mesh(["tensor=8"])
    assert spec("blocks/attn/k/kernel", (2, 32, 32), mesh, CONFIG) == P(None, None, None)
    assert spec("blocks/attn/q/kernel", (2, 32, 64), mesh, CONFIG) == P(None, None, "tensor")
    assert spec("embed/embedding", (97, 32), mesh, CONFIG) == P(None, None)  # which eight do not divide
    six = dataclasses.replace(CONFIG, num_heads=6, num_kv_heads=6)
    for name, shape in (("q", (2, 32, 48)), ("o", (2, 48, 32))):
        assert spec(f"blocks/attn/{name}/kernel", shape, mesh, six) == P(None, None, None)


def test_the_rules_cover_whatever_tuning_adds(params):
    key, targets = jax.random.key(1), r"blocks/attn/(q|o)/kernel"
    tuned = add_lora(params, key, rank=4, targets=targets, magnitude=True)
    tuned = add_ia3(add_biases(add_bottleneck(tuned, key, rank=4)))
    for all_params in (tuned, add_vera(params, key, rank=4), quantize(params, "int8"), quantize(params, "nf4")):
        with over(["fsdp=2", "tensor=4"]):
            assert placed(CONFIG, all_params).keys() == all_params.keys()
            out = jax.jit(apply, static_argnums=0)(CONFIG, placed(CONFIG, all_params), TOKENS).logits_BTV
        alone = jax.jit(apply, static_argnums=0)(CONFIG, all_params, TOKENS).logits_BTV
        np.testing.assert_allclose(jax.device_get(out), jax.device_get(alone), atol=1e-5)


def test_a_stack_that_is_cut_lies_as_the_whole_one(params):
    trainable, frozen = split(params, [r"blocks/1/.*"])
    with over(["fsdp=2", "tensor=4"]):
        there = placed(CONFIG, {**trainable, **frozen})
    assert there["blocks/1:2/mlp/up/kernel"].addressable_shards[0].data.shape == (1, 16, 16)


def test_without_a_mesh_nothing_happens(params):
    x = jnp.ones((4, 4))
    assert constrain(x, "data", None) is x
    with over([]):
        assert all(leaf is params[path] for path, leaf in placed(CONFIG, params).items())


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (["data=3"], "of 3 devices, and there are 8"),
        (["date=8"], "did you mean 'data'"),
        (["data=4", "data=2"], "say each axis once"),
        (["data=x"], "such as data=2"),
        (["data"], "such as data=2"),
        (["data=0"], "such as data=2"),
    ],
)
def test_a_mesh_that_cannot_be(sizes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(sizes)


def test_a_parameter_that_no_rule_covers():
    with pytest.raises(UserError, match=r"parameter 'blocks/attn/z/weird': no rule"):
        spec("blocks/attn/z/weird", (2, 3), make_mesh(["data=8"]), CONFIG)
