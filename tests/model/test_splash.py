"""The TPU's attention kernel, interpreted, computes what `attend_causally` does; programs for TPUs have it in them."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from limbeck.model import attention
from limbeck.model.attention import attend_causally, visible
from limbeck.model.compiled import uncached
from limbeck.model.config import ModelConfig
from limbeck.model.sharding import ROWS, make_mesh, over, spec
from limbeck.model.splash import fits, splash
from limbeck.model.topology import topology
from limbeck.model.transformer import hidden, init, shapes

T, N, K, H = 300, 4, 2, 16  # 300 is no multiple of a block, so rows are filled up
WHOLE = 1 << 20
FIELDS = [(190, 1), (50, 2), (35, 3), (25, 0)]  # a row's documents and its padding: (tokens, segment)


@pytest.fixture(scope="module")
def arrays():
    """(q_BTNH, k_BKSH, v_BKSH, what the output is weighted by) of one row."""
    made = [jax.random.normal(jax.random.key(seed), (1, T, heads, H)) for seed, heads in enumerate((N, K, K, N))]
    q_BTNH, k_BTKH, v_BTKH, weights_BTNH = made
    return q_BTNH, k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2), weights_BTNH


@pytest.fixture(scope="module")
def packed():
    """(positions_BT, segments_BT) as `train.data.pack` makes them: padding is at position 0 of segment 0."""
    positions = np.concatenate([np.arange(size) * (segment > 0) for size, segment in FIELDS])
    segments = np.concatenate([np.full(size, segment) for size, segment in FIELDS])
    return positions[None].astype(np.int32), segments[None].astype(np.int32)


def plain(q_BTNH, k_BKSH, v_BKSH, positions_BT, segments_BT, window, scale, cap):
    mask_BTS = visible(positions_BT, positions_BT, segments_BT, segments_BT, window)
    return attend_causally(q_BTNH, k_BKSH, v_BKSH, mask_BTS, scale, cap)


def with_gradients(attend, weights_BTNH):
    """(out, gradients of queries, keys and values), compiled; the weights say what of the output counts."""

    def objective(arrays, *rest):
        out = attend(*arrays, *rest)
        return (out * weights_BTNH).sum(), out

    def both(arrays, *rest):
        (_, out), gradients = jax.value_and_grad(objective, has_aux=True)(arrays, *rest)
        return out, *gradients

    return jax.jit(both)


def equal(found, right, real_BT, tolerance=2e-5):
    """Outputs where a token is real, and gradients everywhere."""
    np.testing.assert_allclose(found[0][real_BT], right[0][real_BT], atol=tolerance)
    for one, other in zip(found[1:], right[1:], strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=tolerance * 5)


def test_one_segment_is_causal_attention(arrays):
    q, k, v, weights_BTNH = arrays

    def causal(q, k, v):
        return plain(q, k, v, jnp.arange(T)[None], None, WHOLE, None, None)

    kernel = partial(splash, segments_BT=None, windows=(WHOLE,), window=jnp.int32(WHOLE), interpret=True)
    found, right = with_gradients(kernel, weights_BTNH), with_gradients(causal, weights_BTNH)
    equal(found((q, k, v)), right((q, k, v)), np.full((1, T), True))


@pytest.mark.parametrize(
    "sizes",
    [{}, {"_BLOCK": 128}, {"_BLOCK": 128, "_COPIES": 1}, {"_BLOCK": 128, "_KEYS_BYTES": 0}],
    ids=["one block", "three blocks", "three within one of keys", "two kernels backward"],
)
def test_documents_windows_scale_and_cap(arrays, packed, sizes, monkeypatch):
    """Several documents and padding in a row; which window it is, is known only when the program runs."""
    for name, value in sizes.items():
        monkeypatch.setattr(f"limbeck.model.splash.{name}", value)
    windows = (130, 7, WHOLE)
    positions_BT, segments_BT = packed
    real_BT = segments_BT > 0
    weights_BTNH = arrays[3] * real_BT[..., None, None]
    settings = {"scale": 0.3, "cap": 2.0}
    kernel = partial(splash, windows=windows, interpret=True, **settings)

    def masked(q, k, v, segments_BT, window):
        return plain(q, k, v, positions_BT, segments_BT, window, **settings)

    found, right = with_gradients(kernel, weights_BTNH), with_gradients(masked, weights_BTNH)
    for window in windows:
        rest = (arrays[:3], jnp.asarray(segments_BT), jnp.int32(window))
        equal(found(*rest), right(*rest), real_BT)


def test_bfloat16_stays(arrays):
    q, k, v = (x.astype(jnp.bfloat16) for x in arrays[:3])
    out = jax.jit(partial(splash, windows=(WHOLE,), interpret=True))(q, k, v, None, window=jnp.int32(WHOLE))
    positions_BT = jnp.arange(T)[None]
    right = jax.jit(plain, static_argnums=(4, 5, 6, 7))(q, k, v, positions_BT, None, WHOLE, None, None)
    assert out.dtype == right.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), right.astype(np.float32), atol=0.03)


@pytest.mark.parametrize(
    ("mesh", "kv_heads", "group", "each"),
    [(["data=2", "fsdp=2", "tensor=2"], 2, 2, 2), (["fsdp=2", "tensor=4"], 2, 2, 1), (["data=4", "tensor=2"], 1, 3, 3)],
    ids=["heads split", "heads repeated", "heads whole"],
)
def test_a_mesh_computes_what_one_device_does(arrays, packed, mesh, kv_heads, group, each):
    """Each device computes so many heads of queries."""
    short = 128
    q, k, v, weights = (jnp.concatenate([x] * 4) * jnp.arange(1, 5)[:, None, None, None] / 4 for x in arrays)
    q, weights = q[:, :short, : kv_heads * group], weights[:, :short, : kv_heads * group]
    k, v = k[:, :kv_heads, :short], v[:, :kv_heads, :short]
    segments_BT = jnp.asarray(np.concatenate([packed[1]] * 4)[:, 100 : 100 + short])
    kernel = partial(splash, windows=(WHOLE,), interpret=True)
    rest = ((q, k, v), segments_BT, jnp.int32(WHOLE))
    right = with_gradients(kernel, weights)(*rest)
    with over(mesh):
        found = with_gradients(kernel, weights)(*rest)
    assert found[0].sharding.shard_shape(found[0].shape)[2] == each
    equal(jax.device_get(found), jax.device_get(right), np.full((4, short), True), 1e-6)


def test_rows_that_a_mesh_does_not_divide(arrays):
    q, k, v, weights_BTNH = arrays
    kernel = partial(splash, segments_BT=None, windows=(WHOLE,), window=jnp.int32(WHOLE), interpret=True)
    with over(["data=2", "fsdp=2", "tensor=2"]):
        shapes = jax.eval_shape(with_gradients(kernel, weights_BTNH), (q, k, v))
    assert [x.shape for x in shapes] == [q.shape, q.shape, k.shape, v.shape]


SMALL = ModelConfig(
    vocab_size=96, width=32, depth=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64, max_len=256, window=9,
    global_layers=(1,), remat="dots",
)  # fmt: skip


def model_gradient(config, params, tokens_BT):
    def objective(params):
        hidden_BTD, _ = hidden(config, params, tokens_BT)
        return (hidden_BTD * jax.random.normal(jax.random.key(2), hidden_BTD.shape)).sum()

    return jax.value_and_grad(objective)(params)


def test_a_model_with_two_windows_learns_the_same(monkeypatch):
    """A scan over layers, some with a window, whose blocks are computed again in the backward pass."""
    params = init(SMALL, jax.random.key(0))
    tokens_BT = jax.random.randint(jax.random.key(1), (1, 128), 0, 96)
    right = jax.jit(model_gradient, static_argnums=0)(SMALL, params, tokens_BT)
    monkeypatch.setattr(attention, "fits", lambda q_BTNH: True)
    monkeypatch.setattr(attention, "splash", partial(splash, interpret=True))
    found = jax.jit(lambda params: model_gradient(SMALL, params, tokens_BT))(params)
    np.testing.assert_allclose(found[0], right[0], rtol=1e-4)
    for path, leaf in right[1].items():
        np.testing.assert_allclose(found[1][path], leaf, atol=1e-4 * float(jnp.abs(leaf).max()), err_msg=path)


@pytest.mark.parametrize("mesh", [[], ["data=2", "fsdp=2", "tensor=2"]], ids=["one device", "mesh"])
@pytest.mark.parametrize(("remat", "forward"), [("dots", 2), ("full", 4)])
def test_what_dots_keep_is_not_computed_again(monkeypatch, remat, forward, mesh):
    """Each of two windows has its kernels once; with "full" the forward one stands in the backward pass, too."""
    monkeypatch.setattr(attention, "fits", lambda q_BTNH: True)
    learns = jax.jit(partial(model_gradient, dataclasses.replace(SMALL, num_kv_heads=2, remat=remat)))
    tokens_BT = jax.ShapeDtypeStruct((4, 128), jnp.int32)
    with over(mesh):
        traced = learns.trace(shapes(dataclasses.replace(SMALL, num_kv_heads=2)), tokens_BT)
        assert kernels_of(traced) == ["dkv"] * 2 + ["fwd"] * forward


@pytest.mark.parametrize(
    ("head_dim", "dtype", "window", "kernels"),
    [
        (128, "bfloat16", WHOLE, ["fwd", "dkv"]),
        (256, "float32", WHOLE, ["fwd", "dkv", "dq"]),  # one kernel has no room on the chip
        (128, "bfloat16", 256, ["fwd", "dkv", "dq"]),  # and would compute mostly what the window hides
    ],
)
def test_one_kernel_goes_backward_where_that_is_cheap(head_dim, dtype, window, kernels):
    def objective(q, k, v):
        return splash(q, k, v, None, jnp.int32(window), (window,)).astype(jnp.float32).sum()

    q_BTNH, k_BKSH = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((1, 4096, 2, head_dim), (1, 1, 4096, head_dim)))
    traced = jax.jit(jax.grad(objective, (0, 1, 2))).trace(q_BTNH, k_BKSH, k_BKSH)
    assert kernels_of(traced) == sorted(kernels)


def kernels_of(traced):
    """Which kernels stand in a program for a TPU, whatever machine this is."""
    return sorted(re.findall(r'kernel_name = "splash_mha_(\w+?)_', traced.lower(lowering_platforms=("tpu",)).as_text()))


def test_it_is_for_tpus_and_rows_that_it_can_do(monkeypatch):
    def of(length=128, head_dim=128, dtype="bfloat16"):
        return fits(jnp.zeros((1, length, 1, head_dim), dtype))

    assert not of()  # this is a CPU
    monkeypatch.setattr("limbeck.model.splash.platform", lambda: "tpu")
    assert of() and of(length=999) and of(head_dim=80) and of(dtype="float32")
    assert not of(length=127) and not of(head_dim=512) and not of(dtype="float16")


def test_a_cpu_never_goes_there(monkeypatch):
    monkeypatch.setattr(attention, "splash", None)
    params = init(SMALL, jax.random.key(0))
    jax.eval_shape(partial(model_gradient, SMALL), params, jnp.zeros((1, 128), jnp.int32))


@pytest.mark.slow
@pytest.mark.usefixtures("tpu_compiler")
def test_the_tpu_compiler_takes_it():
    """For eight chips: one kernel forward, one backward, and nowhere the scores of a row."""
    mesh = make_mesh(["data=2", "fsdp=2", "tensor=2"], topology("v5e:2x4"))
    config = ModelConfig(
        vocab_size=384, width=256, depth=2, num_heads=4, num_kv_heads=2, head_dim=128, mlp_dim=640, max_len=512,
        dtype="bfloat16", remat="dots",
    )  # fmt: skip

    def lying(path, leaf):
        where = NamedSharding(mesh, spec(path, leaf.shape, mesh, config))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    def objective(params, tokens_BT, segments_BT):
        return jnp.square(hidden(config, params, tokens_BT, segments_BT=segments_BT)[0].astype(jnp.float32)).sum()

    params = {path: lying(path, leaf) for path, leaf in shapes(config).items()}
    tokens_BT = jax.ShapeDtypeStruct((8, 512), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(ROWS)))
    with uncached(), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        text = jax.jit(jax.grad(objective)).lower(params, tokens_BT, tokens_BT).compile().as_text() or ""
    kernels = re.findall(r"%(splash_\w+?)_segmented\S* = .*tpu_custom_call", text)
    assert kernels == ["splash_mha_fwd", "splash_mha_dkv"]
    assert not re.findall(r"\w+\[[\d,]*\b512,512\]", text)
