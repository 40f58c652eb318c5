"""Rows of one cache that are filled again: out of memory, and keys and values in eight bits."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from limbeck.inference import writing
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=64
)
PARAMS = {path: 3 * leaf for path, leaf in init(CONFIG, jax.random.key(0)).items()}
REQUESTS = [GenerateRequest((1 + n, 2, 3), Sampling(1 + n % 6, temperature=0.7)) for n in range(12)]


def test_out_of_memory_goes_on_with_half_the_rows(monkeypatch, capsys):
    right = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=2).generate(REQUESTS)
    steps = 0

    def scarce(config, params, state, *rest):
        nonlocal steps
        steps += 1
        if len(state.limit_B) > 2 and steps > 2:  # some answers are there by then
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
        return advance(config, params, state, *rest)

    advance = writing.advance
    monkeypatch.setattr(writing, "advance", scarce)
    found: Any = list(Engine(CONFIG, PARAMS, TOKENIZER, batch_size=8).answers(REQUESTS))
    assert sorted(i for i, _ in found) == list(range(12))  # each once
    for i, result in found:
        assert result.text == right[i].text and result.logprob == pytest.approx(right[i].logprob, abs=1e-5)
    said = capsys.readouterr().err
    assert "out of memory: 4 answers" in said and "out of memory: 2 answers" in said


def test_not_even_one_row_fits(monkeypatch):
    def none(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(writing, "advance", none)
    with pytest.raises(UserError, match="a text of up to 64 tokens, even alone"):
        Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4).generate(REQUESTS)

    monkeypatch.setattr(writing, "write_whole", none)
    with pytest.raises(UserError, match="a text of up to 64 tokens, even alone"):
        Engine(CONFIG, PARAMS, TOKENIZER, batch_size=1).generate(REQUESTS)

    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(writing, "advance", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4).generate(REQUESTS)


@pytest.mark.parametrize("scan", [False, True])
def test_a_cache_of_eight_bits_writes_nearly_the_same(scan):
    config = dataclasses.replace(CONFIG, scan=scan)
    plain, coded = (Engine(config, PARAMS, TOKENIZER, batch_size=4, coded_cache=coded) for coded in (False, True))
    assert plain.dtype == "float32" and coded.dtype == "float32, cache int8"
    requests = [dataclasses.replace(request, sampling=Sampling(4)) for request in REQUESTS]
    pairs = list(zip(plain.generate(requests), coded.generate(requests), strict=True))
    assert any(a.logprob != b.logprob for a, b in pairs)  # it is another cache
    same = [(a, b) for a, b in pairs if a.tokens == b.tokens]
    assert len(same) > 8
    # The weights are three times as large as a model's, and so is what eight bits make of it.
    np.testing.assert_allclose([b.logprob for _, b in same], [a.logprob for a, _ in same], atol=0.1)


@pytest.mark.parametrize("coded", [False, True])
def test_one_row_is_one_program_that_writes_the_same(coded, monkeypatch):
    """A single request waits for nothing, and is asked for once: the latency of live traffic hangs on it."""
    several = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4, coded_cache=coded).generate(REQUESTS)
    monkeypatch.setattr(writing, "fill", None)
    monkeypatch.setattr(writing, "advance", None)
    alone = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=1, coded_cache=coded).generate(REQUESTS)
    for one, other in zip(alone, several, strict=True):
        assert one.tokens == other.tokens and one.logprob == pytest.approx(other.logprob, abs=1e-5)
