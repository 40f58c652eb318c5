"""Kernels as codes: how near they are, that the product and its gradient are right, and what memory they save."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops
from limbeck.model.params import Params, block_path, count, cut, digest, join, nbytes
from limbeck.model.pretrained import save_pretrained
from limbeck.model.quantize import BLOCK, KINDS, LEVELS, dequantized, is_quantized, kernel_of, product, quantize
from limbeck.model.transformer import apply, init
from limbeck.train.adapters import add_bottleneck, add_lora
from limbeck.train.config import OptimConfig
from limbeck.train.loss import token_loss
from limbeck.train.optim import make_optimizer
from limbeck.train.select import apply_selection, lora_only
from limbeck.train.step import init_state, make_step

CONFIG = ModelConfig(
    vocab_size=64, width=48, depth=3, num_heads=4, num_kv_heads=2, head_dim=12, mlp_dim=101, max_len=32,
    attention_bias=True, mlp_bias=True,
)  # fmt: skip
WIDEST_GAP = float(np.diff(LEVELS).max())
DOMAIN = "blocks/attn/q/kernel"


def alone(kernel: np.ndarray, kind: str) -> Params:
    """The leaves of one module in one layer."""
    params = quantize({DOMAIN: jnp.asarray(kernel)[None]}, kind)
    return {path.rpartition("/")[2]: leaf[0] for path, leaf in params.items()}


def block_absmax(kernel: np.ndarray) -> np.ndarray:
    """The largest magnitude of each weight's block; an odd last row is a block by itself."""
    out = np.zeros_like(kernel)
    paired = len(kernel) // 2 * 2
    for start in range(0, paired, BLOCK):
        rows = slice(start, min(start + BLOCK, paired))
        out[rows] = np.abs(kernel[rows]).max(0)
    out[paired:] = np.abs(kernel[paired:])
    return out


# From the paper's appendix, "NormalFloat 4-bit data type".
PUBLISHED = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def test_the_levels_are_the_published_ones_and_quantiles_of_the_normal_distribution():
    np.testing.assert_allclose(LEVELS, PUBLISHED, atol=1e-6)
    assert LEVELS.dtype == np.float32 and LEVELS[0] == -1 and LEVELS[7] == 0 and LEVELS[15] == 1
    tail = (1 / 32 + 1 / 30) / 2
    quantiles = [*norm.ppf(np.linspace(tail, 0.5, 8)), *norm.ppf(np.linspace(0.5, 1 - tail, 9))[1:]]
    np.testing.assert_allclose(LEVELS, np.array(quantiles) / norm.ppf(1 - tail), rtol=1e-6, atol=1e-12)


kernels = st.tuples(
    st.sampled_from([1, 2, 63, 64, 65, 130, 191]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-4, 1, 3e4]),
    st.booleans(),
)


def drawn(size: tuple) -> np.ndarray:
    fan_in, seed, scale, with_zeros = size
    rng = np.random.default_rng(seed)
    kernel = (scale * rng.standard_t(3, (fan_in, 3))).astype(np.float32)
    if with_zeros:
        kernel[:, 0] = 0
        kernel[rng.random(kernel.shape) < 0.3] = 0
    return kernel


@settings(max_examples=25, deadline=None)
@given(kernels)
def test_int8_is_within_half_a_step_of_every_weight_and_the_nearest_code(size):
    kernel = drawn(size)
    leaves = alone(kernel, "int8")
    assert leaves["kernel_int8"].dtype == jnp.int8 and leaves["kernel_int8"].shape == kernel.shape
    again = np.asarray(kernel_of(leaves))
    absmax = np.abs(kernel).max(0)
    assert (np.abs(again - kernel) <= absmax / 254 * (1 + 1e-4) + 1e-38).all()
    np.testing.assert_array_equal(np.abs(leaves["kernel_int8"]).max(0), np.where(absmax > 0, 127, 0))
    np.testing.assert_array_equal(alone(again, "int8")["kernel_int8"], leaves["kernel_int8"])


