"""Similar demonstrations: the nearest by vectors, those that share the rarest words, and diverse ones."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from phrases import ASKED, CLASSES, PHRASES, POOL, embed, examples, fruit, ids

from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import chooser
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template


def test_the_nearest_are_those_of_numpy() -> None:
    x_ND, asked_MD = (embed([record["input"] for record in records]) for records in (POOL, ASKED))
    norms = np.linalg.norm(asked_MD, axis=1)[:, None] * np.linalg.norm(x_ND, axis=1)
    cosine_MN = asked_MD @ x_ND.T / norms
    expected = [[POOL[i]["id"] for i in np.argsort(-row)[:5]] for row in cosine_MN]
    assert [ids(shown) for shown in examples(PHRASES, "nearest", shots=5)] == expected
    last = examples(PHRASES, "nearest", shots=5, order="similar_last")
    assert [ids(shown)[::-1] for shown in last] == expected


def test_the_model_reads_the_pool_once_and_all_queries_at_once() -> None:
    calls: list[list[str]] = []

    def counted(texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return embed(texts)

    pick = chooser(PHRASES, PromptConfig(shots=2, pick="nearest"), counted)
    pick.many(ASKED)
    pick.many(ASKED[:3])
    expected = [[record["input"] for record in records] for records in (POOL, ASKED, ASKED[:3])]
    assert calls == expected


def test_bm25_takes_those_that_share_the_rarest_words() -> None:
    names = ["red plum", "blue plum", "red medlar", "dried MEDLAR jam", "green fig", "red pear"]
    pool = tuple(fruit(str(i), name) for i, name in enumerate(names))
    task = Task("shop", {"train": pool, "test": (fruit("q", "a medlar, red"),)}, Template(), CLASSES)
    (shown,) = examples(task, "bm25", task.splits["test"], shots=3)
    assert ids(shown) == ["2", "3", "0"]
    (shown,) = examples(task, "bm25", task.splits["test"], shots=3, order="similar_last")
    assert ids(shown) == ["0", "3", "2"]


@pytest.mark.parametrize("pick", ["diverse", "diverse by vectors"])
def test_diverse_ones_are_less_alike_and_start_with_the_most_similar(pick: str) -> None:
    alike = "bm25" if pick == "diverse" else "nearest"
    diverse, similar = examples(PHRASES, pick), examples(PHRASES, alike)
    assert [shown[0] for shown in diverse] == [shown[0] for shown in similar]

    def likeness(shown: tuple[Record, ...]) -> float:
        sets = [set(record["input"].split()) for record in shown]
        return sum(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2))

    assert sum(map(likeness, diverse)) < 0.9 * sum(map(likeness, similar))
    for as_is, last in zip(diverse, examples(PHRASES, pick, order="similar_last"), strict=True):
        assert last[-1] == as_is[0] and sorted(ids(last)) == sorted(ids(as_is))


def test_similar_last_puts_diverse_ones_by_similarity_too() -> None:
    shown = examples(PHRASES, "diverse by vectors", order="similar_last", shots=6)
    for record, each in zip(ASKED, shown, strict=True):
        x_ND, (asked_D,) = embed([example["input"] for example in each]), embed([record["input"]])
        cosine_N = x_ND @ asked_D / np.linalg.norm(x_ND, axis=1)
        assert (np.diff(cosine_N) > -1e-6).all()


def test_the_query_is_looked_up_by_its_fields_and_without_the_answer() -> None:
    """Words of the template would make all alike; the answer of a cloze would be found out."""
    seen: list[str] = []

    def kept(texts: Sequence[str]) -> np.ndarray:
        seen.extend(texts)
        return embed(texts)

    cloze: dict[str, Any] = {"form": "cloze", "query": "A {output} such as {input} is a {output}."}
    for settings in ({}, cloze):
        seen.clear()
        task = dataclasses.replace(PHRASES, template=Template("Which fruit is {input}?"))
        chooser(task, PromptConfig(shots=1, pick="nearest", **settings), kept)(ASKED[0])
        assert seen == [record["input"] for record in (*POOL, ASKED[0])]
