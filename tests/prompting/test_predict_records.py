"""Records together: no answer hangs on the others, and examples that do not fit are left out and counted."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest
from table_engine import CONFIG, ENGINE, FRUITS, MANY, PARAMS, TOKENIZER, asked, task

from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import Predictions, answer_tokens, make_requests, predict
from limbeck.tasks.task import Record

EVERY: list[dict[str, Any]] = [
    {},
    {"shots": 2},
    {"shots": 2, "pick": "balanced", "order": "shuffled", "view": "domain_pmi"},
    {"shots": 1, "pick": "nearest", "calibration": "contextual"},
    {"shots": 2, "pick": "diverse", "order": "similar_last", "view": "per_byte", "calibration": "domain"},
    {"shots": 1, "pick": "bm25", "form": "multiple_choice", "query": "{input}\n{options}\n:", "max_new_tokens": 1},
    {"shots": 1, "form": "cloze", "query": "{input} is {output}."},
    {"shots": 1, "pick": "fixed", "samples": 3},
    {"reasoning": "so", "extract": "(.)$", "max_new_tokens": 6},
]


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_batches_order_and_company_of_records_change_nothing(settings):
    max_len = 128
    config = dataclasses.replace(CONFIG, max_len=max_len)
    records = MANY.splits["test"]
    whole = asked(MANY, Engine(config, PARAMS, TOKENIZER, batch_size=8), records, **settings)
    part = asked(MANY, Engine(config, PARAMS, TOKENIZER, batch_size=2), records[::-2], **settings)
    assert len(whole.answers) == len(records) and whole.dropped == 0
    for one, other in zip(whole.asked[::-2], part.asked, strict=True):
        same = {name: part for name, part in one._asdict().items() if name not in ("scores", "logprobs")}
        assert same == {name: part for name, part in other._asdict().items() if name not in ("scores", "logprobs")}
        assert one.scores.keys() == other.scores.keys()
        for name, values in one.scores.items():
            np.testing.assert_allclose(values, other.scores[name], atol=1e-4)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert one.prompt_sha256 == hashlib.sha256(one.text.encode()).hexdigest()
        assert one.prompt_ids == (TOKENIZER.bos_id, *TOKENIZER.encode(one.text))


def test_examples_that_do_not_fit_are_left_out_whole_and_counted():
    long = task(pairs=(("a" * 20, "b"), ("c" * 20, "d"), ("e" * 20, "f"), ("g" * 20, "h")))
    requests, dropped = make_requests(long, ENGINE, long.splits["test"], PromptConfig(shots=3))
    assert dropped == 2 and len(requests[0].prompt) + answer_tokens(long, TOKENIZER) <= 64
    text = TOKENIZER.decode(requests[0].prompt)
    assert text.count("\n") == 1 and text.endswith("g:")
    found = asked(long, ENGINE, long.splits["test"], shots=3)
    assert found.dropped == found.asked[0].dropped == 2 and len(found.asked[0].shown) == 1
    assert found.prompt_tokens == (len(requests[0].prompt),)
    with pytest.raises(UserError, match="record '3' with its 3 examples has .* 64 positions"):
        make_requests(long, ENGINE, long.splits["test"], PromptConfig(shots=3, overflow="error"))
    with pytest.raises(UserError, match="record '3' has .* 64 positions"):
        make_requests(*(lambda t: (t, ENGINE, t.splits["test"]))(task(pairs=(*FRUITS[:3], ("x" * 80, "y")))))


def test_no_records_no_answers():
    assert predict(MANY, ENGINE, []) == Predictions((), (), 0, ())


def test_more_examples_than_there_are():
    with pytest.raises(UserError, match="10 shots.*9 records; ask for that many at most"):
        asked(MANY, ENGINE, MANY.splits["test"], shots=10)
    own: Record = MANY.splits["train"][0]
    with pytest.raises(UserError, match="record '0' would be shown its own answer"):
        asked(MANY, ENGINE, [own], shots=1, pick="fixed", examples=("0",))
