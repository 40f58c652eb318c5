"""Whole texts: their log-likelihood in windows, their embeddings, and that no prompt's logits are ever held."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.inference import scoring
from limbeck.inference.engine import Engine
from limbeck.inference.requests import EmbedRequest, GenerateRequest, HeadRequest, Sampling
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import apply, init
from limbeck.train.adapters import add_lora
from limbeck.train.heads import add_head
from limbeck.train.soft_prompts import add_prompt

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=24
)
PARAMS = {path: 2 * leaf for path, leaf in init(CONFIG, jax.random.key(0)).items()}
ENGINE = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
LENGTHS = [1, 2, 7, 24, 25, 26, 48, 49, 60, 73]
TEXTS = [np.random.default_rng(n).integers(3, 259, n).tolist() for n in LENGTHS]


def log_probabilities(ids, params=PARAMS):
    """[T, V] in a row of the model's full length, so that all share a program."""
    row = np.zeros((1, CONFIG.max_len), np.int32)
    row[0, : len(ids)] = ids
    room = CONFIG.max_len - len(params.get("prompt/embedding", ()))
    return jax.nn.log_softmax(_apply(CONFIG, params, row[:, :room]).logits_BTV[0])[: len(ids)]


_apply = jax.jit(apply, static_argnums=0)


def in_windows(text, room, params=PARAMS):
    """Each next token after as much as the window shows of what is before: the first windows are full, the last too."""
    total, done = 0.0, 1
    while done < len(text):
        stop = min(done + room, len(text))
        read = text[max(0, stop - 1 - room) : stop - 1]
        logprobs_TV = log_probabilities(read, params)
        total += sum(float(logprobs_TV[len(read) - (stop - at), text[at]]) for at in range(done, stop))
        done = stop
    return total