@settings(max_examples=25, deadline=None)
@given(kernels)
def test_nf4_is_the_nearest_level_of_its_block_and_packs_two_codes_a_byte(size):
    kernel = drawn(size)
    leaves = alone(kernel, "nf4")
    packed, scale = leaves["kernel_nf4"], leaves["kernel_scale"]
    paired = len(kernel) // 2 * 2
    assert packed.dtype == jnp.uint8 and packed.shape == (paired // 2, kernel.shape[1])
    assert scale.shape[0] == -(-paired // BLOCK) + len(kernel) % 2
    again, absmax = np.asarray(kernel_of(leaves)), block_absmax(kernel)
    assert again.shape == kernel.shape
    assert (np.abs(again - kernel) <= WIDEST_GAP / 2 * absmax * (1 + 1e-5)).all()
    # An independent reading of the bytes: row 2i in the low half, row 2i + 1 in the high one.
    codes = np.empty((paired, kernel.shape[1]), np.uint8)
    codes[::2], codes[1::2] = np.asarray(packed) % 16, np.asarray(packed) // 16
    np.testing.assert_allclose(again[:paired], LEVELS[codes] * absmax[:paired], rtol=1e-6)
    np.testing.assert_array_equal(again[paired:], kernel[paired:])
    distance = np.abs(kernel[:paired, :, None] - LEVELS * absmax[:paired, :, None])
    np.testing.assert_allclose(distance.min(-1), np.abs(again - kernel)[:paired], atol=1e-6 * absmax.max())
    twice = alone(again, "nf4")
    np.testing.assert_array_equal(twice["kernel_nf4"], packed)
    np.testing.assert_array_equal(twice["kernel_scale"], scale)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 31, 32, 33, 80]), st.integers(0, 2**32 - 1))
