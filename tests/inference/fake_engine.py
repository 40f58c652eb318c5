"""An engine that is none, whose answers are digests, and rows for it: what tests of bulk runs share."""

import hashlib
import random
from typing import Any

from limbeck.inference.job import BulkRequest, Refused
from limbeck.inference.key import prediction_key
from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores, Values
from limbeck.model.errors import UserError

POISON = 13  # a token that the fake engine refuses when it is asked whether it takes a request
BOMB = 14  # and one at which it fails in the middle of its work


class FakeEngine:
    """Answers are a digest of the request, not in the order of the requests; tells `watch` each that it works on."""

    weights_digest, tokenizer_digest, dtype = "w1", "t1", "float32"

    def __init__(self, watch=lambda request: None):
        self.watch, self.calls, self.checked, self.company = watch, [], [], []

    def check(self, request):
        self.checked.append(request)
        if POISON in request.prompt:
            raise UserError(f"a prompt of {len(request.prompt)} tokens is too long")

    def answers(self, requests, only=None):
        order = list(range(len(requests)) if only is None else only)
        self.calls.append([requests[index] for index in order])
        self.company.append(requests)
        for first in range(0, len(order), 4):  # four slots, of which the last is done first
            for index in reversed(order[first : first + 4]):
                self.watch(requests[index])
                if BOMB in requests[index].prompt:
                    raise UserError("it blew up")
                yield index, self.answer(requests[index])

    def answer(self, request) -> Any:
        data = hashlib.sha256(repr(request).encode()).digest()
        if isinstance(request, GenerateRequest):
            return Generation(f"سیب {data.hex()[:8]}", tuple(data[:4]), -data[4] / 7, data[5] > 99)
        if isinstance(request, ScoreRequest):
            return Scores(tuple(-data[i] / 9 for i in range(len(request.options))), tuple(map(len, request.options)))
        return Values(tuple(value / 3 for value in data[:3]))


def key_of(request):
    return prediction_key(request, weights="w1", tokenizer="t1", dtype="float32")


def generate(query, prompt, **fields):
    return BulkRequest(query, GenerateRequest(tuple(prompt), **fields))


def make_rows(poison):
    rng = random.Random(0)
    rows = []
    for i in range(60):
        prompt = [20 + i, *rng.choices(range(20, 90), k=rng.randrange(9))]
        rows.append(generate(f"query {i}", prompt, sample=0))
        rows.append(generate(f"query {i}", prompt, sample=1))
        if i % 3 == 0:
            rows.append(BulkRequest(f"choice {i}", ScoreRequest(tuple(prompt), ((1,), (2, 3)))))
    if poison:
        rows[20:20] = [generate("poisoned", [POISON, 4]), generate(" ", [4]), Refused("q.jsonl, row 21", "no JSON")]
    return rows


def content(store, rows):
    """All that a user can see of a store, except how often a failing row was tried."""
    failures = [(failure["key"], failure["query"], failure["reason"]) for failure in store.failures()]
    found = [store.find(row.query) for row in rows if isinstance(row, BulkRequest) and row.query.strip()]
    return list(store.rows()), failures, found, store.manifest
