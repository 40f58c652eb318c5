"""Soft prompts begin where they say, train alone, and are the same when what helped to train them is folded away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from limbeck.inference.classify import score
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling, ScoreRequest
from limbeck.model import transformer
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import cut, join, merge
from limbeck.model.prefix import fold_prefix, fold_prompt, prefix_length
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import shapes
from limbeck.train.loss import token_loss
from limbeck.train.select import Selection, apply_selection
from limbeck.train.soft_prompts import (
    P_TUNING_TRAINS,
    PREFIX_TRAINS,
    PROMPT_TRAINS,
    add_p_tuning,
    add_prefix,
    add_prompt,
    fold,
)
from limbeck.train.step import init_state, make_step

CONFIG = ModelConfig(
    vocab_size=31, width=16, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=24, max_len=32,
    embedding_scale=4.0, window=7, global_layers=(1,),
)  # fmt: skip
KEY = jax.random.key(3)
TEXT = [1, 17, 4, 9, 22]
apply = jax.jit(transformer.apply, static_argnums=0)


def filled(config: ModelConfig):
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        spread = shape.shape[-2] ** -0.5 if path.endswith("kernel") else 0.2
        return jnp.asarray((path.endswith("scale") + spread * rng.normal(size=shape.shape)).astype(np.float32))

    return {path: leaf(path, shape) for path, shape in sorted(shapes(config).items())}


BASE = filled(CONFIG)
METHODS = {
    "prompt": (lambda: add_prompt(CONFIG, BASE, KEY, length=4, init="random"), PROMPT_TRAINS),
    "p_tuning": (lambda: add_p_tuning(CONFIG, BASE, KEY, length=4, hidden=12), P_TUNING_TRAINS),
    "prefix": (lambda: add_prefix(CONFIG, BASE, KEY, length=4, init="random"), PREFIX_TRAINS),
    "prefix_mlp": (
        lambda: add_prefix(CONFIG, BASE, KEY, length=4, text_ids=TEXT, hidden=12),
        (r"prefix/.*",),
    ),
}  # fmt: skip
methods = pytest.mark.parametrize("method", METHODS)


def batch_of(rows: int = 4, length: int = 10) -> dict:
    """Two documents a row."""
    ids_BT = np.random.default_rng(1).integers(0, 31, (rows, length + 1))
    return {
        "tokens_BT": ids_BT[:, :-1],
        "targets_BT": ids_BT[:, 1:],
        "weights_BT": np.ones((rows, length), np.float32),
        "positions_BT": np.tile(np.arange(length) % 6, (rows, 1)),
        "segments_BT": np.tile(np.arange(length) // 6 + 1, (rows, 1)),
    }


@pytest.mark.parametrize("length", [3, 5, 12])
@pytest.mark.parametrize("add", [add_prompt, add_prefix])
def test_begun_as_a_text_it_is_that_text_as_context(add, length):
    params = add(CONFIG, BASE, KEY, length=length, init="text", text_ids=TEXT)
    context, text = (3 * TEXT)[:length], [3, 30, 8, 8, 2, 19]
    behind = apply(CONFIG, params, jnp.asarray([text])).logits_BTV
    whole = apply(CONFIG, BASE, jnp.asarray([context + text])).logits_BTV[:, length:]
    np.testing.assert_allclose(behind, whole, atol=1e-5)
    assert prefix_length(params) == length


def test_a_prompt_of_the_vocabulary_is_rows_of_its_first_tokens():
    drawn = add_prompt(CONFIG, BASE, KEY, length=25, common=10)["prompt/embedding"] / 4.0
    distance_PV = np.abs(drawn[:, None] - BASE["embed/embedding"][None]).max(-1)
    ids = distance_PV.argmin(1)
    assert distance_PV.min(1).max() < 1e-6
    assert ids.max() < 10 and len(set(ids[:10])) == 10 == len(set(ids[10:20]))  # each once as far as they go
    other = add_prompt(CONFIG, BASE, jax.random.key(4), length=25, common=10)["prompt/embedding"] / 4.0
    assert np.abs(other - drawn).max() > 0.1


@pytest.mark.parametrize("add", [lambda *a, **k: add_prompt(*a, init="random", **k), add_p_tuning])
def test_random_virtual_tokens_are_as_large_as_tokens(add):
    config = dataclasses.replace(CONFIG, max_len=1024)
    params = fold_prompt(add(config, BASE, KEY, length=600))
    tokens = 4.0 * np.std(BASE["embed/embedding"])
    np.testing.assert_allclose(np.std(params["prompt/embedding"]), tokens, rtol=0.05)


def test_p_tuning_is_an_mlp_with_two_bends():
    params = _moved(METHODS["p_tuning"][0]())
    x = np.asarray(params["prompt/embedding"], np.float64)
    for layer in range(3):
        kernel, bias = (np.asarray(params[f"prompt/encoder/{layer}/{name}"], np.float64) for name in ("kernel", "bias"))
        x = x @ kernel + bias
        x = np.maximum(x, 0) if layer < 2 else x
    np.testing.assert_allclose(fold_prompt(params)["prompt/embedding"], x, rtol=1e-4, atol=1e-5)


def test_a_reparameterised_prefix_begins_as_its_text_and_adds_an_mlp():
    plain = add_prefix(CONFIG, BASE, KEY, length=4, text_ids=TEXT)
    params = METHODS["prefix_mlp"][0]()
    folded = fold_prefix(params)
    assert folded.keys() == plain.keys()
    for path in plain:
        np.testing.assert_array_equal(folded[path], plain[path])
    params = _moved(params)
    inner = np.tanh(params["prefix/embedding"] @ params["prefix/0/kernel"] + params["prefix/0/bias"])
    out_PX = inner @ params["prefix/1/kernel"] + params["prefix/1/bias"]
    for layer in range(2):
        for part, name in enumerate("kv"):
            start = (2 * layer + part) * 16
            expected = params[f"blocks/attn/prefix_{name}"][layer] + out_PX[:, start : start + 16].reshape(4, 2, 8)
            got = fold_prefix(params)[f"blocks/attn/prefix_{name}"][layer]
            np.testing.assert_allclose(got, expected, atol=1e-5)


@methods
def test_folded_equals_unfolded_however_the_stack_is_cut(method):
    params = _moved(METHODS[method][0]())
    tokens_BT = jnp.asarray(batch_of()["tokens_BT"])
    before = apply(CONFIG, params, tokens_BT).logits_BTV
    after = fold(params)
    assert not any("encoder" in path or path.startswith("prefix/") for path in after)
    np.testing.assert_allclose(apply(CONFIG, after, tokens_BT).logits_BTV, before, atol=1e-6)
    np.testing.assert_allclose(apply(CONFIG, cut(params, [1]), tokens_BT).logits_BTV, before, atol=1e-6)
    np.testing.assert_allclose(apply(CONFIG, join(fold(cut(params, [1]))), tokens_BT).logits_BTV, before, atol=1e-6)


@methods
def test_it_trains_alone(method):
    make, patterns = METHODS[method]
    params = make()
    trainable, frozen = apply_selection(Selection(patterns), params)
    assert not trainable.keys() & BASE.keys() and frozen.keys() >= BASE.keys()
    before = {path: np.array(leaf) for path, leaf in frozen.items()}
    start = {path: np.array(leaf) for path, leaf in trainable.items()}
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    step = make_step(token_loss(CONFIG), optimizer)
    state, losses = init_state(optimizer, trainable), []
    for number in range(12):
        state, metrics = step(state, frozen, batch_of(), KEY)
        losses.append(float(metrics["loss"]))
        # An MLP whose last layer begins at zero passes nothing on in the first step.
        assert number == 0 or (metrics["grad_norms_P"] > 0).all()
    assert losses[-1] < losses[0] - 0.01
    for path, leaf in before.items():
        assert np.asarray(frozen[path]).tobytes() == leaf.tobytes(), path
    for path, leaf in state.trainable.items():
        assert np.abs(leaf - start[path]).max() > 1e-3, path
    # What was trained and folded is the model that the last loss would be of.
    folded = fold(merge(state.trainable, frozen))
    loss = token_loss(CONFIG)
    now, then = (loss(model, batch_of(), KEY)[0] for model in (folded, merge(state.trainable, frozen)))
    np.testing.assert_allclose(now, then, rtol=1e-5)


def test_a_head_reads_a_text_behind_its_virtual_tokens():
    config = dataclasses.replace(CONFIG, labels=("no", "yes"), max_len=24)
    base = filled(config)
    params = add_prompt(config, base, KEY, length=5, init="text", text_ids=TEXT)
    texts = [[4, 4, 9], list(range(19))]  # the longer one fills what the virtual tokens leave
    whole = score(config, base, [TEXT + text for text in texts])
    np.testing.assert_allclose(score(config, params, texts), whole, atol=1e-5)
    with pytest.raises(UserError, match="20 tokens in a row after 5 virtual ones"):
        transformer.classify(config, params, jnp.zeros((1, 20), jnp.int32), jnp.asarray([20]))


def test_the_engine_answers_as_with_the_text_before_every_prompt():
    tokenizer = byte_tokenizer()
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, max_len=40)
    base = filled(config)
    context = (tokenizer.bos_id, *tokenizer.encode("میوه: "))
    params = add_prompt(config, base, KEY, length=len(context), init="text", text_ids=context)
    plain, own = (Engine(config, model, tokenizer, batch_size=2) for model in (base, params))
    texts = [tuple(tokenizer.encode(text)) for text in ("گلابی و سیب", "twenty-two characters!")]  # one fills the room
    room = 40 - len(context) - 22

    def generated(engine, before):
        answers = engine.generate([GenerateRequest((*before, *text), Sampling(room)) for text in texts])
        return [answer.tokens for answer in answers]

    assert generated(own, ()) == generated(plain, context)
    options = (tuple(tokenizer.encode("red")), tuple(tokenizer.encode("ripe")))
    scores, right = (
        engine.score([ScoreRequest((*before, *text), options) for text in texts])
        for engine, before in ((own, ()), (plain, context))
    )
    np.testing.assert_allclose([s.logprobs for s in scores], [s.logprobs for s in right], atol=1e-4)
    with pytest.raises(UserError, match=f"^{len(context)} virtual tokens, a prompt of 22 tokens and {room + 1} new"):
        own.generate([GenerateRequest(texts[1], Sampling(room + 1))])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: add_prompt(CONFIG, BASE, KEY, length=0), "length=0: .* at least 1"),
        (lambda: add_prefix(CONFIG, BASE, KEY, length=32, text_ids=TEXT), "length=32: .* max_len=32"),
        (lambda: add_p_tuning(CONFIG, BASE, KEY, length=2, hidden=0), "hidden=0: must be at least 1"),
        (lambda: add_prompt(CONFIG, BASE, KEY, length=2, init="text"), 'init="text" .* empty: give text_ids'),
        (lambda: add_prompt(CONFIG, BASE, KEY, length=2, init="text", text_ids=[4, 31]), "text_ids has 31, .* 0 to 30"),
        (lambda: add_prompt(CONFIG, BASE, KEY, length=2, init="vocab"), "init 'vocab': .* did you mean"),  # type: ignore[arg-type]
        (lambda: add_prefix(CONFIG, METHODS["prompt"][0](), KEY, length=2, init="random"), "has 4 virtual"),
    ],
)
def test_what_cannot_be_begun_is_one_line(make, words):
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def _moved(params):
    """As after some training: none of what was added is where it began."""
    rng = np.random.default_rng(7)
    return {
        path: leaf if path in BASE else leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in params.items()
    }