def test_every_sequence_of_nf4_codes_survives_packing(pairs, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (2 * pairs, 2))
    codes[::BLOCK] = 15  # so that each block's scale is 1
    leaves = alone(LEVELS[codes], "nf4")
    np.testing.assert_array_equal(kernel_of(leaves), LEVELS[codes])
    np.testing.assert_array_equal(leaves["kernel_nf4"], codes[::2] + 16 * codes[1::2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fan_in", [64, 101, 130])
def test_the_product_and_its_gradient_are_those_of_the_dequantised_kernel(kind, fan_in):
    rng = np.random.default_rng(0)
    leaves = alone(rng.normal(size=(fan_in, 24)).astype(np.float32), kind)
    x_ND, weight_NF = (jnp.asarray(rng.normal(size=(7, size)), jnp.float32) for size in (fan_in, 24))
    kernel = kernel_of(leaves)

    def ours(x_ND, leaves):
        return (product(x_ND, leaves) * weight_NF).sum()

    np.testing.assert_allclose(product(x_ND, leaves), x_ND @ kernel, rtol=1e-6, atol=1e-5)
    expected = weight_NF @ kernel.T
    np.testing.assert_allclose(jax.grad(ours)(x_ND, leaves), expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(ours))(x_ND, leaves), expected, rtol=1e-6, atol=1e-5)
    scaled = jax.grad(lambda scale: ours(x_ND, {**leaves, "kernel_scale": scale}))(leaves["kernel_scale"])
    assert not scaled.any()
    stacked = jax.vmap(product, (0, None))(jnp.stack([x_ND, 2 * x_ND]), leaves)
    np.testing.assert_allclose(stacked[1], 2 * stacked[0], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_in_bfloat16_is_as_near_as_one_with_the_kernel_in_bfloat16(kind):
    rng = np.random.default_rng(0)
    leaves = alone(rng.normal(size=(256, 32)).astype(np.float32), kind)
    x_ND = jnp.asarray(rng.normal(size=(9, 256)), jnp.bfloat16)
    y_NF = product(x_ND, leaves)
    assert y_NF.dtype == jnp.bfloat16
    exact = x_ND.astype(jnp.float32) @ kernel_of(leaves)
    # A half unit in the last place of the result is left; NF4's kernel is rounded before the product besides.
    bound = 2**-8 * np.abs(exact) + (1e-6 if kind == "int8" else 2**-9 * 256**0.5 * 4)
    assert (np.abs(y_NF.astype(jnp.float32) - exact) <= bound).all()
    assert jax.grad(lambda x_ND: product(x_ND, leaves).sum())(x_ND).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_only_dense_kernels_of_blocks_become_codes(kind):
    params = add_bottleneck(init(CONFIG, jax.random.key(0)), jax.random.key(1), rank=4)
    small = quantize(params, kind)
    dense = {p for p in params if (b := block_path(p)) and b[1].startswith(("attn/", "mlp/")) and p.endswith("/kernel")}
    assert len(dense) == 7 and not dense & small.keys()
    assert {path.rpartition("_")[0] for path in small if is_quantized(path)} == dense
    for path in params.keys() - dense:
        np.testing.assert_array_equal(params[path], small[path])
    again = dequantized(small)
    assert again.keys() == params.keys()
    assert all(again[path].shape == params[path].shape and again[path].dtype == jnp.float32 for path in params)
    half = dequantized(small, jnp.bfloat16)
    assert {leaf.dtype for path, leaf in half.items() if path in dense} == {jnp.dtype(jnp.bfloat16)}
    assert nbytes(small) < nbytes(params)
    # What the model is does not change with how it is kept; the odd row of NF4 is among the scales.
    odd = CONFIG.depth * CONFIG.width if kind == "nf4" else 0
    assert count(small) == count(params) - odd
    assert forward_flops(CONFIG, small, 5, 8) == forward_flops(CONFIG, params, 5, 8) - 10 * odd


@pytest.mark.parametrize("kind, distance", [("int8", 0.03), ("nf4", 0.35)])
@pytest.mark.parametrize("scan", [True, False])
def test_the_logits_stay_near_and_equal_those_of_the_dequantised_model(kind, distance, scan):
    config = dataclasses.replace(CONFIG, scan=scan)
    params = init(config, jax.random.key(0))
    small = quantize(params, kind)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 20), 0, config.vocab_size)
    plain, coded, again = (apply(config, each, tokens_BT).logits_BTV for each in (params, small, dequantized(small)))
    np.testing.assert_allclose(coded, again, atol=1e-5)
    assert distance / 10 < jnp.linalg.norm(coded - plain) / jnp.linalg.norm(plain) < distance


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_stack_and_a_part_of_the_layers_can_be_quantised(kind):
    params = init(CONFIG, jax.random.key(0))
    tokens_BT = jnp.arange(12).reshape(2, 6)
    whole = quantize(params, kind)
    pieces = quantize(cut(params, [1]), kind)
    assert f"blocks/0:1/attn/q/kernel_{kind}" in pieces
    assert digest(pieces) == digest(whole)
    expected = apply(CONFIG, whole, tokens_BT).logits_BTV
    np.testing.assert_allclose(apply(CONFIG, pieces, tokens_BT).logits_BTV, expected, atol=1e-5)
    some = quantize(params, kind, r"blocks/[12]/mlp/.*/kernel")
    assert f"blocks/1:3/mlp/up/kernel_{kind}" in some and "blocks/0:1/mlp/up/kernel" in some
    again = join(dequantized(some))
    np.testing.assert_array_equal(again[DOMAIN], params[DOMAIN])
    np.testing.assert_array_equal(again["blocks/mlp/up/kernel"][0], params["blocks/mlp/up/kernel"][0])
    np.testing.assert_array_equal(again["blocks/mlp/up/kernel"][1:], dequantized(whole)["blocks/mlp/up/kernel"][1:])
    assert np.isfinite(apply(CONFIG, some, tokens_BT).logits_BTV).all()


def lora_step(config: ModelConfig, params: Params, rows: int = 2):
    """(a training step of low-rank adapters, its arguments)."""
    trainable, frozen = apply_selection(lora_only(), params)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2), 100)
    ids = jax.random.randint(jax.random.key(1), (rows, config.max_len + 1), 0, config.vocab_size)
    batch = {
        "tokens_BT": ids[:, :-1],
        "targets_BT": ids[:, 1:],
        "weights_BT": jnp.ones((rows, config.max_len)),
        "positions_BT": jnp.tile(jnp.arange(config.max_len), (rows, 1)),
        "segments_BT": jnp.ones((rows, config.max_len), jnp.int32),
    }
    step = make_step(token_loss(config), optimizer)
    return step, (init_state(optimizer, trainable), frozen, batch, jax.random.key(2))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_over_codes_that_stay_as_they_are(kind):
    params = quantize(add_lora(init(CONFIG, jax.random.key(0)), jax.random.key(1), rank=4), kind)
    step, (state, frozen, batch, key) = lora_step(CONFIG, params)
    before = digest(frozen)
    losses = []
    for _ in range(8):
        state, metrics = step(state, frozen, batch, key)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.05
    assert digest(frozen) == before
    assert all("/lora_" in path for path in state.trainable)


