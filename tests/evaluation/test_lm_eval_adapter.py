"""The adapter asks the engine for what lm-eval asks of it, and answers in its order."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_llama import CONFIG, TOKENIZER, instance, weights

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation, Sampling, Scores
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import apply

pytest.importorskip("lm_eval", reason="lm-eval comes with the [eval] extra")
from limbeck.evaluation.lm_eval_adapter import LimbeckLM, read_settings  # noqa: E402

PARAMS = weights(CONFIG, seed=0, spread=3)


class Scripted:
    """In an engine's place: it notes what it is asked and answers by a rule."""

    def __init__(self, written: tuple[int, ...], max_len: int) -> None:
        self.tokenizer, self.written = TOKENIZER, written
        self.config = dataclasses.replace(CONFIG, max_len=max_len)
        self.tokenizer_digest = TOKENIZER.digest
        self.asked: list[Any] = []

    def prefix(self) -> int:
        return 0

    def score(self, requests: list[Any]) -> list[Scores]:
        self.asked += requests
        return [
            Scores(
                tuple(-float(sum(request.prompt) + option[-1]) for option in request.options),
                tuple(map(len, request.options)),
                tuple(option[-1] % 2 == 0 for option in request.options),
            )
            for request in requests
        ]

    def generate(self, requests: list[Any]) -> list[Generation]:
        self.asked += requests
        return [Generation("", (*self.written, request.prompt[-1]), 0.0, False) for request in requests]


def scripted(*written: int, max_len: int = 32) -> tuple[LimbeckLM, Scripted]:
    engine = Scripted(written, max_len)
    return LimbeckLM(engine), engine  # type: ignore[arg-type]


def test_a_context_is_asked_once_with_all_its_continuations_and_answers_keep_the_order():
    model, engine = scripted()
    pairs = [("a", " b"), ("xyz", " d"), ("a", " c"), ("a", " b")]
    answers = model.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])
    ids = TOKENIZER.prompt
    assert sorted((request.prompt, request.options) for request in engine.asked) == [
        (tuple(ids("a")), (tuple(TOKENIZER.encode(" b")), tuple(TOKENIZER.encode(" c")))),
        (tuple(ids("xyz")), (tuple(TOKENIZER.encode(" d")),)),
    ]
    last = [TOKENIZER.encode(continuation)[-1] for _, continuation in pairs]
    expected = [(-float(sum(ids(text)) + end), end % 2 == 0) for (text, _), end in zip(pairs, last, strict=True)]
    assert answers == expected and {greedy for _, greedy in answers} == {True, False}


def test_what_is_too_long_loses_its_beginning_and_is_counted(caplog):
    even = {path: leaf if "/q/" not in path else 0 * leaf for path, leaf in PARAMS.items()}  # each token sees all alike
    model = LimbeckLM(Engine(CONFIG, even, TOKENIZER, 2))
    context = "a text that is a good deal longer than the model"
    answers = model.loglikelihood(
        [instance("loglikelihood", context, " is"), instance("loglikelihood", "short", " is")]
    )
    ids = TOKENIZER.prompt(f"{context} is")[-CONFIG.max_len - 1 :]

    def nats(read: list[int]) -> float:
        logits_TV = apply(CONFIG, even, jnp.asarray([read])).logits_BTV[0, -3:]
        return float(np.asarray(jax.nn.log_softmax(logits_TV))[range(3), ids[-3:]].sum())

    assert answers[0][0] == pytest.approx(nats(ids[:-1]), abs=1e-4)
    assert abs(nats(ids[:-1]) - nats(ids[1:-1])) > 0.01
    assert model.cut == 1 and "1 of 2 requests are longer than the model's 32 positions" in caplog.text


def test_generation_asks_for_what_the_task_wants():
    model, engine = scripted()
    long = "a text that is a good deal longer than the model"
    sampled = {"do_sample": True, "temperature": 0.5, "until": [], "max_gen_toks": 8}
    requests = [
        instance("generate_until", "a", {"until": ["\n", ""], "max_gen_toks": 4}),
        instance("generate_until", long, {"until": "b", "max_gen_toks": 20}),
        *[instance("generate_until", "a", dict(sampled)) for _ in range(2)],
    ]
    answers = model.generate_until(requests)
    assert answers == ["a", "l", "a", "a"]
    greedy = GenerateRequest(tuple(TOKENIZER.prompt("a")), Sampling(4), ("\n", "<eos>"))
    cut = GenerateRequest(tuple(TOKENIZER.prompt(long)[-12:]), Sampling(20), ("b", "<eos>"))
    drawn = GenerateRequest(tuple(TOKENIZER.prompt("a")), Sampling(8, 0.5, top_k=50), ("<eos>",))
    assert set(engine.asked) == {greedy, cut, drawn, dataclasses.replace(drawn, sample=1)}
    assert model.cut == 1
    with pytest.raises(UserError, match="32 new tokens and the model has 32 positions: set max_gen_toks"):
        model.generate_until([instance("generate_until", "a", {"max_gen_toks": 32})])