def test_a_whole_text_is_scored_in_windows_each_token_once():
    before = ENGINE.tokens_run
    found = ENGINE.rolling(TEXTS)
    assert found[0] == 0.0 and all(type(each) is float for each in found)
    np.testing.assert_allclose(found, [in_windows(text, 24) for text in TEXTS], atol=1e-4)
    read = [min(24, n - 1) if n <= 25 else -(-(n - 1) // 24) * 24 for n in LENGTHS]
    assert ENGINE.tokens_run - before == sum(read)
    np.testing.assert_allclose(ENGINE.rolling(TEXTS[::-1]), found[::-1], atol=1e-5)
    np.testing.assert_allclose(Engine(CONFIG, PARAMS, TOKENIZER, 2).rolling(TEXTS[4:6]), found[4:6], atol=1e-4)


def test_virtual_tokens_make_the_windows_shorter():
    params = add_prompt(CONFIG, PARAMS, jax.random.key(1), length=4)
    found = Engine(CONFIG, params, TOKENIZER, batch_size=4).rolling(TEXTS[3:7])
    np.testing.assert_allclose(found, [in_windows(text, 20, params) for text in TEXTS[3:7]], atol=1e-4)


@pytest.mark.bench
def test_the_windows_are_those_of_the_evaluation_harness():
    utils = pytest.importorskip("lm_eval.utils")
    for text in TEXTS[1:]:
        windows = utils.get_rolling_token_windows(text[1:], text[0], max_seq_len=24, context_len=1)
        total = 0.0
        for context, scored in map(utils.make_disjoint_window, windows):
            logprobs_TV = log_probabilities([*context, *scored][:-1])
            total += sum(float(logprobs_TV[len(context) - 1 + i, token]) for i, token in enumerate(scored))
        assert ENGINE.rolling([text])[0] == pytest.approx(total, abs=1e-4)


def test_an_embedding_is_the_mean_of_the_last_hidden_states():
    texts = [text for text in TEXTS if len(text) <= 24]
    before = ENGINE.tokens_run
    found_ND = ENGINE.embed(texts)
    assert found_ND.dtype == np.float32 and ENGINE.tokens_run - before == sum(map(len, texts))
    for text, found_D in zip(texts, found_ND, strict=True):
        row = np.zeros((1, 24), np.int32)
        row[0, : len(text)] = text
        mean_D = np.asarray(_apply(CONFIG, PARAMS, row).hidden_BTD[0, : len(text)]).mean(0)
        np.testing.assert_allclose(found_D, mean_D / np.linalg.norm(mean_D), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found_ND, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(Engine(CONFIG, PARAMS, TOKENIZER, 1).embed(texts[1:3]), found_ND[1:3], atol=1e-5)
    assert ENGINE.embed([]).shape == (0, 16)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(UserError, match="text 1 is empty"):
        ENGINE.rolling([[1], []])
    with pytest.raises(UserError, match="a text of 25 tokens: the model reads 1 to 24"):
        ENGINE.embed([[1] * 25])
    with pytest.raises(UserError, match="a text of 0 tokens"):
        ENGINE.embed([[1], []])


def test_a_stream_counts_what_it_ran():
    before = ENGINE.tokens_run
    list(ENGINE.stream(GenerateRequest((1, 7, 9), Sampling(6))))
    assert ENGINE.tokens_run - before == 3 + len(ENGINE.generate([GenerateRequest((1, 7, 9), Sampling(6))])[0].tokens)


def largest(jaxpr) -> int:
    """The number of entries of the largest array that a program makes anywhere inside it."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [var.aval.size for var in equation.outvars if hasattr(var.aval, "size")]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            sizes += [largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def test_logits_of_whole_prompts_do_not_exist():
    """Those of a few rows' options at most: far fewer than of a batch of prompts, or of options."""
    B, T, many, U, V = 64, 64, 2, 32, 4096
    config = dataclasses.replace(CONFIG, vocab_size=V, max_len=128, width=4, num_heads=1, head_dim=4, mlp_dim=4)
    params = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    tokens_BT, one_B = jnp.zeros((B, T), jnp.int32), jnp.ones(B, jnp.int32)
    options_OBU, sizes_OB = jnp.zeros((many, B, U), jnp.int32), jnp.full((many, B), U)

    def after(params):
        return scoring._after(config, params, tokens_BT, one_B, options_OBU, sizes_OB, many)

    def last(params):
        return scoring._last(config, params, tokens_BT, one_B + U, options_OBU[0], one_B)

    for program in (after, last):
        most = largest(jax.make_jaxpr(program)(params).jaxpr)
        assert most >= B * V or program is last
        assert most <= scoring._LOGITS * V < B * U * V / 8


def test_embeddings_and_heads_are_requests_too():
    """Each of its own adapter; a number is the shortest that is the same in float32."""
    lora = add_lora(PARAMS, jax.random.key(1), rank=2)
    lora = {path: leaf + (path.endswith("lora_b") and 0.5) for path, leaf in lora.items()}
    some = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
    name = some.attach(PARAMS | lora)
    plain, adapted = (EmbedRequest((1, 2, 3), adapter) for adapter in ("", name))
    found: Any = dict(some.answers([plain, adapted, plain]))
    assert found[0] == found[2] != found[1]
    np.testing.assert_array_equal(np.float32(found[0].values), some.embed([(1, 2, 3)])[0])
    np.testing.assert_array_equal(np.float32(found[1].values), some.embed([(1, 2, 3)], name)[0])
    assert max(len(str(value)) for value in found[0].values) < 16
    with pytest.raises(UserError, match="no head"):
        some.check(HeadRequest((1,)))
    config, params = add_head(CONFIG, PARAMS, ("no", "yes"), jax.random.key(1))
    headed = Engine(config, params, TOKENIZER)
    name = headed.attach({**params, "score/kernel": 2 * params["score/kernel"]})
    read: Any = dict(headed.answers([HeadRequest((4, 5)), HeadRequest((4, 5), name)]))
    np.testing.assert_allclose(np.multiply(2, read[0].values), read[1].values, rtol=1e-5)
