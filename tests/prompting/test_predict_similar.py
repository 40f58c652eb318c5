"""Similar examples by a model: the records that are shown are embedded once, however many prompts are asked."""

import dataclasses
import gc
import weakref
from collections.abc import Sequence

import pytest
from table_engine import CONFIG, MANY, PARAMS, TOKENIZER

from limbeck.inference.engine import Engine
from limbeck.prompting import similarity
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import make_requests, predict

POOL, TEST = MANY.splits["train"], MANY.splits["test"]


@pytest.fixture
def engine() -> Engine:
    return Engine(dataclasses.replace(CONFIG, max_len=128), PARAMS, TOKENIZER, batch_size=8)


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """How many texts each call embeds."""
    found, embed = [], Engine.embed

    def counted(self: Engine, prompts: Sequence[Sequence[int]]):
        found.append(len(prompts))
        return embed(self, prompts)

    monkeypatch.setattr(Engine, "embed", counted)
    return found


NEAREST = PromptConfig(shots=2, pick="nearest")
OTHERS = [
    {"pick": "diverse", "order": "similar_last"},
    {"shots": 1, "seed": 3},
    {"instruction": "Name the kind.", "separator": "\n\n"},
    {"form": "multiple_choice", "query": "{input}\n{options}\n:", "shots": 1},
]


def test_the_pool_is_embedded_once_for_all_prompts(engine, sizes):
    fresh = [
        predict(MANY, Engine(engine.config, PARAMS, TOKENIZER, batch_size=8), TEST, dataclasses.replace(NEAREST, **one))
        for one in ({}, *OTHERS)
    ]
    assert sizes == [len(POOL), len(TEST)] * 5
    sizes.clear()
    again = [predict(MANY, engine, TEST, dataclasses.replace(NEAREST, **one)) for one in ({}, *OTHERS)]
    make_requests(MANY, engine, TEST[:1], NEAREST)
    assert sizes == [len(POOL), *[len(TEST)] * 5, 1]
    assert [[each.prompt_ids for each in one.asked] for one in again] == [
        [each.prompt_ids for each in one.asked] for one in fresh
    ]


def test_another_pool_is_another_index(engine, sizes):
    predict(MANY, engine, TEST, NEAREST)
    fewer = dataclasses.replace(MANY, splits={**MANY.splits, "train": POOL[1:]})
    said = predict(fewer, engine, TEST, NEAREST)
    assert sizes == [len(POOL), len(TEST), len(POOL) - 1, len(TEST)]
    assert all(POOL[0]["id"] not in each.shown for each in said.asked)
    assert predict(fewer, Engine(engine.config, PARAMS, TOKENIZER), TEST, NEAREST).answers == said.answers


def test_words_are_counted_once_too(engine, monkeypatch):
    counted, words = [], similarity.words
    monkeypatch.setattr(similarity, "words", lambda text: (counted.append(text), words(text))[1])
    for shots in (1, 2, 3):
        predict(MANY, engine, TEST, PromptConfig(shots=shots, pick="bm25"))
    assert len(counted) == len(POOL) + 3 * len(TEST)


def test_an_engine_that_nobody_needs_goes_with_its_indexes(engine):
    """At once, not when the collector next looks for circles: a model is big."""
    own = Engine(engine.config, PARAMS, TOKENIZER, batch_size=8)
    for pick in ("nearest", "bm25"):
        make_requests(MANY, own, TEST[:1], PromptConfig(shots=1, pick=pick))
    assert len(own.indexes) == 2
    gone = weakref.ref(own)
    gc.disable()
    try:
        del own
        assert gone() is None
    finally:
        gc.enable()
