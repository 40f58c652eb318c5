"""A prefix is what stands before every text: against the plain model, which is given the same inputs in front."""

import dataclasses
import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.model import decode, transformer
from limbeck.model.cache import empty_cache
from limbeck.model.config import ModelConfig
from limbeck.model.decode import check_room, generate, greedy, stream
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops, step_flops
from limbeck.model.params import cut
from limbeck.model.prefix import prefix_length
from limbeck.model.pretrained import load_pretrained
from limbeck.model.rope import Rope
from limbeck.model.transformer import head_kernel, with_prefix

V, P = 31, 5
TINY = ModelConfig(
    vocab_size=V, width=16, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=32
)  # fmt: skip
VARIANTS = {
    "plain": {},
    "unrolled_untied": {"scan": False, "remat": "full", "tied_embedding": False},
    "layer_norm_learned": {"norm": "layer", "positions": "learned", "gated_mlp": False, "attention_bias": True},
    "window": {"window": 4, "global_layers": (1,)},
    "softcaps_qk_norm": {"attention_softcap": 5.0, "logit_softcap": 3.0, "qk_norm": "head", "embedding_scale": 4.0},
    "two_ropes_unrotated": {
        "depth": 3, "window": 6, "global_layers": (1,), "unrotated_layers": (2,), "norm_placement": "both",
        "rope": Rope(1e6, scaling="linear", factor=8.0), "local_rope": Rope(), "remat": "dots",
    },
    "parallel_part_of_the_head_turns": {"norm": "layer", "parallel_residual": True, "rope": Rope(share=0.5)},
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)
apply = jax.jit(transformer.apply, static_argnums=0)
A, B = ([3, 9, 1, 30, 7], [2, 2, 8, 14, 5, 21, 6])


