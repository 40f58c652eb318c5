"""Properties of the network: what sees what, and what must change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import transformer
from limbeck.model.cache import empty_cache
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import cut, join
from limbeck.model.rope import Rope
from limbeck.model.transformer import init

TINY = ModelConfig(
    vocab_size=53, width=16, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=32
)
VARIANTS = {
    "plain": {},
    "layer_norm_learned": {"norm": "layer", "positions": "learned", "gated_mlp": False, "activation": "gelu"},
    "biases_untied": {"attention_bias": True, "output_bias": True, "mlp_bias": True, "tied_embedding": False},
    "window": {"window": 4, "global_layers": (2,)},
    "softcaps_qk_norm": {"attention_softcap": 5.0, "logit_softcap": 3.0, "qk_norm": "head", "embedding_scale": 4.0},
    "two_ropes_norms_on_both_sides": {
        "norm_plus_one": True, "norm_placement": "both", "window": 4, "global_layers": (1,),
        "rope": Rope(1e6, scaling="linear", factor=8.0), "local_rope": Rope(),
    },
    "parallel_part_of_the_head_turns": {"norm": "layer", "parallel_residual": True, "rope": Rope(share=0.5)},
    "norms_after_some_layers_unrotated": {
        "norm_placement": "post", "qk_norm": "projection", "unrotated_layers": (1,), "attention_scale": 0.5,
    },
    "no_positions": {"positions": "none", "num_kv_heads": 1, "activation": "relu"},
}
variants = pytest.mark.parametrize("variant", VARIANTS)
apply = jax.jit(transformer.apply, static_argnums=0)


def build(variant: str = "plain", **more):
    config = dataclasses.replace(TINY, **(VARIANTS[variant] | more))
    params = init(config, jax.random.key(0))
    # Norms and biases away from ones and zeros, so that nothing hides behind them.
    noise = jax.random.split(jax.random.key(1), len(params))
    return config, {
        path: leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, (path, leaf) in zip(noise, params.items(), strict=True)
    }


def tokens(batch: int, length: int, seed: int = 0) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, TINY.vocab_size)


@variants
def test_no_position_depends_on_a_later_one(variant):
    config, params = build(variant)
    embedding = params["embed/embedding"]
    tokens_BT = tokens(1, 10)

    def loss(rows, position):
        """Logits at `position` as a function of each position's own embedding row."""
        own = dataclasses.replace(config, vocab_size=10, tied_embedding=False)
        model = {**params, "embed/embedding": rows, "head/kernel": jnp.eye(16)}
        return apply(own, model, jnp.arange(10)[None]).hidden_BTD[0, position].sum()

    rows_TD = embedding[tokens_BT[0]]
    for position in (0, 4, 9):
        reach_T = jnp.abs(jax.grad(loss)(rows_TD, position)).sum(-1)
        assert (reach_T[position + 1 :] == 0).all()
        assert reach_T[position] > 0
        if position and not config.window:
            assert (reach_T[:position] > 0).all()


def test_a_window_ends_where_it_says():
    config, params = build("window", depth=1, global_layers=())
    one = tokens(1, 10)
    far = one.at[0, 5].set((one[0, 5] + 1) % 53)  # position 9 sees 6 to 9
    near = one.at[0, 6].set((one[0, 6] + 1) % 53)
    last = [apply(config, params, x).logits_BTV[0, 9] for x in (one, far, near)]
    np.testing.assert_array_equal(last[0], last[1])
    assert np.abs(last[0] - last[2]).max() > 1e-3


@variants
def test_cached_equals_uncached(variant):
    config, params = build(variant)
    tokens_BT = tokens(2, 12)
    whole = apply(config, params, tokens_BT).logits_BTV
    cache = empty_cache(config, 2, 16)
    pieces = []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        out = apply(config, params, tokens_BT[:, start:stop], cache=cache)
        cache = out.cache
        pieces.append(out.logits_BTV)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, atol=1e-5)
    assert cache is not None and cache.length_B.tolist() == [12, 12]


