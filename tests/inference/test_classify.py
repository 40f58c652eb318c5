"""Answers of a head: by text, not by batch; in the words of the task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limbeck.inference import classify as module
from limbeck.inference.classify import answer, score
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.rope import Rope
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import hidden, init
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

TOKENIZER = byte_tokenizer()
OPTIONS = ("no", "yes", "شاید")
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
    max_len=64, labels=OPTIONS,
)  # fmt: skip
PARAMS = init(CONFIG, jax.random.key(0))


def task_of(answers, kind, options, query="{input}:"):
    records = [{"id": str(i), "input": "word " * (i % 5) + "لیمو", "output": text} for i, text in enumerate(answers)]
    splits = {"train": tuple(records), "test": ({**records[0], "id": "t"},)}
    return Task("t", splits, Template(query), options, kind=kind)


def test_a_score_is_that_of_the_text_alone(monkeypatch):
    """One text at a time, without padding, through the network itself."""
    monkeypatch.setattr(module, "_TOKENS", 64)  # several batches of each length
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 200, n).tolist() for n in rng.integers(1, 64, 23)]
    scores_NC = score(CONFIG, PARAMS, texts)
    for text, got_C in zip(texts, scores_NC, strict=True):
        hidden_BTD, _ = hidden(CONFIG, PARAMS, jnp.asarray([text]))
        np.testing.assert_allclose(got_C, hidden_BTD[0, -1] @ PARAMS["score/kernel"], atol=2e-5)


def test_a_score_is_that_of_the_text_alone_where_turning_depends_on_its_length():
    """A text of 18 goes in a row of 32, and longrope turns texts of more than 20 otherwise."""
    rope = Rope(scaling="longrope", original_max_len=20, short_factor=(1.0,) * 4, long_factor=(8.0,) * 4)
    config = dataclasses.replace(CONFIG, rope=rope)
    texts = [np.random.default_rng(n).integers(1, 200, n).tolist() for n in (18, 21, 31, 16)]
    for text, got_C in zip(texts, score(config, PARAMS, texts), strict=True):
        hidden_BTD, _ = hidden(config, PARAMS, jnp.asarray([text]))
        np.testing.assert_allclose(got_C, hidden_BTD[0, -1] @ PARAMS["score/kernel"], atol=2e-5)


def test_each_kind_of_task_is_answered_in_its_words():
    one = task_of(OPTIONS * 2, "classification", OPTIONS)
    records = one.splits["train"]
    found = answer(one, CONFIG, PARAMS, TOKENIZER, records)
    assert found.answers == [OPTIONS[i] for i in found.scores_NC.argmax(-1)]
    odds_NC = np.asarray(jax.nn.softmax(found.scores_NC))
    np.testing.assert_allclose(found.confidence_N, odds_NC.max(-1), rtol=1e-5)

    many = task_of(["no, شاید", "none", "yes"], "multi_label", OPTIONS)
    found = answer(many, CONFIG, PARAMS, TOKENIZER, many.splits["train"])
    for said, scores_C in zip(found.answers, found.scores_NC, strict=True):
        assert said == (", ".join(o for o, s in zip(OPTIONS, scores_C, strict=True) if s > 0) or "none")
    assert ((found.confidence_N >= 0.5**3) & (found.confidence_N <= 1)).all()

    single = dataclasses.replace(CONFIG, labels=("output",))
    numbers = task_of(["0.5", "3", "-2"], "regression", None)
    found = answer(numbers, single, init(single, jax.random.key(0)), TOKENIZER, numbers.splits["train"])
    np.testing.assert_allclose([float(said) for said in found.answers], found.scores_NC[:, 0], rtol=1e-5)
    assert np.isnan(found.confidence_N).all()


def test_a_query_that_is_too_long_is_named():
    task = task_of(OPTIONS, "classification", OPTIONS, "{input} " + "x" * 70)
    with pytest.raises(UserError, match="record '0': .* tokens, and the model has 64 positions"):
        answer(task, CONFIG, PARAMS, TOKENIZER, task.splits["train"])