@functools.cache
def _built(config: ModelConfig, virtual: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in sorted(transformer.shapes(config).items()):
        spread = shape.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
        centre = 1.0 if path.endswith("scale") else 0.0
        params[path] = (centre + spread * rng.normal(size=shape.shape)).astype(np.float32)
    params["prompt/embedding"] = (0.3 * rng.normal(size=(virtual, config.width))).astype(np.float32)
    return params


def build(variant: str = "plain", virtual: int = P, **more):
    config = dataclasses.replace(TINY, **(VARIANTS[variant] | more))
    return config, {path: jnp.asarray(leaf) for path, leaf in _built(config, virtual).items()}


def spelled_out(config, params):
    """A plain model whose first tokens are the virtual ones: token i of the other is its i + P."""
    prompt_PD = params["prompt/embedding"] / config.embedding_scale
    plain = {path: leaf for path, leaf in params.items() if not path.startswith("prompt/")}
    plain["embed/embedding"] = jnp.concatenate([prompt_PD, params["embed/embedding"]])
    plain["head/kernel"] = head_kernel(params)
    return dataclasses.replace(config, vocab_size=len(prompt_PD) + V, tied_embedding=False), plain


def expected(config, params, *texts, length=13):
    """Logits [T, V] of each text behind the virtual tokens."""
    count = len(params["prompt/embedding"])
    rows = [[*range(count), *(count + token for token in text)] for text in texts]
    ids = jnp.asarray([row + [0] * (count + length - len(row)) for row in rows])
    logits_BTV = apply(*spelled_out(config, params), ids).logits_BTV
    return [logits_BTV[n, count : count + len(text)] for n, text in enumerate(texts)]


def packed(*rows, length):
    """Rows of texts, filled up with a document of zeros."""
    tokens_BT, positions_BT, segments_BT = arrays = np.zeros((3, len(rows), length), np.int32)
    for row, texts in enumerate(rows):
        start = 0
        for number, text in enumerate(texts, 1):
            here = slice(start, start + len(text))
            tokens_BT[row, here], positions_BT[row, here], segments_BT[row, here] = text, range(len(text)), number
            start += len(text)
    return dict(zip(("tokens_BT", "positions_BT", "segments_BT"), map(jnp.asarray, arrays), strict=True))


@variants
def test_a_prompt_is_its_embeddings_before_every_text_and_every_packed_document(variant):
    config, params = build(variant)
    a, b = expected(config, params, A, B)
    out = apply(config, params, **packed([A, B], [B], length=15)).logits_BTV
    np.testing.assert_allclose(out[0, :5], a, atol=1e-5)
    np.testing.assert_allclose(out[0, 5:12], b, atol=1e-5)
    np.testing.assert_allclose(out[1, :7], b, atol=1e-5)


def test_a_prompt_matters():
    config, params = build()
    alone = {path: leaf for path, leaf in params.items() if "prompt" not in path}
    (b,) = expected(config, params, B)
    assert np.abs(apply(config, alone, jnp.asarray([B])).logits_BTV[0] - b).max() > 0.1
    np.testing.assert_allclose(apply(config, params, jnp.asarray([B])).logits_BTV[0], b, atol=1e-5)


@pytest.mark.parametrize("variant", ["unrolled_untied", "layer_norm_learned", "window", "softcaps_qk_norm"])
def test_a_prompt_has_the_gradient_that_its_embeddings_would_have(variant):
    config, params = build(variant)
    mix_TV = np.random.default_rng(5).normal(size=(len(B), V))

    def own(prompt_PD):
        model = {**params, "prompt/embedding": prompt_PD}
        return (transformer.apply(config, model, jnp.asarray([B])).logits_BTV[0] * mix_TV).sum()

    def by_hand(prompt_PD):
        model = {**params, "prompt/embedding": prompt_PD}
        return (expected(config, model, B, length=7)[0] * mix_TV).sum()

    got, right = (jax.jit(jax.grad(loss))(params["prompt/embedding"]) for loss in (own, by_hand))
    assert (jnp.abs(right).max(-1) > 0).all()
    np.testing.assert_allclose(got, right, atol=1e-5 * float(jnp.abs(right).max()))


def test_long_texts_are_attended_in_stretches_behind_the_prefix_too():
    config, params = build(max_len=96, window=40)
    texts = [np.random.default_rng(seed).integers(0, V, n).tolist() for seed, n in ((0, 50), (1, 33))]
    out = apply(config, params, **packed(texts, length=85)).logits_BTV[0]
    a, b = expected(config, params, *texts, length=50)
    np.testing.assert_allclose(out[:50], a, atol=1e-5)
    np.testing.assert_allclose(out[50:83], b, atol=1e-5)


@pytest.mark.parametrize("variant", ["layer_norm_learned", "window", "unrolled_untied"])
def test_in_pieces_through_a_cache_as_in_one(variant):
    config, params = build(variant)
    ready = with_prefix(config, params)
    assert "prompt/embedding" not in ready and ready["blocks/attn/prefix_k"].shape == (2, P, 2, 8)
    cache, pieces, tokens = empty_cache(config, 1, len(B)), [], jnp.asarray([B])
    for start, stop, model in ((0, 3, params), (3, 4, ready), (4, 7, params)):
        out = apply(config, model, tokens[:, start:stop], cache=cache)
        cache = out.cache
        pieces.append(out.logits_BTV[0])
    np.testing.assert_allclose(np.concatenate(pieces), *expected(config, params, B), atol=1e-5)
    assert cache is not None and cache.length_B.tolist() == [7]  # its own tokens, without the virtual ones


def test_writing_on_behind_a_prompt_is_writing_on_behind_its_tokens():
    config, params = build("window")
    tokens_BT, lengths_B = jnp.asarray([[*A, 0, 0], B]), jnp.asarray([5, 7])
    no_stop = jnp.zeros(V, bool)
    out = generate(config, params, tokens_BT, lengths_B, greedy(2), no_stop, 6)
    for row, text in enumerate((A, B)):
        ids = list(text)
        for _ in range(6):
            ids.append(int(expected(config, params, ids)[0][-1].argmax()))
        assert out.tokens_BT[row].tolist() == ids[len(text) :]
    *_, last = stream(config, params, tokens_BT, lengths_B, greedy(2), no_stop, 6, chunk=4)
    np.testing.assert_array_equal(last.tokens_BT, out.tokens_BT)
    np.testing.assert_array_equal(last.logprobs_BT, out.logprobs_BT)


def test_decoding_runs_the_prompt_once_and_not_for_every_token(monkeypatch):
    config, params = build()
    seen = []

    def hidden(config, params, *rest, **more):
        seen.append(set(params))
        return transformer.hidden(config, params, *rest, **more)

    monkeypatch.setattr(decode, "hidden", hidden)
    once = inspect.unwrap(decode.generate)  # as it is traced, even where it was traced before
    once(config, params, jnp.asarray([B]), jnp.asarray([7]), greedy(1), jnp.zeros(V, bool), 2)
    assert len(seen) >= 2
    assert all("blocks/attn/prefix_k" in paths and "prompt/embedding" not in paths for paths in seen)


def test_a_prompt_stands_behind_a_prefix_that_is_there():
    config, params = build("window")
    whole = params["prompt/embedding"]
    first = with_prefix(config, {**params, "prompt/embedding": whole[:2]})
    both = {**first, "prompt/embedding": whole[2:]}
    assert prefix_length(first) == 2 and prefix_length(both) == P
    np.testing.assert_allclose(
        apply(config, both, jnp.asarray([B])).logits_BTV[0], *expected(config, params, B), atol=1e-5
    )


def test_a_cut_stack_has_the_same_prefix():
    config, params = build()
    (right,) = expected(config, params, B)
    ready = with_prefix(config, params)
    beside = {path: leaf for path, leaf in ready.items() if "prefix" in path}
    rest = {path: leaf for path, leaf in cut(params, [1]).items() if "prompt" not in path}
    for model in (cut(params, [1]), cut(ready, [1]), with_prefix(config, cut(params, [1])), {**rest, **beside}):
        np.testing.assert_allclose(apply(config, model, jnp.asarray([B])).logits_BTV[0], right, atol=1e-5)


def test_virtual_tokens_count_where_the_turn_depends_on_how_long_a_text_is():
    def rope(original: int) -> Rope:
        return Rope(scaling="longrope", original_max_len=original, short_factor=(1.0,) * 4, long_factor=(3.0,) * 4)

    config, params = build(rope=rope(10))  # B alone is shorter, behind its virtual tokens longer
    ready, tokens_BT = with_prefix(config, params), jnp.asarray([B])
    right = apply(dataclasses.replace(config, rope=rope(1)), ready, tokens_BT).logits_BTV
    np.testing.assert_array_equal(apply(config, ready, tokens_BT).logits_BTV, right)
    cached = apply(config, ready, tokens_BT, cache=empty_cache(config, 1, len(B))).logits_BTV
    np.testing.assert_allclose(cached, right, atol=1e-5)
    short = dataclasses.replace(config, rope=rope(12))
    (b,) = expected(short, params, B, length=7)
    np.testing.assert_allclose(apply(short, params, tokens_BT).logits_BTV[0], b, atol=1e-5)


def test_the_window_ends_in_the_prefix_where_it_says():
    config, params = build(depth=1, window=4)
    ready = with_prefix(config, params)

    def logits(far: int):
        """With another value at one virtual token."""
        values = ready["blocks/attn/prefix_v"].at[:, far].add(1.0)
        return apply(config, {**ready, "blocks/attn/prefix_v": values}, jnp.asarray([B])).logits_BTV[0]

    base = apply(config, ready, jnp.asarray([B])).logits_BTV[0]
    moved = np.abs(np.stack([logits(p) - base for p in range(P)])).max(-1) > 1e-4
    # Token t stands at P + t and sees itself and three positions before.
    np.testing.assert_array_equal(moved, [[P + t - p < 4 for t in range(len(B))] for p in range(P)])


def test_virtual_tokens_take_positions():
    config, params = build(virtual=25)
    assert apply(config, params, jnp.asarray([B])).logits_BTV.shape == (1, 7, V)
    with pytest.raises(UserError, match="8 tokens in a row after 25 virtual ones.*max_len=32"):
        apply(config, params, jnp.asarray([[*B, 1]]))
    check_room(config, 4, 3, prefix_length(params))
    with pytest.raises(UserError, match="^25 virtual tokens, a prompt of 4 tokens and 4 new ones .* 32 positions"):
        check_room(config, 4, 4, prefix_length(params))


def test_layers_agree_on_how_many_virtual_tokens_there_are():
    config, params = build()
    ready = cut(with_prefix(config, params), [1])
    ready["blocks/1:2/attn/prefix_k"] = ready["blocks/1:2/attn/prefix_k"][:, :3]
    with pytest.raises(UserError, match=r"\[3, 5\] virtual tokens"):
        apply(config, ready, jnp.asarray([B]))


@pytest.mark.bench
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama3", "gpt_neox"])
def test_transformers_agrees_on_virtual_tokens_and_on_a_prefix(family):
    """Given as embeddings before the text's, which Gemma has scaled by then, and as past keys and values."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = Path(__file__).parent / "families" / "fixtures" / family
    model = library.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    mine = load_pretrained(folder)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, mine.config.vocab_size, (2, 9))
    prompt_PD = rng.normal(size=(P, mine.config.width)).astype(np.float32)
    with torch.no_grad():
        tokens = model.get_input_embeddings()(torch.tensor(ids))
        inputs = torch.cat([torch.tensor(prompt_PD).expand(2, -1, -1), tokens], 1)
        theirs = model(inputs_embeds=inputs).logits[:, P:].numpy()
    params = {**mine.params, "prompt/embedding": jnp.asarray(prompt_PD)}
    np.testing.assert_allclose(apply(mine.config, params, jnp.asarray(ids)).logits_BTV, theirs, atol=2e-5)

    c = mine.config
    kv_2LPKH = rng.normal(size=(2, c.depth, P, c.num_kv_heads, c.head_dim)).astype(np.float32)
    past = [
        tuple(torch.tensor(x_LPKH[layer]).transpose(0, 1).expand(2, -1, -1, -1) for x_LPKH in kv_2LPKH)
        for layer in range(c.depth)
    ]
    with torch.no_grad():
        theirs = model(torch.tensor(ids), past_key_values=library.DynamicCache(past)).logits.numpy()
    params = {**mine.params, **dict(zip(("blocks/attn/prefix_k", "blocks/attn/prefix_v"), kv_2LPKH, strict=True))}
    np.testing.assert_allclose(apply(c, params, jnp.asarray(ids)).logits_BTV, theirs, atol=2e-5)


def test_virtual_tokens_are_counted_as_keys_and_their_networks_as_nothing():
    config, params = build()
    plain = {path: leaf for path, leaf in params.items() if "prompt" not in path}
    tuned = {**params, "prompt/encoder/0/kernel": jnp.zeros((16, 16))}
    keys = 100 * config.depth * 4 * config.num_heads * config.head_dim * P
    assert forward_flops(config, tuned, 100, 6) - forward_flops(config, plain, 100, 6) == keys
    prompt = {"prompt/embedding": params["prompt/embedding"]}
    # The way back to the first layer, but no gradient of a weight.
    whole, forward = step_flops(config, prompt, plain, 100, 6), forward_flops(config, params, 100, 6)
    assert whole == 2 * forward + keys * (6 + P) / P
