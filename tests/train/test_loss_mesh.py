"""The cross-entropy over meshes of eight simulated devices: what it is on one, and what is sent in its loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from limbeck.model.compiled import cost
from limbeck.model.sharding import ROWS, over
from limbeck.train import loss as loss_module
from limbeck.train.loss import Terms, chunk_rows, cross_entropy, in_chunks

D, V = 8, 64
MESHES = (("data=8",), ("data=2", "fsdp=2", "tensor=2"), ("fsdp=4", "tensor=2"), ("tensor=8",))


def value_and_gradient(tied, terms, rows, head, targets_N, weights_N):
    def loss(rows, head):
        return cross_entropy(rows, head.T if tied else head, targets_N, weights_N, terms)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(rows, head)


def inputs(rows, tied):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden_ND, head_DV = jax.random.normal(keys[0], (rows, D)), jax.random.normal(keys[1], (D, V))
    targets_N, weights_N = jax.random.randint(keys[2], (rows,), 0, V), (jnp.arange(rows) % 3).astype(jnp.float32)
    return hidden_ND, head_DV.T if tied else head_DV, targets_N, weights_N


def placed(arrays, tied):
    """Rows over ROWS where these divide them, the head by its rule."""
    mesh = jax.sharding.get_mesh()
    of_rows = P(ROWS if len(arrays[0]) % 8 == 0 else None)
    specs = (of_rows, P("tensor", "fsdp") if tied else P("fsdp", "tensor"), of_rows, of_rows)
    return [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]


@pytest.mark.parametrize("mesh", MESHES, ids=" ".join)
@pytest.mark.parametrize(
    ("terms", "rows", "tied"),
    [(Terms(), 96, False), (Terms(3.0, 0.1, 0.02), 96, True), (Terms(smoothing=0.2), 101, True)],
)
def test_a_mesh_computes_what_one_device_does(monkeypatch, mesh, terms, rows, tied):
    monkeypatch.setattr(loss_module, "_CPU_BYTES", 5 * 4 * V)
    arrays, f = inputs(rows, tied), jax.jit(partial(value_and_gradient, tied, terms))
    right = f(*arrays)
    with over(mesh):
        found = f(*placed(arrays, tied))
    for a, b in zip(jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mesh", [("data=2", "fsdp=4"), ("fsdp=4", "tensor=2"), ("fsdp=2", "tensor=4")], ids=" ".join)
@pytest.mark.parametrize("tied", [True, False])
def test_in_the_loop_nothing_is_sent_between_rows_and_nothing_large_over_the_vocabulary(monkeypatch, mesh, tied):
    monkeypatch.setattr(loss_module, "_CPU_BYTES", 5 * 4 * V)
    terms, arrays = Terms(3.0, 0.1, 0.02), inputs(96, tied)
    with over(mesh):
        tensor = jax.sharding.get_mesh().shape["tensor"]
        text = jax.jit(partial(value_and_gradient, tied, terms)).lower(*placed(arrays, tied)).compile().as_text()
    assert text is not None
    told = cost(text)
    assert not told.unknown_loops
    inside, outside = ([each for each in told.collectives if (each.count > 1) == looped] for looped in (True, False))
    of_chunk = 4 * 5 * tensor * D  # bytes of the gradient of a chunk's hidden states
    assert {each.group_size for each in inside} == ({tensor} - {1}), inside
    assert all(each.bytes <= 2 * of_chunk for each in inside), inside  # the logits would be four times as many
    assert [each.kind for each in outside if each.kind != "all-reduce"] == ["all-gather"], outside  # the head, once
    assert sum(each.bytes >= 4 * D * V // tensor for each in outside) == 2, outside  # that, and its gradient


@pytest.mark.parametrize(("rows", "chunk"), [(96, 24), (96, 40), (101, 24), (3, 3)])
def test_every_row_is_in_one_chunk_and_in_the_group_that_has_it(rows, chunk):
    with over(["data=2", "fsdp=4"]):
        there = jax.jit(in_chunks, static_argnums=1)(jnp.arange(1, rows + 1), chunk)
    assert [part.data.shape[1] for part in there.addressable_shards] == [1] * 8
    x_XGC = np.asarray(there)
    assert x_XGC.shape[1:] == (8, -(-chunk // 8))
    assert sorted(x_XGC[x_XGC > 0]) == list(range(1, rows + 1))
    own = -(-rows // 8)
    groups = np.broadcast_to(np.arange(8)[:, None], x_XGC.shape)
    np.testing.assert_array_equal(((x_XGC - 1) // own)[x_XGC > 0], groups[x_XGC > 0])


def test_a_chunk_is_as_large_as_the_memory_of_each_device_allows(monkeypatch):
    assert chunk_rows(128_256, 1 << 18) == 16
    with over(["fsdp=4", "tensor=2"]):
        assert chunk_rows(128_256, 1 << 18) == 4 * 2 * 16
        assert chunk_rows(50_257, 1 << 18) == 4 * 41  # which two do not divide
        assert chunk_rows(128_256, 5) == 4 * 2
    monkeypatch.setattr(loss_module, "platform", lambda: "tpu")
    assert chunk_rows(128_256, 1 << 12) == 1024  # four equal ones, not three of 1,046 and a rest
    assert chunk_rows(32_000, 4096) == 4096
    with over(["fsdp=4", "tensor=2"]):
        assert chunk_rows(128_256, 1 << 18) == 4 * 2048