def test_text_ends_at_the_stop_strings_and_at_special_tokens_that_spell_one():
    model, _ = scripted(*TOKENIZER.encode("one two"), TOKENIZER.pad_id, *TOKENIZER.encode("three"))

    def text(*until: str) -> str:
        return model.generate_until([instance("generate_until", "x", {"until": list(until), "max_gen_toks": 4})])[0]

    assert text() == "one twothreex"  # special tokens vanish
    assert text("w", "e") == text("e", "w") == "on"
    assert text("<pad>") == text("<pad>", "hr") == "one two"
    assert text("hr") == "one twot"
    assert (text("wot", "two"), text("two", "wot")) == ("one t", "one ")  # in turn, as lm-eval cuts


@pytest.mark.parametrize(
    ("settings", "sampling", "stop"),
    [
        ({}, Sampling(256), ()),
        ({"until": "\n\n"}, Sampling(256), ("\n\n",)),
        ({"until": ["a", "b"], "max_new_tokens": 5, "num_beams": 1}, Sampling(5), ("a", "b")),
        ({"until": [], "temperature": 0.0, "do_sample": False, "max_gen_toks": 9}, Sampling(9), ()),
        ({"do_sample": False, "temperature": 0.7}, Sampling(256), ()),
        ({"temperature": 0.7, "top_p": 0.9}, Sampling(256, 0.7, 50, 0.9), ()),
        ({"do_sample": True, "temperature": 1, "top_k": 3, "min_p": 0.1}, Sampling(256, 1.0, 3, min_p=0.1), ()),
    ],
)
def test_settings_mean_what_they_mean_to_lm_eval(settings, sampling, stop):
    before = json.dumps(settings)
    assert read_settings(settings, "</s>") == (sampling, (*stop, "</s>"))
    assert read_settings(settings, "") == (sampling, stop)
    assert json.dumps(settings) == before


@pytest.mark.parametrize("more", [{"num_beams": 4}, {"max_length": 30}, {"repetition_penalty": 1.2}])
def test_settings_that_the_engine_does_not_know_are_refused(more):
    [name] = more
    with pytest.raises(UserError, match=f"generation_kwargs: {name}={more[name]} is not known here"):
        read_settings({"until": [], **more}, "</s>")


TURNS = "{% for m in messages %}<bos>{{ m['role'] }}:{{ m['content'] TRIM }}<eos>{% endfor %}"
ASK = "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
REFUSE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize(("trim", "kept"), [("", "is  "), ("| trim", "is")])
def test_conversations_by_the_template(trim: str, kept: str):
    model, engine = scripted(max_len=256)
    engine.tokenizer = byte_tokenizer()
    engine.tokenizer.chat_template = TURNS.replace("TRIM", trim) + ASK
    asked = "<bos>system:Be short.<eos><bos>user:2 + 2?<eos><bos>assistant:"
    assert model.apply_chat_template(CHAT) == asked
    begun = [*CHAT, {"role": "assistant", "content": "It is  "}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == f"{asked}It {kept}"
    model.loglikelihood([instance("loglikelihood", asked, "4")])
    [request] = engine.asked
    assert request.prompt == tuple(engine.tokenizer.parse(asked).ids)  # the template's BOS, and no other
    assert request.prompt.count(TOKENIZER.bos_id) == 3


def test_a_template_that_refuses_system_messages_gets_none(caplog):
    model, engine = scripted()
    engine.tokenizer = byte_tokenizer()
    with pytest.raises(UserError, match="no chat template"):
        model.apply_chat_template(CHAT)
    engine.tokenizer.chat_template = REFUSE + TURNS.replace("TRIM", "") + ASK
    assert model.apply_chat_template(CHAT) == "<bos>user:2 + 2?<eos><bos>assistant:"
    assert "refuses system messages" in caplog.text
    engine.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match="never"):
        model.apply_chat_template(CHAT[1:])