@variants
def test_scanned_unrolled_rematerialised_and_cut_stacks_agree(variant):
    config, params = build(variant)
    tokens_BT = tokens(2, 9)

    def value_and_gradient(config, params):
        return jax.value_and_grad(lambda p: jnp.square(apply(config, p, tokens_BT).logits_BTV).mean())(params)

    value, gradient = value_and_gradient(config, params)
    for other in ({"scan": False}, {"remat": "full"}, {"remat": "dots"}):
        value2, gradient2 = value_and_gradient(dataclasses.replace(config, **other), params)
        np.testing.assert_allclose(value2, value, rtol=1e-6)
        for path in gradient:
            np.testing.assert_allclose(gradient2[path], gradient[path], atol=1e-6, err_msg=path)
    value2, gradient2 = value_and_gradient(config, cut(params, [1, 2]))
    np.testing.assert_allclose(value2, value, rtol=1e-6)
    for path, leaf in join(gradient2).items():
        np.testing.assert_allclose(leaf, gradient[path], atol=1e-6, err_msg=path)


@variants
def test_batch_and_right_padding_change_nothing(variant):
    config, params = build(variant)
    tokens_BT = tokens(3, 8)
    together = apply(config, params, jnp.pad(tokens_BT, ((0, 0), (0, 5)))).logits_BTV[:, :8]
    for row in range(3):
        alone = apply(config, params, tokens_BT[row : row + 1]).logits_BTV[0]
        np.testing.assert_allclose(together[row], alone, atol=1e-5)


@variants
def test_packed_documents_do_not_see_each_other(variant):
    config, params = build(variant)
    a, b = tokens(1, 5, seed=1), tokens(1, 7, seed=2)
    packed = apply(
        config,
        params,
        jnp.concatenate([a, b], 1),
        positions_BT=jnp.concatenate([jnp.arange(5), jnp.arange(7)])[None],
        segments_BT=jnp.array([[1] * 5 + [2] * 7]),
    ).logits_BTV
    np.testing.assert_allclose(packed[:, :5], apply(config, params, a).logits_BTV, atol=1e-5)
    np.testing.assert_allclose(packed[:, 5:], apply(config, params, b).logits_BTV, atol=1e-5)


LONGROPE = Rope(scaling="longrope", original_max_len=16, short_factor=(1.0,) * 4, long_factor=(3.0,) * 4)


@pytest.mark.parametrize("lengths", [(10, 20), (20, 10), (16, 17, 5)])
@pytest.mark.parametrize("numbers", [(1, 2, 3), (70_000, 9, 41)], ids=["in order", "any"])
def test_a_packed_document_turns_by_its_own_length(lengths, numbers):
    """Longrope has other angles for longer texts: those of a short one beside a long one are those of it alone."""
    config, params = build(rope=LONGROPE, local_rope=Rope(), window=12, global_layers=(1,), max_len=48)
    documents = [tokens(1, length, seed=length) for length in lengths]
    numbers = numbers[: len(lengths)]
    packed = apply(
        config,
        params,
        jnp.concatenate([*documents, jnp.zeros((1, 3), jnp.int32)], 1),
        positions_BT=jnp.concatenate([*map(jnp.arange, lengths), jnp.zeros(3, jnp.int32)])[None],
        segments_BT=jnp.repeat(jnp.asarray((*numbers, 0)), jnp.asarray((*lengths, 3)))[None],
    ).logits_BTV
    long = dataclasses.replace(config, rope=dataclasses.replace(LONGROPE, original_max_len=1))
    short = dataclasses.replace(config, rope=dataclasses.replace(LONGROPE, original_max_len=48))
    end = 0
    for document, length in zip(documents, lengths, strict=True):
        alone = apply(config, params, document).logits_BTV
        np.testing.assert_allclose(packed[:, end : end + length], alone, atol=1e-5)
        by_hand, other = (long, short) if length > 16 else (short, long)
        np.testing.assert_allclose(alone, apply(by_hand, params, document).logits_BTV, atol=1e-5)
        assert np.abs(alone - apply(other, params, document).logits_BTV).max() > 1e-3
        end += length


def test_a_class_is_of_the_text_and_not_of_how_far_it_is_padded():
    config, params = build(rope=dataclasses.replace(LONGROPE, original_max_len=20), labels=("no", "yes"))
    params = {**params, "score/kernel": jax.random.normal(jax.random.key(7), (16, 2))}
    texts, lengths = tokens(3, 32), (18, 21, 20)
    scores_BC = transformer.classify(config, params, texts, jnp.asarray(lengths))
    for row, length in enumerate(lengths):
        alone = transformer.classify(config, params, texts[row : row + 1, :length], jnp.asarray([length]))
        np.testing.assert_allclose(scores_BC[row], alone[0], atol=1e-5)


