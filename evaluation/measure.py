"""What a method's row in the report holds: quality, size, cost of training, cost of a request."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from limbeck.evaluation.energy import Meter
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, ScoreRequest
from limbeck.model.flops import forward_flops
from limbeck.model.params import count, nbytes
from limbeck.prompting.predict import Predictions, answer_tokens, make_requests, predict
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.task import Record, Task

_TIMED = 40  # requests whose latency is measured, one at a time


def serve(engine: Engine, request: GenerateRequest | ScoreRequest) -> Any:
    """One answer to one request, as live traffic would ask for it."""
    return engine.generate([request])[0] if isinstance(request, GenerateRequest) else engine.score([request])[0]


def median_ms(call: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    """Median milliseconds of a call, each argument called once before to compile and warm what it needs."""
    for argument in arguments:
        call(argument)
    seconds = []
    for argument in arguments:
        start = time.perf_counter()
        call(argument)
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def all_metrics(task: Task, predictions: Sequence[str], answers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {"value", "ci95", "n"}} of every metric that fits the task's kind, the task's own first.

    No records is a UserError.
    """
    fitting = [name for name, metric in METRICS.items() if task.kind in metric.kinds and name != task.metric]
    scores = {name: METRICS[name].score(predictions, answers) for name in (task.metric, *fitting)}
    return {name: {"value": s.value, "ci95": list(s.ci95), "n": s.n} for name, s in scores.items()}


def measure(
    task: Task, engine: Engine, records: Sequence[Record], shots: int, seed: int
) -> tuple[dict[str, Any], Predictions]:
    """The part of a row that comes of asking: quality with its intervals, prompt tokens, latency, energy, FLOPs."""
    predictions = predict(task, engine, records, shots, seed)
    answers = [task.answer(record) for record in records]
    single = Engine(engine.config, engine.params, engine.tokenizer, batch_size=1)
    timed, _ = make_requests(task, single, records[:_TIMED], shots, seed)
    with Meter() as meter:
        latency = median_ms(lambda request: serve(single, request), timed)
    row: dict[str, Any] = {
        "metrics": all_metrics(task, predictions.answers, answers),
        "prompt_tokens": float(np.mean(predictions.prompt_tokens)),
        "dropped_examples": predictions.dropped,
        "latency_ms_p50": latency,
        "joules_per_prediction": None if meter.joules is None else meter.joules / (2 * len(timed)),
        "flops_per_request": _request_flops(task, engine, predictions),
        "params_total": count(engine.params),
        "bytes": nbytes(engine.params),
    }
    return row, predictions


def _request_flops(task: Task, engine: Engine, predictions: Predictions) -> float:
    """The mean prompt read once for each option, or once with the longest answer written after it."""
    prompt = float(np.mean(predictions.prompt_tokens))
    passes = len(task.options) if task.kind == "classification" and task.options else 1
    tokens = prompt + answer_tokens(task, engine.tokenizer)
    return passes * forward_flops(engine.config, engine.params, tokens, tokens / 2)