@pytest.mark.parametrize("scan, remat", [(True, "none"), (True, "dots"), (False, "none")])
def test_no_float_copy_of_all_kernels_is_made(scan, remat):
    config = ModelConfig(
        vocab_size=32, width=256, depth=4, num_heads=4, num_kv_heads=4, head_dim=64, mlp_dim=512, max_len=16,
        gated_mlp=False, scan=scan, remat=remat,
    )  # fmt: skip
    params = init(config, jax.random.key(0))
    kernels = nbytes({path: leaf for path, leaf in params.items() if path.endswith("/kernel")})
    params = add_lora(params, jax.random.key(1), rank=2)

    def memory(params: Params) -> tuple[int, int]:
        step, arguments = lora_step(config, params, rows=1)
        found = step.lower(*arguments).compile().memory_analysis()
        return found.argument_size_in_bytes, found.temp_size_in_bytes

    plain_arguments, plain_temporary = memory(params)
    for kind, share in (("int8", 0.26), ("nf4", 0.15)):
        arguments, temporary = memory(quantize(params, kind))
        assert arguments < plain_arguments - (1 - share) * kernels
        if scan:  # a layer of a float stack is used where it is, one of codes is made for the while
            assert temporary < plain_temporary + 1.5 * kernels / config.depth
        else:  # a loop that is unrolled takes every layer out of the stack first: the smaller, the better
            assert temporary < plain_temporary - (0.9 - share) * kernels


def test_what_remat_keeps_of_products_it_keeps_of_products_with_codes():
    config = dataclasses.replace(CONFIG, remat="dots", depth=2)
    params = add_lora(init(config, jax.random.key(0)), jax.random.key(1), rank=2)

    def products(params: Params) -> int:
        step, arguments = lora_step(config, params)
        return str(jax.make_jaxpr(step)(*arguments)).count("dot_general")

    assert products(params) == products(quantize(params, "int8")) == products(quantize(params, "nf4"))


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_are_not_written_as_a_model(kind, tmp_path):
    small = quantize(init(CONFIG, jax.random.key(0)), kind)
    with pytest.raises(UserError, match=f"'blocks/attn/k/kernel_{kind}' is quantised, .* save `dequantized"):
        save_pretrained(tmp_path / "model", CONFIG, small)
    assert not (tmp_path / "model").exists()
    save_pretrained(tmp_path / "model", CONFIG, dequantized(small))


def test_what_cannot_be_quantised_is_said_in_one_line():
    params = add_bottleneck(init(CONFIG, jax.random.key(0)), jax.random.key(1), rank=4)
    with pytest.raises(UserError, match="unknown kind of base 'int4': one of int8, nf4"):
        quantize(params, "int4")
    with pytest.raises(UserError, match="target 'embed/embedding': only the kernels of a block's attention and MLP"):
        quantize(params, "int8", ".*/embedding")
    with pytest.raises(UserError, match="target 'blocks/attn_adapter/down/kernel': only"):
        quantize(params, "int8", "blocks/.*_adapter/.*/kernel")
    with pytest.raises(UserError, match="matches no parameter"):
        quantize(quantize(params, "nf4"), "int8")
    chosen = params | {f"{DOMAIN}_index": jnp.zeros((3, 1), jnp.int32)}
    with pytest.raises(UserError, match="'blocks/attn/q/kernel': chosen entries of it train"):
        quantize(chosen, "int8")
    for kind in KINDS:
        for wrong in (jnp.nan, jnp.inf):
            with pytest.raises(UserError, match="not finite"):
                quantize({DOMAIN: jnp.ones((2, 65, 3)).at[1, 64, 2].set(wrong)}, kind)
