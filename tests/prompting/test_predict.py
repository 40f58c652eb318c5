"""Answers to a task's records: scored or generated, one BOS, whole demonstrations or none."""

import jax
import pytest

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.prompting.predict import answer_tokens, make_request, make_requests, predict, query_text, read_answer
from limbeck.tasks.task import Task, Template

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=64
)
ENGINE = Engine(CONFIG, init(CONFIG, jax.random.key(0)), TOKENIZER, batch_size=4)
FRUITS = ("plum", "drupe"), ("pear", "pome"), ("lemon", "hesperidium"), ("fig", "syconium")


def task(options=None, pairs=FRUITS) -> Task:
    records = [{"id": str(i), "input": key, "output": value} for i, (key, value) in enumerate(pairs)]
    return Task("fruits", {"train": tuple(records[:3]), "test": tuple(records[3:])}, Template(), options)


def test_an_open_answer_is_generated_up_to_the_separator():
    open_task = task()
    train = open_task.splits["train"]
    request = make_request(open_task, TOKENIZER, train[2], train[:2], 12)
    assert isinstance(request, GenerateRequest) and request.stop == ("\n",)
    assert request.prompt.count(TOKENIZER.bos_id) == 1 and request.prompt[0] == TOKENIZER.bos_id
    assert TOKENIZER.decode(request.prompt) == "plum: drupe\npear: pome\nlemon:"
    assert read_answer(open_task, Generation(" pome ", (), 0.0, True)) == "pome"
    assert answer_tokens(open_task, TOKENIZER) == len(" hesperidium\n") + 1
    assert query_text(open_task, train[2]) == "lemon"


def test_a_closed_answer_is_the_likeliest_option():
    closed = task(("drupe", "pome", "hesperidium", "syconium"))
    request = make_request(closed, TOKENIZER, closed.splits["test"][0])
    assert isinstance(request, ScoreRequest)
    assert [TOKENIZER.decode(option) for option in request.options] == [f" {o}\n" for o in closed.options or ()]
    assert read_answer(closed, Scores((-3.0, -1.0, -2.0, -1.0), (1, 1, 1, 1))) == "pome"
    predictions = predict(closed, ENGINE, closed.splits["test"], shots=1)
    assert predictions.answers[0] in (closed.options or ())


def test_labels_and_numbers_are_generated_as_text():
    records = [{"id": str(i), "input": "plum", "output": "none"} for i in range(2)]
    parts = {"train": (records[0],), "test": (records[1],)}
    labelled = Task("moods", parts, Template(), ("joy", "anger"), kind="multi_label")
    assert isinstance(make_request(labelled, TOKENIZER, records[1]), GenerateRequest)
    (answer,) = predict(labelled, ENGINE, labelled.splits["test"]).answers
    assert isinstance(answer, str)


def test_demonstrations_that_do_not_fit_are_left_out_whole_and_counted():
    long = task(pairs=(("a" * 20, "b"), ("c" * 20, "d"), ("e" * 20, "f"), ("g" * 20, "h")))
    requests, dropped = make_requests(long, ENGINE, long.splits["test"], shots=3)
    assert dropped == 2 and len(requests[0].prompt) + answer_tokens(long, TOKENIZER) <= 64
    text = TOKENIZER.decode(requests[0].prompt)
    assert text.count("\n") == 1 and text.endswith("g:")
    with pytest.raises(UserError, match="record '3' has .* 64 positions"):
        make_requests(*(lambda t: (t, ENGINE, t.splits["test"]))(task(pairs=(*FRUITS[:3], ("x" * 80, "y")))))
