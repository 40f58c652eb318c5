"""A rationale is a second target under a marker, by its weight."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from limbeck.distill.rows.rationales import rationale_examples, written_rationales
from limbeck.inference.requests import Generation
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template
from limbeck.train.data import pack
from limbeck.train.examples import completions
from limbeck.train.loss import token_loss

TOKENIZER = byte_tokenizer()
RECORDS = [
    {"id": "1", "input": "fig", "output": "syconium", "why": "a hollow stem holds its flowers"},
    {"id": "2", "input": "انجیر", "output": "سیکون", "why": " گل‌ها درون میوه‌اند "},
    {"id": "3", "input": "plum", "output": "drupe", "why": " "},
    {"id": "4", "input": "pear", "output": "pome"},
]
TASK = Task("fruit", {"train": tuple(RECORDS[:2]), "test": tuple(RECORDS[2:])}, Template(), None)


def test_the_marker_is_in_the_prompt_and_the_rationale_weighs():
    examples = rationale_examples(TASK, RECORDS, TOKENIZER, "why", 0.5)
    assert len(examples) == 2 and [each.name for each in examples] == [f"{TASK.place(r)}, why" for r in RECORDS[:2]]
    for (ids, weights, _), (prompt, target) in zip(
        examples,
        [
            ("Explain: fig:", " a hollow stem holds its flowers\n"),
            ("Explain: انجیر:", " گل‌ها درون میوه‌اند\n"),
        ],
        strict=True,
    ):
        counted = weights > 0
        assert (ids.dtype, weights.dtype) == (np.int32, np.float32) and set(weights.tolist()) == {0.0, 0.5}
        assert ids[~counted].tolist() == TOKENIZER.prompt(prompt)
        assert TOKENIZER.decode(ids[counted].tolist()) == target and counted[-1]
    other = rationale_examples(TASK, RECORDS, TOKENIZER, "why", prompt="چرا؟ ")
    assert TOKENIZER.decode(other[0].ids.tolist()).startswith("چرا؟ fig: a hollow")
    assert set(other[0].counts.tolist()) == {0.0, 1.0}


def test_the_loss_is_that_of_answers_and_rationales_by_their_weights():
    config = ModelConfig(TOKENIZER.vocab_size, 16, 1, 2, 1, 8, 16, max_len=96)
    params, loss_fn = init(config, jax.random.key(0)), jax.jit(token_loss(config))
    answers = completions(TASK, RECORDS[:2], TOKENIZER)
    rationales = rationale_examples(TASK, RECORDS, TOKENIZER, "why", 0.25)
    plain = rationale_examples(TASK, RECORDS, TOKENIZER, "why", 1.0)

    def loss(examples):
        rows = pack(examples, 96).groups[0]
        batch = {name: np.pad(array, [(0, 3 - len(array)), (0, 0)]) for name, array in rows.items()}
        value, metrics = loss_fn(params, batch, jax.random.key(0))
        return float(value), float(metrics["weight"])

    (answer, n), (why, m), (both, weight) = loss(answers), loss(plain), loss([*answers, *rationales])
    assert weight == n + 0.25 * m and abs(why - answer) > 1e-3
    assert both == pytest.approx((n * answer + 0.25 * m * why) / (n + 0.25 * m), rel=1e-5)


@pytest.mark.parametrize(("settings", "words"), [
    ({"field": "wy"}, "no record has a field 'wy' among id, input, output, why; did you mean 'why'"),
    ({"weight": 0.0}, "weight=0.0 of the rationales: must be more than 0"),
    ({"prompt": ""}, "the marker before a rationale is empty"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        rationale_examples(TASK, RECORDS, TOKENIZER, **{"field": "why", **settings})
    assert "\n" not in str(error.value)


def test_the_teacher_writes_after_query_and_answer(tmp_path):
    said = {
        "fig": (" it is hollow ", True),
        "انجیر": (" ", True),
        "plum": ("one stone and", False),
        "pear": (" core", True),
    }
    asked = []

    def answers(requests, only):
        for index in only:
            asked.append(requests[index])
            text, ended = said[TOKENIZER.decode(requests[index].prompt).partition(":")[0]]
            yield index, Generation(text, (1,), -1.0, ended)

    teacher = SimpleNamespace(
        weights_digest="w",
        tokenizer_digest="t",
        dtype="float32",
        tokenizer=TOKENIZER,
        answers=answers,
        check=lambda request: None,
    )
    for _ in range(2):
        found = written_rationales(TASK, teacher, RECORDS, tmp_path / "why.db", field="reason")  # pyright: ignore
        assert found == [{**RECORDS[0], "reason": "it is hollow"}, {**RECORDS[3], "reason": "core"}]
    assert sorted(TOKENIZER.decode(request.prompt) for request in asked) == sorted(
        f"{record['input']}: {record['output']} because" for record in RECORDS
    )
    assert {(request.stop, request.sampling.temperature) for request in asked} == {(("\n",), 0.0)}
    assert len(rationale_examples(TASK, found, TOKENIZER, "reason")) == 2
