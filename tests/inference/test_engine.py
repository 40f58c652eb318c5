"""The engine answers as the model does, whatever else is in the batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.inference import engine as engine_module
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling, ScoreRequest
from limbeck.model import decode
from limbeck.model.config import ModelConfig
from limbeck.model.decode import Generated
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import apply, init
from limbeck.train.adapters import add_lora
from limbeck.train.soft_prompts import add_prefix

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=64
)
PARAMS = {path: 3 * leaf for path, leaf in init(CONFIG, jax.random.key(0)).items()}
ENGINE = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
TEXTS = ["plum", "a rather long prompt, longer than sixteen", "گلابی", "x", "lemon:", "pear"]


def prompt(text: str) -> tuple[int, ...]:
    return (TOKENIZER.bos_id, *TOKENIZER.encode(text))


def greedy_by_hand(ids: tuple[int, ...], steps: int) -> tuple[int, ...]:
    row = list(ids)
    for _ in range(steps):
        row.append(int(apply(CONFIG, PARAMS, jnp.asarray([row])).logits_BTV[0, -1].argmax()))
        if row[-1] == TOKENIZER.eos_id:
            break
    return tuple(row[len(ids) :])


def test_generation_equals_argmax_in_the_order_of_the_requests():
    answers = ENGINE.generate([GenerateRequest(prompt(text), Sampling(5)) for text in TEXTS])
    for text, answer in zip(TEXTS, answers, strict=True):
        assert answer.tokens == greedy_by_hand(prompt(text), 5)
        assert answer.text == TOKENIZER.decode(answer.tokens)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_size_and_neighbours_change_nothing(temperature):
    requests = [GenerateRequest(prompt(text), Sampling(6, temperature, seed=3)) for text in TEXTS]
    together = ENGINE.generate(requests)
    alone = [Engine(CONFIG, PARAMS, TOKENIZER, batch_size=1).generate([request])[0] for request in requests]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    np.testing.assert_allclose([a.logprob for a in together], [a.logprob for a in alone], atol=1e-4)


def test_samples_of_one_prompt_differ_and_repeat():
    requests = [GenerateRequest(prompt("plum"), Sampling(12, 1.0), sample=i) for i in range(3)]
    first, again = ENGINE.generate(requests), ENGINE.generate(list(reversed(requests)))[::-1]
    assert first == again
    assert len({answer.tokens for answer in first}) == 3


def test_text_ends_before_the_first_stop_string():
    [free] = ENGINE.generate([GenerateRequest(prompt("plum"), Sampling(12))])
    character = free.text[3]
    spanning = free.text[4:6]
    for stop in (character, spanning):
        [answer] = ENGINE.generate([GenerateRequest(prompt("plum"), Sampling(12), (stop, "never"))])
        assert answer.stopped
        assert answer.text == free.text[: free.text.index(stop)]
        assert stop in TOKENIZER.decode(answer.tokens)
        assert free.tokens[: len(answer.tokens)] == answer.tokens


def test_scores_are_the_sum_of_log_probabilities():
    options = tuple(tuple(TOKENIZER.encode(text)) for text in (" pome", " a hesperidium", "s"))
    requests = [ScoreRequest(prompt(text), options) for text in TEXTS]
    for request, scores in zip(requests, ENGINE.score(requests), strict=True):
        assert scores.lengths == tuple(len(option) for option in options)
        for option, logprob in zip(options, scores.logprobs, strict=True):
            ids = jnp.asarray([[*request.prompt, *option]])
            logprobs_TV = jax.nn.log_softmax(apply(CONFIG, PARAMS, ids).logits_BTV[0])
            start = len(request.prompt) - 1
            expected = sum(float(logprobs_TV[start + i, token]) for i, token in enumerate(option))
            assert logprob == pytest.approx(expected, abs=1e-3)


def test_few_programs_serve_any_mixture():
    """One program fills rows for a bucket of prompts, one writes for a size of rows."""
    programs: Any = decode.fill, decode.advance
    before = [program._cache_size() for program in programs]
    config = dataclasses.replace(CONFIG, norm_eps=2e-5)  # so that no program is there yet
    engine = Engine(config, PARAMS, TOKENIZER, batch_size=4)
    requests = [GenerateRequest((n, *(1,) * (n - 1)), Sampling(1 + n % 16)) for n in range(1, 40)]
    engine.generate(requests)
    compiled = [program._cache_size() - n for program, n in zip(programs, before, strict=True)]
    assert compiled == [3, 2]  # prompts of up to 16, 32 and 64 tokens, in rows of 64 and 256 places
    engine.generate(requests[::-2] + requests[5:9])
    compiled = [program._cache_size() - n for program, n in zip(programs, before, strict=True)]
    assert compiled == [3, 2]


def test_rows_are_filled_again_in_flight():
    """Answers of uneven lengths take about as many steps as they have tokens, and are what each is alone."""
    requests = [GenerateRequest((1 + n, 2), Sampling(16 if n % 8 == 0 else 1, seed=n)) for n in range(32)]
    engine = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
    done = list(engine.answers(requests))
    assert sorted(i for i, _ in done) == list(range(32))
    order = [i for i, _ in done]
    assert order.index(8) > order.index(7) and order.index(1) < order.index(0)  # short ones do not wait for long ones
    alone = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
    for i, result in done[::5]:
        assert alone.generate([requests[i]]) == [result]


def test_some_of_a_job_are_answered_as_among_all():
    """A job that goes on gives, bit for bit, what it would have given at once: what is shared hangs on all of it."""
    start = tuple(range(1, 41))
    requests = [GenerateRequest((*start, n), Sampling(4, temperature=1.0)) for n in range(1, 7)]
    requests += [ScoreRequest((*start, n), ((3,), (4, 5))) for n in range(1, 7)]
    engine = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
    whole = dict(engine.answers(requests))
    part = dict(engine.answers(requests, only=[1, 8]))
    assert part == {i: whole[i] for i in (1, 8)}
    before = engine.tokens_run
    assert not list(engine.answers(requests, only=[])) and engine.tokens_run == before


@pytest.mark.parametrize(
    "request_, words",
    [
        (GenerateRequest((1,) * 60, Sampling(5)), "60 tokens and 5 new ones are more than the model's 64"),
        (GenerateRequest((), Sampling(5)), "prompt is empty"),
        (ScoreRequest((1, 2), ()), "one or more options"),
        (ScoreRequest((1, 2), ((3,), ())), "none of them empty"),
        (ScoreRequest((1,) * 60, ((3,) * 6,)), "64 positions"),
    ],
)
def test_what_cannot_be_answered_is_refused(request_, words):
    with pytest.raises(UserError, match=words):
        ENGINE.generate([request_]) if isinstance(request_, GenerateRequest) else ENGINE.score([request_])


def test_the_digest_follows_the_weights():
    other = Engine(CONFIG, {**PARAMS, "norm/scale": PARAMS["norm/scale"] + 1e-6}, TOKENIZER)
    assert ENGINE.weights_digest == Engine(CONFIG, dict(PARAMS), TOKENIZER).weights_digest != other.weights_digest


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [(), ("e",), ("zzz",), ("\ufffd\ufffd",)])
def test_a_stream_is_what_generate_gives_and_takes_nothing_back(temperature, stop):
    for text in TEXTS[:3]:
        request = GenerateRequest(prompt(text), Sampling(14, temperature, seed=5), stop)
        pieces = list(ENGINE.stream(request))
        assert "".join(pieces) == ENGINE.generate([request])[0].text
        assert all(pieces)


def test_a_stream_holds_back_half_a_character_and_half_a_stop_string(monkeypatch):
    ids = TOKENIZER.encode("ab گلابی stXstop tail")

    def written(*args):
        for n in range(1, len(ids) + 1):
            tokens_BT = np.zeros((1, 64), np.int32)
            tokens_BT[0, :n] = ids[:n]
            arrays = (tokens_BT, np.zeros((1, 64)), np.array([n]), np.array([False]))
            yield Generated(*map(jnp.asarray, arrays))

    monkeypatch.setattr(engine_module, "stream", written)
    pieces = list(ENGINE.stream(GenerateRequest(prompt("x"), Sampling(len(ids)), ("stop",))))
    assert pieces == ["a", "b", " ", *"گلابی", " ", "stX"]


def test_adapters_over_one_base_are_chosen_per_request():
    """Low-rank leaves and a prefix, in one call with the base: each answers as its own engine would, nothing copied."""
    low_rank = add_lora(PARAMS, jax.random.key(1), rank=2)
    low_rank = {path: leaf + (path.endswith("lora_b") and 0.5) for path, leaf in low_rank.items()} | PARAMS
    prefixed = add_prefix(CONFIG, PARAMS, jax.random.key(2), length=3, text_ids=prompt("sour"))
    engine = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
    names = ["", engine.attach(low_rank), engine.attach(prefixed)]
    assert len(set(names)) == 3 and names[1] == Engine(CONFIG, PARAMS, TOKENIZER).attach(low_rank)
    for name in names:
        assert all(engine._model(name)[path] is leaf for path, leaf in PARAMS.items())
    generates = [GenerateRequest(prompt(text), Sampling(5, 1.0), adapter=name) for text in TEXTS[:4] for name in names]
    options = (prompt("a"), prompt("bc"))
    scores = [ScoreRequest(prompt(text), options, adapter=name) for text in TEXTS[:4] for name in names]
    own = [Engine(CONFIG, params, TOKENIZER, batch_size=4) for params in (PARAMS, low_rank, prefixed)]
    generated, scored = engine.generate(generates), engine.score(scores)
    for index, (request, asked) in enumerate(zip(generates, scores, strict=True)):
        alone = own[index % 3]
        assert generated[index].tokens == alone.generate([dataclasses.replace(request, adapter="")])[0].tokens
        expected = alone.score([dataclasses.replace(asked, adapter="")])[0].logprobs
        np.testing.assert_allclose(scored[index].logprobs, expected, atol=1e-4)
    assert "".join(engine.stream(generates[1])) == generated[1].text
    assert len({scored[i].logprobs for i in range(3)}) == 3
    with pytest.raises(UserError, match="no adapter 'x' is attached"):
        engine.generate([GenerateRequest(prompt("plum"), adapter="x")])
    with pytest.raises(UserError, match="3 virtual"):
        engine.generate([GenerateRequest(prompt("p" * 57), Sampling(5), adapter=names[2])])
