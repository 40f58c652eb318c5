"""Fruits to be asked about; a tiny engine, and a table of log-likelihoods in an engine's place."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.model.config import ModelConfig
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import Predictions, predict
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

TOKENIZER = byte_tokenizer()
CONFIG = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, max_len=64
)
PARAMS = init(CONFIG, jax.random.key(0))
ENGINE = Engine(CONFIG, PARAMS, TOKENIZER, batch_size=4)
FRUITS = ("plum", "drupe"), ("pear", "pome"), ("lemon", "hesperidium"), ("fig", "syconium")
PLAIN = Template()
KINDS = ("drupe", "pome", "hesperidium", "syconium")


def task(options=None, pairs=FRUITS, test=1, template=PLAIN, **fields) -> Task:
    records = [{"id": str(i), "input": key, "output": value} for i, (key, value) in enumerate(pairs)]
    splits = {"train": tuple(records[:-test]), "test": tuple(records[-test:])}
    return Task("fruits", splits, template, options, **fields)


MANY = task(KINDS, [(f"{name} {i}", kind) for i in range(4) for name, kind in FRUITS], test=7)


class Table:
    """An engine whose log-likelihood of a token hangs on the sum of those before it, modulo S; a table says how."""

    def __init__(self, logprob_SV: np.ndarray, said: Any = None, max_len: int = 999) -> None:
        self.tokenizer, self.config = TOKENIZER, SimpleNamespace(max_len=max_len)
        self.logprob_SV, self.said = logprob_SV, said
        self.scored: list[ScoreRequest] = []
        self.indexes: dict = {}
        self.drawn: list[GenerateRequest] = []

    def prefix(self, adapter: str = "") -> int:
        return 0

    def of(self, ids, first: int) -> float:
        modulo = len(self.logprob_SV)
        return float(sum(self.logprob_SV[sum(ids[:at]) % modulo, ids[at]] for at in range(first, len(ids))))

    def score(self, requests) -> list[Scores]:
        self.scored += requests
        return [
            Scores(
                tuple(self.of((*request.prompt, *option), len(request.prompt)) for option in request.options),
                tuple(map(len, request.options)),
            )
            for request in requests
        ]

    def generate(self, requests) -> list[Generation]:
        self.drawn += requests
        return [self.said(request) for request in requests]


def log_softmax(rows) -> np.ndarray:
    rows = np.asarray(rows)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def sums(seed: int = 0) -> Table:
    return Table(log_softmax(np.random.default_rng(seed).normal(0, 2, (31, CONFIG.vocab_size))))


def by_hand(table: Table, before: str, after: str) -> float:
    """The log-likelihood of a text after another one, which may be empty: BOS stands before both."""
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode(before), *TOKENIZER.encode(after)]
    return table.of(ids, 1 + len(before.encode()))


def asked(task: Task, engine: Any, records, **settings) -> Predictions:
    return predict(task, cast(Engine, engine), records, PromptConfig(**settings))
