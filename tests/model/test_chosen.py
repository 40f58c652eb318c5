"""Chosen entries: the model reads them in place of a leaf's own, wherever the leaf is and however the stack is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import transformer
from limbeck.model.chosen import CHOSEN, INDEX, LARGEST, check_index, choose, filled, layout, unchosen
from limbeck.model.config import ModelConfig
from limbeck.model.decode import generate, greedy
from limbeck.model.errors import UserError
from limbeck.model.params import cut, digest, join, merge, split
from limbeck.model.transformer import classify, init

TINY = ModelConfig(
    vocab_size=53, width=16, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=32,
    positions="learned", norm="layer", attention_bias=True,
)  # fmt: skip
UNTIED = dataclasses.replace(TINY, tied_embedding=False)
BASE = init(UNTIED, jax.random.key(0))
TIED = {path: leaf for path, leaf in BASE.items() if path != "head/kernel"}
TOKENS_BT = jax.random.randint(jax.random.key(1), (2, 9), 0, 53)
apply = jax.jit(transformer.apply, static_argnums=0)


def some(params, *paths, k=5, seed=0):
    """k entries of each leaf, other ones in every layer."""
    rng = np.random.default_rng(seed)
    indices = {}
    for path in paths or params:
        shape = params[path].shape
        layers = shape[0] if path.startswith("blocks/") else 1
        size = int(np.prod(shape)) // layers
        rows = np.stack([np.sort(rng.choice(size, min(k, size), replace=False)) for _ in range(layers)])
        indices[path] = rows if path.startswith("blocks/") else rows[0]
    return indices


def moved(params):
    """The same with other values in the chosen entries."""
    return {path: leaf + 0.5 if path.endswith(CHOSEN) else leaf for path, leaf in params.items()}


def by_hand(params):
    """The plain model, with NumPy and loops."""
    out = {path: np.array(leaf) for path, leaf in params.items() if not path.endswith((CHOSEN, INDEX))}
    for path, values in params.items():
        if path.endswith(CHOSEN):
            stem = path.removesuffix(CHOSEN)
            rows = out[stem].reshape(out[stem].shape[0], -1) if stem.startswith("blocks/") else out[stem].reshape(1, -1)
            for row, places, new in zip(
                rows, np.atleast_2d(params[stem + INDEX]), np.atleast_2d(values), strict=True
            ):
                for place, value in zip(places, new, strict=True):
                    row[place] = value
    return out


WAYS = {
    "scan": {}, "loop": {"scan": False}, "full": {"remat": "full"}, "dots": {"remat": "dots"},
    "bfloat16": {"dtype": "bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize("way, tied", [("scan", True), *((way, False) for way in WAYS)])
def test_every_leaf_may_have_chosen_entries(way, tied):
    config = dataclasses.replace(UNTIED, tied_embedding=tied, **WAYS[way])
    base = TIED if tied else BASE
    params = choose(base, some(base))
    assert len(params) == 3 * len(base)
    plain = apply(config, base, TOKENS_BT).logits_BTV
    np.testing.assert_array_equal(apply(config, params, TOKENS_BT).logits_BTV, plain)
    other = moved(params)
    expected = apply(config, by_hand(other), TOKENS_BT).logits_BTV
    np.testing.assert_array_equal(apply(config, other, TOKENS_BT).logits_BTV, expected)
    assert np.abs(expected - plain).max() > 1e-2


@pytest.mark.parametrize("path", BASE)
def test_each_leaf_is_read_through_its_chosen_entries(path):
    other = moved(choose(BASE, some(BASE, path)))
    out = apply(UNTIED, other, TOKENS_BT).logits_BTV
    np.testing.assert_array_equal(out, apply(UNTIED, by_hand(other), TOKENS_BT).logits_BTV)
    if path != "blocks/attn/k/bias":  # the same for every key: softmax forgets it
        assert (out != apply(UNTIED, BASE, TOKENS_BT).logits_BTV).any()


def test_a_classifier_and_a_text_being_written_read_them_too():
    scored = {**TIED, "score/kernel": jax.random.normal(jax.random.key(3), (16, 2))}
    config = dataclasses.replace(TINY, labels=("no", "yes"))
    other = moved(choose(scored, some(scored)))
    lengths_B = jnp.array([9, 4])
    np.testing.assert_array_equal(
        classify(config, other, TOKENS_BT, lengths_B), classify(config, unchosen(other), TOKENS_BT, lengths_B)
    )
    other = moved(choose(BASE, some(BASE)))
    one, two = (
        generate(UNTIED, params, TOKENS_BT, lengths_B, greedy(2), jnp.zeros(53, bool), 4)
        for params in (other, unchosen(other))
    )
    np.testing.assert_array_equal(one.tokens_BT, two.tokens_BT)
    np.testing.assert_allclose(one.logprobs_BT, two.logprobs_BT, atol=1e-5)


@pytest.mark.parametrize("boundaries", [[], [1], [1, 2]])
def test_put_in_for_good_it_is_the_plain_model(boundaries):
    paths = "blocks/attn/q/kernel", "blocks/mlp_norm/scale", "embed/embedding"
    params = cut(choose(BASE, some(BASE, *paths)), boundaries)
    assert unchosen(params).keys() == BASE.keys()
    assert digest(unchosen(params)) == digest(BASE)
    other = moved(params)
    folded, expected = unchosen(other), by_hand(join(other))
    for path, leaf in folded.items():
        np.testing.assert_array_equal(leaf, expected[path])
    assert digest(other) != digest(params) and digest(join(other)) == digest(other)


def test_some_layers_alone():
    index = some(BASE, "blocks/attn/q/kernel")["blocks/attn/q/kernel"][1:]
    params = choose(BASE, {"blocks/1:3/attn/q/kernel": index})
    assert params["blocks/1:3/attn/q/kernel_chosen"].shape == (2, 5)
    np.testing.assert_array_equal(
        params["blocks/1:3/attn/q/kernel_chosen"],
        np.take_along_axis(np.asarray(BASE["blocks/attn/q/kernel"])[1:].reshape(2, -1), index, -1),
    )
    other = moved(params)
    folded = unchosen(other)
    assert folded.keys() == BASE.keys()
    changed = np.asarray(folded["blocks/attn/q/kernel"] != BASE["blocks/attn/q/kernel"]).sum((1, 2))
    assert changed.tolist() == [0, 5, 5]
    for config in (UNTIED, dataclasses.replace(UNTIED, scan=False)):
        np.testing.assert_allclose(
            apply(config, other, TOKENS_BT).logits_BTV, apply(config, folded, TOKENS_BT).logits_BTV, atol=1e-5
        )
    trainable, frozen = split(other, [".*_chosen"])
    assert trainable.keys() == {"blocks/1:3/attn/q/kernel_chosen"}
    assert digest(merge(trainable, frozen)) == digest(other)


def test_the_gradient_is_gathered_from_the_dense_one():
    """Bitwise, with the same rematerialisation: the same products are summed in the same order."""
    config = dataclasses.replace(UNTIED, remat="full")
    params = choose(BASE, some(BASE))
    own, rest = split(params, [".*_chosen"])

    def loss(config, params):
        return jnp.square(transformer.apply(config, params, TOKENS_BT).logits_BTV).mean()

    gradient = jax.jit(jax.grad(lambda own: loss(config, merge(own, rest))))(own)
    dense = jax.jit(jax.grad(lambda base: loss(config, base)))(BASE)
    for path, index in some(BASE).items():
        rows = np.asarray(dense[path]).reshape(*index.shape[:-1], -1)
        expected = np.take_along_axis(rows, index, -1)
        np.testing.assert_allclose(gradient[path + CHOSEN], expected, rtol=1e-5, atol=1e-8, err_msg=path)
    kept = jax.jit(jax.grad(lambda own: loss(UNTIED, merge(own, rest))))(own)
    for path in own:
        np.testing.assert_allclose(kept[path], gradient[path], rtol=1e-5, atol=1e-8, err_msg=path)


@pytest.mark.parametrize("way", [{}, {"remat": "dots"}, {"dtype": "bfloat16"}], ids=["plain", "dots", "bfloat16"])
def test_no_frozen_kernel_exists_twice(way):
    """Of a scanned stack: neither a filled copy of all layers nor a gradient of them, in what XLA allots."""
    config = ModelConfig(
        vocab_size=31, width=64, depth=16, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=256, max_len=16, **way
    )  # fmt: skip
    base = init(config, jax.random.key(0))
    paths = [path for path in base if path.startswith("blocks/") and path.endswith("/kernel")]
    tokens_BT = jnp.zeros((1, 4), jnp.int32)

    def temporary(patterns, params):
        own, rest = split(params, patterns)

        def loss(own, rest):
            return jnp.square(transformer.apply(config, merge(own, rest), tokens_BT).logits_BTV).mean()

        analysis = jax.jit(jax.grad(loss)).lower(own, rest).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    kernels = sum(base[path].nbytes for path in paths)
    plain = temporary(["blocks/mlp_norm/scale"], base)  # what a frozen stack takes all the same
    chosen = temporary([".*_chosen"], choose(base, some(base, *paths, k=50)))
    assert chosen - plain < 0.3 * kernels, (chosen, plain, kernels)


def test_values_are_float32_and_rounded_where_they_are_put_in():
    base = {"x": jnp.ones((2, 3), jnp.bfloat16)}
    params = choose(base, {"x": np.array([1, 4])})
    assert params["x_chosen"].dtype == jnp.float32 and params["x_index"].dtype == jnp.int32
    params["x_chosen"] = params["x_chosen"].at[0].set(1 + 2**-12).at[1].set(1 + 2**-7)
    out = filled(params)
    assert out.keys() == {"x"} and out["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(out["x"].astype(jnp.float32), [[1, 1, 1], [1, 1 + 2**-7, 1]])


@pytest.mark.parametrize(
    "path, index, words",
    [
        ("embed/embeding", [0], "no such parameter; did you mean 'embed/embedding'"),
        ("blocks/1:7/attn/q/kernel", [[0]], "no such parameter"),
        ("embed/embedding", [0.5], "float64, not of integers"),
        ("embed/embedding", [[0]], r"is \[1, 1\], asked is \[k\]"),
        ("embed/embedding", [], "not of integers"),
        ("embed/embedding", np.zeros(0, int), r"is \[0\], asked is \[k\]"),
        ("embed/embedding", [-1, 3], "-1 to 3, but a layer's leaf has 848 entries"),
        ("embed/embedding", [3, 848], "3 to 848, but"),
        ("embed/embedding", [3, 3], "list each once, in ascending order"),
        ("embed/embedding", [4, 3], "list each once, in ascending order"),
        ("blocks/attn/q/kernel", [0, 1], r"is \[2\], asked is \[3, k\]"),
        ("blocks/attn/q/kernel", [[0, 1]], r"is \[1, 2\], asked is \[3, k\]"),
        ("blocks/attn/q/kernel", [[0], [1], [512]], "0 to 512, but a layer's leaf has 512"),
        ("numbers", [0], "it is int8; choose among leaves of floats"),
        ("norm/scale_chosen", [0], "no such parameter"),
    ],
)
def test_what_cannot_be_chosen_is_refused(path, index, words):
    with pytest.raises(UserError, match=words) as told:
        choose({**BASE, "numbers": jnp.zeros(3, jnp.int8)}, {path: np.asarray(index)})
    assert "\n" not in str(told.value)


def test_nothing_is_chosen_twice():
    params = choose(BASE, some(BASE, "norm/scale"))
    with pytest.raises(UserError, match="'norm/scale' has chosen entries already"):
        choose(params, some(BASE, "norm/scale"))


def test_a_leaf_of_too_many_entries_is_refused():
    assert layout("x", (2, 2**16, 2**15 - 1), stacked=True) == (2, 2**31 - 2**16)
    assert layout("x", (2, 3), stacked=False) == (1, 6)
    with pytest.raises(UserError, match=f"2,147,483,648 in a layer are more than {LARGEST:,}"):
        check_index("x", (2, 2**16, 2**15), np.zeros((2, 1), np.int32), stacked=True)
