"""Answers of which a prediction store keeps a copy: what it lacks is asked now, so that a killed run goes on."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.inference.agenda import Predictor, digests
from limbeck.inference.job import BulkRequest, run_bulk
from limbeck.inference.key import prediction_key
from limbeck.inference.requests import Generation, Result, Scores, Values
from limbeck.inference.store import PredictionStore


def result_of(payload: Mapping[str, Any]) -> Result:
    """What an engine answered, from what a store kept of it."""
    if "text" in payload:
        return Generation(payload["text"], tuple(payload["tokens"]), payload["logprob"], payload["stopped"])
    if "logprobs" in payload:
        return Scores(tuple(payload["logprobs"]), tuple(payload["lengths"]), tuple(payload.get("greedy", ())))
    return Values(tuple(payload["values"]))


def stored_results(
    engine: Predictor, requests: Sequence[BulkRequest], store: str | os.PathLike[str]
) -> list[Result | None]:
    """The answers, in order: from the prediction store of that path, or now, in bulk, and kept there.

    None for a request that the engine refuses, which is said on stderr. Raises UserError where the store is another
    model's or cannot be written.
    """
    with PredictionStore(store) as opened:
        run_bulk(engine, requests, opened)
        found = [opened.get(prediction_key(row.request, **digests(engine))) for row in requests]
        refused = opened.failures()
    if None in found and refused:
        print(f"note: {found.count(None)} of {len(found)} were refused: {refused[0]['reason']}", file=sys.stderr)
    return [result_of(each) if each is not None else None for each in found]