def test_attention_equals_its_definition():
    """Against a plain loop over heads in float64."""
    from limbeck.model.attention import attend, visible

    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 6, heads, 8)) for heads in (4, 2, 2))
    positions = np.tile(np.arange(6), (2, 1))
    mask = np.asarray(visible(jnp.asarray(positions), jnp.asarray(positions), None, None, 4))
    expected = np.zeros((2, 6, 4, 8))
    for b in range(2):
        for n in range(4):
            for t in range(6):
                seen = [s for s in range(6) if s <= t and t - s < 4]
                scores = 2.0 * np.tanh(np.array([q[b, t, n] @ k[b, s, n // 2] for s in seen]) / np.sqrt(8) / 2.0)
                weights = np.exp(scores) / np.exp(scores).sum()
                expected[b, t, n] = weights @ v[b, seen, n // 2]
    q32, k32, v32 = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    got = attend(q32, k32.swapaxes(1, 2), v32.swapaxes(1, 2), jnp.asarray(mask), cap=2.0)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("length, scale, cap", [(6, None, None), (6, 0.3, 1.5), (67, None, None), (130, 0.5, 2.0)])
def test_the_gradient_of_attention_is_that_of_its_definition(length, scale, cap):
    """Against automatic differentiation of a plain softmax over all keys, packed and windowed, in and out of groups."""
    from limbeck.model.attention import attend_causally, stretches, visible
    from limbeck.model.layers import softcap

    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, length, heads, 8)) for key, heads in zip(keys, (4, 2, 2), strict=False))
    mix = jax.random.normal(keys[3], (2, length, 4, 8))
    positions = jnp.tile(jnp.arange(length) % 40, (2, 1))
    mask = visible(positions, positions, jnp.arange(length)[None] // 40, jnp.arange(length)[None] // 40, 30)

    def plain(q, k, v):
        k, v = (jnp.repeat(x, 2, 2) for x in (k, v))
        scores = softcap(jnp.einsum("btnh,bsnh->bnts", q, k) * (8**-0.5 if scale is None else scale), cap)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf)), v)

    def own(q, k, v):
        return attend_causally(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, scale, cap)

    assert stretches(length) == (1 if length < 64 else 4)
    np.testing.assert_allclose(own(q, k, v), plain(q, k, v), atol=1e-6)
    got, expected = (jax.grad(lambda *x, f=f: (f(*x) * mix).sum(), (0, 1, 2))(q, k, v) for f in (own, plain))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_rotation_depends_on_distance_alone():
    from limbeck.model.layers import rotate, turn

    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(at_query, at_key):
        turns = [turn(Rope(), 8, jnp.array([[at]]), jnp.array([[32]])) for at in (at_query, at_key)]
        return (rotate(q, turns[0]) * rotate(k, turns[1])).sum()

    np.testing.assert_allclose(score(7, 3), score(24, 20), rtol=1e-5)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_a_leaf_depends_on_key_path_and_layer_alone():
    deep = init(dataclasses.replace(TINY, depth=5), jax.random.key(3))
    shallow = init(TINY, jax.random.key(3))
    for path in ("blocks/attn/q/kernel", "blocks/mlp/up/kernel"):
        np.testing.assert_array_equal(deep[path][:3], shallow[path])
        assert np.abs(deep[path][0] - deep[path][1]).max() > 0.01
    assert transformer.shapes(TINY) == {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in shallow.items()
    }


@pytest.mark.parametrize(
    "change, words",
    [
        ({"width": 0}, "width=0"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 is 7 dimensions"),
        ({"window": 0}, "window=0"),
        ({"norm": "rmz"}, "did you mean 'rms'?"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(change, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        dataclasses.replace(TINY, **change)


def test_too_many_tokens_and_missing_layers_are_refused():
    config, params = build()
    with pytest.raises(UserError, match="33 tokens in a row.*max_len=32"):
        apply(config, params, tokens(1, 33))
    with pytest.raises(UserError, match="hold 3 layers.*depth=4"):
        apply(dataclasses.replace(config, depth=4), params, tokens(1, 3))
