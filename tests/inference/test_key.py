"""The key: everything that can change an answer changes it, nothing else does."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.inference.key import prediction_key
from limbeck.inference.requests import GenerateRequest, Sampling, ScoreRequest

CONTEXT = {"weights": "aa11", "tokenizer": "bb22", "dtype": "float32"}
GENERATE = GenerateRequest(prompt=(5, 6, 7), sampling=Sampling(temperature=0.5), stop=("\n", "ab"), sample=1)
SCORE = ScoreRequest(prompt=(5, 6, 7), options=((8,), (9, 10)))


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


@pytest.mark.parametrize("request_", [GENERATE, SCORE], ids=["generate", "score"])
def test_every_field_changes_the_key(request_):
    requests = {request_, *another(request_)}
    assert len({prediction_key(request, **CONTEXT) for request in requests}) == len(requests)
    for field in dataclasses.fields(request_):
        assert len({getattr(request, field.name) for request in requests}) > 1


@pytest.mark.parametrize("name", CONTEXT)
def test_what_answers_changes_the_key(name):
    changed = CONTEXT | {name: CONTEXT[name] + "x"}
    assert prediction_key(GENERATE, **changed) != prediction_key(GENERATE, **CONTEXT)


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


def test_the_key_stays_what_it_was():
    """Stores on disk hold these keys: a change of the encoding, even a new field, must be meant."""
    key = prediction_key(GENERATE, **CONTEXT)
    assert key == "ac4037d45620c032169a51b3a4faa329e0908e316056d02619fb0222e30dfa1c"
