"""Fruits of three classes named by a few words, and the examples that a pick shows for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import Chooser, chooser
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import Template

CLASSES = ("berry", "drupe", "pome")


def fruit(identity: str, name: str, answer: int = 0, group: str = "class") -> Record:
    return {"id": identity, "input": name, "output": CLASSES[answer % 3], "relation": group}


def ids(records: tuple[Record, ...]) -> list[str]:
    return [record["id"] for record in records]


WORDS = ["red", "green", "blue", "ripe", "dried", "sweet", "sour", "old"]


def phrase(rng: np.random.Generator, i: int) -> str:
    return " ".join([*rng.choice(WORDS, rng.integers(1, 6)), str(i)])


POOL = tuple(fruit(f"train/{i}", phrase(np.random.default_rng(i), i), i) for i in range(60))
ASKED = tuple(fruit(f"test/{i}", phrase(np.random.default_rng(100 + i), 100 + i), i) for i in range(20))
PHRASES = Task("phrases", {"train": POOL, "test": ASKED}, Template(), CLASSES)


def embed(texts: Sequence[str]) -> np.ndarray:
    """How often each letter stands in a text."""
    return np.array(
        [[text.count(letter) + 0.01 * i for i, letter in enumerate("abcdeghilnoprstu0123456789")] for text in texts]
    )


def chosen_by(task: Task, pick: str, **settings: Any) -> Chooser:
    defaults: dict[str, Any] = {"shots": 4, "pick": pick.split()[0]}
    vectors = embed if pick in ("nearest", "diverse by vectors") else None
    return chooser(task, PromptConfig(**{**defaults, **settings}), vectors)


def examples(task: Task, pick: str, records: Sequence[Record] = ASKED, **settings: Any) -> list[tuple[Record, ...]]:
    return chosen_by(task, pick, **settings).many(records)
