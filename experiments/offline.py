"""Two stages of the lesson: bulk predictions looked up against online inference, and what a lone name may mean."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.evaluation.measure import median_ms, serve
from limbeck.inference.engine import Engine
from limbeck.inference.job import BulkRequest, run_bulk
from limbeck.inference.lookup import lookup
from limbeck.inference.requests import Generation, ScoreRequest, Scores
from limbeck.inference.store import PredictionStore
from limbeck.inference.stored import result_of
from limbeck.model.files import disk_errors
from limbeck.prompting.demonstrations import choose
from limbeck.prompting.predict import make_requests, query_text, read_answer
from limbeck.tasks.task import Record, Task
from limbeck.tasks.world import ambiguous_names, facts

_SHOWN = {"zero_shot": None, "few_shot_fruit": "fruit/class", "few_shot_company": "company/industry"}
_COMPARED = 100  # queries that are answered both ways


def bulk_and_lookup(task: Task, engine: Engine, path: Path) -> dict[str, Any]:
    """Predicts the whole query set into a store, then answers some queries by look-up and online.

    `lookup_us_p50` and `online_ms_p50` are medians of single requests; `same_answers` is whether the two ways agree
    on every compared query.
    """
    records = [record for split in task.splits.values() for record in split]
    requests, _ = make_requests(task, engine, records)
    manifest = {"task": task.digest(), "options": json.dumps(task.options)}
    queries = [query_text(task, record) for record in records]
    with PredictionStore(path, manifest=manifest) as store:
        done = run_bulk(engine, [BulkRequest(q, r) for q, r in zip(queries, requests, strict=True)], store)
        store.compact(path.with_suffix(".serving.db"))
    single = Engine(engine.config, engine.params, engine.tokenizer, batch_size=1)
    step = max(1, len(records) // _COMPARED)
    compared = list(zip(queries, requests, strict=True))[::step]
    with PredictionStore(path.with_suffix(".serving.db"), read_only=True) as store:
        lookup_ms = median_ms(lambda pair: lookup(store, pair[0]), compared)
        online_ms = median_ms(lambda pair: serve(single, pair[1]), compared)
        same = [
            read_answer(task, _found(store, query)) == read_answer(task, serve(single, request))
            for query, request in compared
        ]
        coverage = sum(lookup(store, query) is not None for query in queries) / len(queries)
    with disk_errors(path):
        size = path.with_suffix(".serving.db").stat().st_size
    return {
        "rows": done.total - done.duplicate - done.failed,
        "failed": done.failed,
        "coverage": coverage,
        "bytes": size,
        "bulk_seconds": done.seconds,
        "lookup_us_p50": 1e3 * lookup_ms,
        "online_ms_p50": online_ms,
        "speedup": online_ms / lookup_ms,
        "compared": len(compared),
        "same_answers": all(same),
    }


def _found(store: PredictionStore, query: str) -> Generation | Scores:
    payload = lookup(store, query)
    assert payload is not None, "a query of the compared ones is not in the store"
    result = result_of(payload)
    assert isinstance(result, Generation | Scores)
    return result


def ambiguity(task: Task, engine: Engine, shots: int) -> dict[str, Any]:
    """How the built-in world's ambiguous names are read, by name: the distribution over the values that the world
    gives them, after no examples, after fruits and after companies.

    Nothing for another task.
    """
    if task.name != "world":
        return {}
    told = {name: _readings(name) for name in ambiguous_names()}
    answers: dict[str, Any] = {}
    for name, readings in told.items():
        answers[name] = {"fruit": _value("fruit/class", name), "company": _value("company/industry", name)}
        for key, relation in _SHOWN.items():
            shown: Sequence[Record] = ()
            if relation is not None:
                record = {"id": f"{relation}/{name}", "relation": relation, "input": name, "output": ""}
                shown = choose(task, record, shots, seed=0)
            answers[name][key] = _distribution(task, engine, name, readings, shown)
    return answers


def _readings(name: str) -> list[str]:
    values = [value for relation in facts() for key, value in relation.pairs if key == name]
    return list(dict.fromkeys(values))


def _value(relation_name: str, name: str) -> str:
    return next(dict(relation.pairs)[name] for relation in facts() if relation.name == relation_name)


def _distribution(
    task: Task, engine: Engine, name: str, readings: Sequence[str], shown: Sequence[Record]
) -> list[list[Any]]:
    """[[answer, probability], ...] from the likeliest on; what the model gives to none of the readings is "other"."""
    encode = engine.tokenizer.encode
    prompt = task.prompt({"id": name, "relation": "", "input": name, "output": ""}, shown)
    options = tuple(tuple(encode(f" {value}{task.template.separator}")) for value in readings)
    [scores] = engine.score([ScoreRequest(tuple(engine.tokenizer.prompt(prompt)), options)])
    shares = [math.exp(logprob) for logprob in scores.logprobs]
    ranked = sorted(zip(readings, shares, strict=True), key=lambda pair: -pair[1])
    return [[value, share] for value, share in ranked] + [["other", max(0.0, 1.0 - sum(shares))]]
