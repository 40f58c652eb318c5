"""The key: everything that can change an answer changes it, nothing else does."""

import dataclasses
from typing import get_args

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.inference import key as key_module
from limbeck.inference.key import prediction_key
from limbeck.inference.requests import EmbedRequest, GenerateRequest, HeadRequest, Request, Sampling, ScoreRequest
from limbeck.model.config import ModelConfig
from limbeck.model.params import digest
from limbeck.model.quantize import dequantized, quantize
from limbeck.model.transformer import init

CONTEXT = {"weights": "aa11", "tokenizer": "bb22", "dtype": "float32"}
GENERATE = GenerateRequest(prompt=(5, 6, 7), sampling=Sampling(temperature=0.5), stop=("\n", "ab"), sample=1)
SCORE = ScoreRequest(prompt=(5, 6, 7), options=((8,), (9, 10)))
EMBED = EmbedRequest(prompt=(5, 6, 7))
HEAD = HeadRequest(prompt=(5, 6, 7))
KINDS = {"generate": GENERATE, "score": SCORE, "embed": EMBED, "head": HEAD}


def another(value):
    """Values of the same type that differ, one small change each."""
    if isinstance(value, tuple):
        yield value[:-1]
        yield value[::-1]
        yield (*value, value[0])
        for changed in another(value[0]):
            yield (changed, *value[1:])
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            for changed in another(getattr(value, field.name)):
                yield type(value)(**(vars(value) | {field.name: changed}))
    elif isinstance(value, str):
        yield value + "x"
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float):
        yield value + 0.125
    else:
        raise TypeError(f"teach this test to change {value!r}")


def test_every_kind_of_request_is_tested_here():
    assert {type(request) for request in KINDS.values()} == set(get_args(Request))


@pytest.mark.parametrize("request_", KINDS.values(), ids=KINDS)
def test_every_field_changes_the_key(request_):
    requests = {request_, *another(request_)}
    assert len({prediction_key(request, **CONTEXT) for request in requests}) == len(requests)
    for field in dataclasses.fields(request_):
        assert len({getattr(request, field.name) for request in requests}) > 1


@pytest.mark.parametrize("request_", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", CONTEXT)
def test_what_answers_changes_the_key(request_, name):
    changed = CONTEXT | {name: CONTEXT[name] + "x"}
    assert prediction_key(request_, **changed) != prediction_key(request_, **CONTEXT)


def test_the_schema_changes_the_key(monkeypatch):
    before = prediction_key(GENERATE, **CONTEXT)
    monkeypatch.setattr(key_module, "SCHEMA", key_module.SCHEMA + 1)
    assert prediction_key(GENERATE, **CONTEXT) != before


def test_the_kind_is_part_of_the_key():
    prompt = (5, 6, 7)
    requests = [GenerateRequest(prompt), ScoreRequest(prompt, ()), EmbedRequest(prompt), HeadRequest(prompt)]
    assert len({prediction_key(request, **CONTEXT) for request in requests}) == len(requests)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_weights_have_another_key(kind):
    config = ModelConfig(
        vocab_size=16, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=64, max_len=8
    )
    params = init(config, jax.random.key(0))
    few_bits = quantize(params, kind)
    assert digest(few_bits) != digest(params)
    again = dequantized(few_bits)  # close to what they were is not what they were
    assert digest(again) not in (digest(few_bits), digest(params))
    keys = {prediction_key(GENERATE, **CONTEXT | {"weights": digest(each)}) for each in (params, few_bits, again)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (dataclasses.replace(GENERATE, stop=("ab", "c")), dataclasses.replace(GENERATE, stop=("a", "bc"))),
        (dataclasses.replace(GENERATE, stop=("as", "a")), dataclasses.replace(GENERATE, stop=("a", "sa"))),
        (dataclasses.replace(GENERATE, stop=("abc",)), dataclasses.replace(GENERATE, stop=("ab", "c"))),
        (dataclasses.replace(GENERATE, stop=()), dataclasses.replace(GENERATE, stop=("",))),
        (ScoreRequest((1, 2), ((3,),)), ScoreRequest((1,), ((2,), (3,)))),
        (ScoreRequest((1,), ((2, 3),)), ScoreRequest((1,), ((2,), (3,)))),
        (ScoreRequest((1,), ((), (2,))), ScoreRequest((1,), ((2,), ()))),
        (ScoreRequest((1,), ()), ScoreRequest((1,), ((),))),
        (ScoreRequest((1,), ()), GenerateRequest((1,))),
        (EmbedRequest((1,), "a"), HeadRequest((1,), "a")),
        (EmbedRequest((1,), "12"), EmbedRequest((1, 2), "1")),
        (dataclasses.replace(GENERATE, stop=(), adapter="ab"), dataclasses.replace(GENERATE, stop=("ab",), adapter="")),
        (GenerateRequest((1,), sample=2), GenerateRequest((1,), Sampling(seed=2))),
    ],
)
def test_fields_do_not_run_into_each_other(left, right):
    assert prediction_key(left, **CONTEXT) != prediction_key(right, **CONTEXT)


def test_digests_do_not_run_into_each_other():
    left = prediction_key(SCORE, weights="as", tokenizer="b", dtype="d")
    assert left != prediction_key(SCORE, weights="a", tokenizer="sb", dtype="d")
    assert left != prediction_key(SCORE, weights="b", tokenizer="as", dtype="d")


IDS = st.lists(st.integers(0, 2), max_size=3).map(tuple)
REQUESTS = st.one_of(
    st.builds(ScoreRequest, IDS, st.lists(IDS, max_size=3).map(tuple)),
    st.builds(GenerateRequest, IDS, stop=st.lists(st.text("as\0", max_size=2), max_size=3).map(tuple)),
    st.builds(EmbedRequest, IDS, st.text("as\0", max_size=2)),
    st.builds(HeadRequest, IDS, st.text("as\0", max_size=2)),
)


@given(REQUESTS, REQUESTS)
def test_keys_are_equal_exactly_where_requests_are(left, right):
    same = prediction_key(left, **CONTEXT) == prediction_key(right, **CONTEXT)
    assert same == (left == right)


def test_number_types_do_not_matter():
    ids = tuple(np.array([5, 6, 7], np.int32))
    sampling = Sampling(temperature=np.float64(0.5), top_p=1)
    other = dataclasses.replace(GENERATE, prompt=ids, sampling=sampling)
    assert prediction_key(other, **CONTEXT) == prediction_key(GENERATE, **CONTEXT)


def test_any_text_has_a_key():
    stops = ["", "\0", "سیب\u200c", "\ud800", "🍎"]
    requests = [dataclasses.replace(GENERATE, stop=(stop,)) for stop in stops]
    assert len({prediction_key(request, **CONTEXT) for request in requests}) == len(stops)


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (GENERATE, "ac4037d45620c032169a51b3a4faa329e0908e316056d02619fb0222e30dfa1c"),
        (SCORE, "aa668ce2b98c509225d2b8e58fd26e5e6c4a93830502f414482d33bc3355d032"),
        (EMBED, "faef09772fb3cdd6ad85c5e252118ac1b49574a806eeff0ef5f8e04b50e467d1"),
        (HEAD, "874b97e00e0745406ff684514afc5585faeb213f6229bb398acbe2eac0d04714"),
    ],
    ids=KINDS,
)
def test_the_key_stays_what_it_was(request_, key):
    """Stores on disk hold these keys: a change of the encoding, even a new field, must be meant."""
    assert prediction_key(request_, **CONTEXT) == key
