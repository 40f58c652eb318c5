"""A text as a prefix: what stands behind it is what the whole text says, whatever model, whatever is in front."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import transformer
from limbeck.model.cache import Cache, empty_cache
from limbeck.model.config import ModelConfig
from limbeck.model.decode import behind, everywhere, generate, greedy
from limbeck.model.params import cut
from limbeck.model.prefix import PREFIX, USED, prefix_length
from limbeck.model.rope import Rope
from limbeck.model.transformer import hidden, shapes, with_prefix

V, SLOTS = 31, 8
TINY = ModelConfig(
    vocab_size=V, width=16, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=40
)  # fmt: skip
VARIANTS = {
    "plain": {},
    "unrolled_untied": {"scan": False, "tied_embedding": False},
    "learned": {"norm": "layer", "positions": "learned", "gated_mlp": False, "attention_bias": True},
    "window": {"window": 4, "global_layers": (1,)},
    "softcaps": {"attention_softcap": 5.0, "qk_norm": "head", "embedding_scale": 4.0, "scan": False},
    "two_ropes_one_without": {
        "depth": 3, "window": 6, "global_layers": (1,), "unrotated_layers": (2,), "norm_placement": "both",
        "rope": Rope(1e6, scaling="linear", factor=8.0), "local_rope": Rope(),
    },
    "no_positions_half_a_head": {"positions": "none", "num_kv_heads": 1, "parallel_residual": True},
}  # fmt: skip
apply = jax.jit(transformer.apply, static_argnums=0)
TEXT, RESTS = [3, 9, 1, 30, 7, 2], ([2, 2, 8, 14, 5], [21, 6])


@functools.cache
def _built(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    params = {}
    for path, leaf in sorted(shapes(config).items()):
        spread = leaf.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
        params[path] = (path.endswith("scale") + spread * rng.normal(size=leaf.shape)).astype(np.float32)
    return params


def build(variant="plain", **more):
    config = dataclasses.replace(TINY, **(VARIANTS[variant] | more))
    return config, {path: jnp.asarray(leaf) for path, leaf in _built(config).items()}


@functools.partial(jax.jit, static_argnums=0)
def after(config, params, tokens_BT):
    """Logits of the rests behind the text, by a cache."""
    batch, length = tokens_BT.shape
    hidden_BTD, cache = hidden(config, params, tokens_BT, cache=empty_cache(config, batch, length))
    return transformer.logits(config, params, hidden_BTD), cast(Cache, cache).length_B


def check(config, params, whole, text=TEXT, slots=SLOTS):
    """That the rests behind the text have the logits that they have in the whole."""
    model = behind(config, params, text, slots)
    rows = np.zeros((len(RESTS), 5), np.int32)
    for row, rest in enumerate(RESTS):
        rows[row, : len(rest)] = rest
    out_BTV, length_B = after(config, model, jnp.asarray(rows))
    assert length_B.tolist() == [5, 5]  # the rests' own tokens alone
    for row, rest in enumerate(RESTS):
        right_TV = whole([*text, *rest, *[0] * (5 - len(rest))])[len(text) :][: len(rest)]
        np.testing.assert_allclose(out_BTV[row, : len(rest)], right_TV, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stands_behind_a_text_is_what_the_whole_text_says(variant):
    config, params = build(variant)
    check(config, params, lambda ids: apply(config, params, jnp.asarray([ids])).logits_BTV[0])


def test_behind_virtual_tokens_too():
    config, params = build("learned")
    params["prompt/embedding"] = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)

    def whole(ids):
        return apply(config, params, jnp.asarray([ids])).logits_BTV[0]

    check(config, params, whole)
    check(config, with_prefix(config, params), whole)
    model = behind(config, params, TEXT, SLOTS)
    assert prefix_length(model) == 3 + SLOTS and int(model[USED]) == 3 + len(TEXT)


def test_behind_a_text_behind_a_text():
    config, params = build("window")

    def whole(ids):
        return apply(config, params, jnp.asarray([[*TEXT[:4], *ids]])).logits_BTV[0, 4:]

    check(config, behind(config, params, TEXT[:4], SLOTS), whole, TEXT[4:])


def test_a_cut_stack_stands_behind_a_text():
    config, params = build("window")
    pieces = cut(params, [1])
    check(config, pieces, lambda ids: apply(config, params, jnp.asarray([ids])).logits_BTV[0])


def test_a_text_of_another_length_in_the_same_slots_is_the_same_program():
    config, params = build("window")
    programs = cast(Any, after)
    seen = programs._cache_size()
    for text in (TEXT, TEXT[:3], [*TEXT, 5, 5]):
        check(config, params, lambda ids: apply(config, params, jnp.asarray([ids])).logits_BTV[0], text)
    assert programs._cache_size() <= seen + 1


def test_empty_slots_are_never_seen():
    config, params = build()
    model = behind(config, params, TEXT, SLOTS)
    loud = {f"blocks/{name}": model[f"blocks/{name}"].at[:, len(TEXT) :].set(1e4) for name in PREFIX}
    rows = jnp.asarray([[2, 2, 8, 14, 5], [21, 6, 0, 0, 0]])
    np.testing.assert_array_equal(after(config, model, rows)[0], after(config, {**model, **loud}, rows)[0])
    seen = {f"blocks/{name}": model[f"blocks/{name}"].at[:, len(TEXT) - 1].set(1e4) for name in PREFIX}
    assert np.abs(after(config, model, rows)[0] - after(config, {**model, **seen}, rows)[0]).max() > 1e-2


def test_writing_on_behind_a_text_is_writing_on_after_it():
    config, params = build("window")
    lengths_B, no_stop = jnp.asarray([5, 2]), jnp.zeros(V, bool)
    rests = jnp.asarray([[*RESTS[0]], [*RESTS[1], 0, 0, 0]])
    wholes = jnp.asarray([[*TEXT, *RESTS[0]], [*TEXT, *RESTS[1], 0, 0, 0]])
    out = generate(config, behind(config, params, TEXT, SLOTS), rests, lengths_B, greedy(2), no_stop, 6)
    right = generate(config, params, wholes, lengths_B + len(TEXT), greedy(2), no_stop, 6)
    np.testing.assert_array_equal(out.tokens_BT, right.tokens_BT)
    np.testing.assert_allclose(out.logprobs_BT, right.logprobs_BT, atol=1e-5)


def test_layers_with_and_without_a_prefix_are_told_apart():
    config, params = build()
    made = with_prefix(config, params | {"prompt/embedding": jnp.ones((2, 16))})
    some = {path.replace("blocks/attn/prefix", "blocks/0:1/attn/prefix"): leaf for path, leaf in made.items()}
    some = {path: leaf[:1] if "prefix" in path else leaf for path, leaf in some.items()}
    assert everywhere(config, params) and everywhere(config, made) and everywhere(config, cut(made, [1]))
    assert not everywhere(config, some)
