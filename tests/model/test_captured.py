"""What is shown of a forward pass: against models cut off after each layer, projections in numpy, longer texts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import transformer
from limbeck.model.chosen import choose, unchosen
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import block_path, cut, join
from limbeck.model.rope import Rope
from limbeck.model.stack import CAPTURED

V, P = 31, 3
TINY = ModelConfig(
    vocab_size=V, width=16, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=32
)  # fmt: skip
VARIANTS = {
    "plain": {},
    "learned_scaled": {"norm": "layer", "positions": "learned", "gated_mlp": False, "embedding_scale": 4.0},
    "window_two_ropes_qk_norm": {
        "window": 3, "global_layers": (1,), "rope": Rope(1e6), "local_rope": Rope(), "qk_norm": "head",
        "unrotated_layers": (2,), "attention_bias": True,
    },
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)
captured = jax.jit(transformer.captured, static_argnums=0, static_argnames="names")
hidden = jax.jit(transformer.hidden, static_argnums=0)
TOKENS = jax.random.randint(jax.random.key(7), (2, 9), 0, V)
PACKED = {
    "positions_BT": jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 0, 0]]),
    "segments_BT": jnp.asarray([[1] * 4 + [2] * 5, [3] * 6 + [0] * 3]),
}


@functools.cache
def build(variant: str):
    config = dataclasses.replace(TINY, **VARIANTS[variant])
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in sorted(transformer.shapes(config).items()):
        spread = shape.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
        centre = 1.0 if path.endswith("scale") else 0.0
        params[path] = jnp.asarray(centre + spread * rng.normal(size=shape.shape), jnp.float32)
    return config, params


def normed(config, leaves, x):
    """The model's norm, in numpy."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True) if config.norm == "layer" else x
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.norm_eps) * leaves["scale"]
    return x + leaves["bias"] if config.norm == "layer" else x


def under(params, stem):
    return {path.removeprefix(stem): np.asarray(leaf) for path, leaf in params.items() if path.startswith(stem)}


def turned(x_BTNH, positions_BT, rope):
    half = x_BTNH.shape[-1] // 2
    angle = positions_BT[..., None, None] * rope.theta ** (-np.arange(half) / half)
    complex_BTNR = (x_BTNH[..., :half] + 1j * x_BTNH[..., half:]) * np.exp(1j * angle)
    return np.concatenate([complex_BTNR.real, complex_BTNR.imag], -1)


@variants
def test_hidden_states_are_those_of_models_that_end_after_each_layer(variant):
    config, params = build(variant)
    out, seen = captured(config, params, TOKENS, **PACKED, names=("hidden",))
    assert seen.keys() == {"hidden"} and seen["hidden"].shape == (4, 2, 9, 16)
    embedded = np.asarray(params["embed/embedding"])[TOKENS] * config.embedding_scale
    if config.positions == "learned":
        embedded = embedded + np.asarray(params["positions/embedding"])[PACKED["positions_BT"]]
    np.testing.assert_allclose(seen["hidden"][0], embedded, atol=1e-6)
    norm = under(params, "norm/")
    for depth in (1, 2, 3):
        short = dataclasses.replace(config, depth=depth, global_layers=config.global_layers if depth > 1 else (),
                                    unrotated_layers=config.unrotated_layers if depth > 2 else ())  # fmt: skip
        first = {path: leaf[:depth] if block_path(path) else leaf for path, leaf in params.items()}
        expected, _ = hidden(short, first, TOKENS, **PACKED)
        np.testing.assert_allclose(normed(config, norm, seen["hidden"][depth]), expected, atol=1e-5)
    np.testing.assert_array_equal(out, hidden(config, params, TOKENS, **PACKED)[0])


@variants
def test_queries_keys_and_values_are_the_projections_of_what_enters_each_block(variant):
    config, params = build(variant)
    _, seen = captured(config, params, TOKENS, **PACKED, names=CAPTURED)
    for layer, rope in enumerate(config.layer_ropes()):
        block = {path: leaf[layer] for path, leaf in under(params, "blocks/").items()}
        x = normed(config, {k.removeprefix("attn_norm/"): v for k, v in block.items()
                            if k.startswith("attn_norm/")}, seen["hidden"][layer])  # fmt: skip
        for name, heads in (("q", 4), ("k", 2), ("v", 2)):
            expected = (x @ block[f"attn/{name}/kernel"] + block.get(f"attn/{name}/bias", 0)).reshape(2, 9, heads, 8)
            if name != "v" and config.qk_norm == "head":
                expected = normed(config, {"scale": block[f"attn/{name}_norm/scale"]}, expected)
            if name != "v" and rope:
                expected = turned(expected, np.asarray(PACKED["positions_BT"]), rope)
            np.testing.assert_allclose(seen[name][layer], expected, atol=1e-5, err_msg=f"{name} of layer {layer}")


@pytest.mark.parametrize("variant", ["plain", "window_two_ropes_qk_norm"])
def test_however_the_stack_is_run_the_same_is_captured_with_the_same_gradient(variant):
    config, params = build(variant)
    mix = np.random.default_rng(5).normal(size=3 * 2 * 9 * 32)

    def value_and_gradient(config, params):
        def loss(params):
            _, seen = transformer.captured(config, params, TOKENS, **PACKED, names=CAPTURED)
            return sum((mix[: array.size] * array.reshape(-1)).sum() for array in seen.values()), seen

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (_, right), gradient = value_and_gradient(config, params)
    ways = {
        "unrolled, full remat": ({"scan": False, "remat": "full"}, params),
        "dots, cut": ({"remat": "dots"}, cut(params, [1])),
        "cut, unrolled": ({"scan": False}, cut(params, [1])),
    }
    for way, (changes, own) in ways.items():
        (_, seen), other = value_and_gradient(dataclasses.replace(config, **changes), own)
        for name in CAPTURED:
            np.testing.assert_allclose(seen[name], right[name], atol=1e-5, err_msg=f"{way}: {name}")
        for path, leaf in join(other).items():
            np.testing.assert_allclose(leaf, gradient[path], atol=2e-4, err_msg=f"{way}: {path}")


def test_chosen_entries_are_in_what_is_captured():
    config, params = build("plain")
    picked = choose(params, {"blocks/attn/k/kernel": np.tile(np.arange(5), (3, 1))})
    picked["blocks/attn/k/kernel_chosen"] += 1.0
    _, seen = captured(config, picked, TOKENS, names=CAPTURED)
    _, right = captured(config, unchosen(picked), TOKENS, names=CAPTURED)
    _, before = captured(config, params, TOKENS, names=CAPTURED)
    for name in CAPTURED:
        np.testing.assert_allclose(seen[name], right[name], atol=1e-5, err_msg=name)
    assert np.abs(seen["k"] - before["k"]).max() > 0.1


@variants
def test_virtual_tokens_are_seen_but_not_captured(variant):
    """As tokens of the vocabulary that stand before the text, and whose part is then left out."""
    config, params = build(variant)
    prompt = 0.3 * jax.random.normal(jax.random.key(3), (P, 16))
    _, seen = captured(config, {**params, "prompt/embedding": prompt}, TOKENS, names=CAPTURED)
    longer = dataclasses.replace(config, vocab_size=V + P)
    rows = jnp.concatenate([params["embed/embedding"], prompt / config.embedding_scale])
    tokens = jnp.concatenate([jnp.tile(V + jnp.arange(P), (2, 1)), TOKENS], 1)
    _, right = captured(longer, {**params, "embed/embedding": rows}, tokens, names=CAPTURED)
    _, alone = captured(config, params, TOKENS, names=CAPTURED)
    for name in CAPTURED:
        np.testing.assert_allclose(seen[name], right[name][:, :, P:], atol=1e-5, err_msg=name)
    assert np.abs(seen["hidden"] - alone["hidden"]).max() > 1e-2


def test_nothing_is_kept_of_a_pass_that_captures_nothing():
    """No loop over layers in it gives anything but what it carries: neither for the asked, nor beside it."""
    config, params = build("plain")

    def given(names):
        def run(params):
            return transformer.captured(config, params, TOKENS, names=names)

        program = jax.make_jaxpr(run)(params)
        (loop,) = (eqn for eqn in program.eqns if eqn.primitive.name == "scan")
        return [var.aval.shape for var in loop.outvars]

    def plain(params):
        return transformer.hidden(config, params, TOKENS)[0], {}

    (loop,) = (eqn for eqn in jax.make_jaxpr(plain)(params).eqns if eqn.primitive.name == "scan")
    assert [var.aval.shape for var in loop.outvars] == given(()) == [(2, 9, 16)]
    assert given(("k",)) == [(2, 9, 16), (3, 2, 9, 2, 8)]


def test_an_unknown_name_and_too_long_a_row_are_refused():
    config, params = build("plain")
    with pytest.raises(UserError, match=r"unknown captured array 'hiden'.*did you mean 'hidden'\?"):
        transformer.captured(config, params, TOKENS, names=("hiden",))
    with pytest.raises(UserError, match="33 tokens in a row.*max_len=32"):
        transformer.captured(config, params, jnp.zeros((1, 33), jnp.int32), names=("q",))
