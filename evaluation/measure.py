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
from limbeck.tasks.metrics import accuracy, macro_f1
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


def measure(
    task: Task, engine: Engine, records: Sequence[Record], shots: int, seed: int
) -> tuple[dict[str, Any], Predictions]:
    """The part of a row that comes of asking: quality with its interval, prompt tokens, latency, energy, FLOPs."""
    predictions = predict(task, engine, records, shots, seed)
    answers = [task.answer(record) for record in records]
    score = accuracy(predictions.answers, answers)
    single = Engine(engine.config, engine.params, engine.tokenizer, batch_size=1)
    timed, _ = make_requests(task, single, records[:_TIMED], shots, seed)
    with Meter() as meter:
        latency = median_ms(lambda request: serve(single, request), timed)
    row: dict[str, Any] = {
        "accuracy": score.value,
        "ci95": list(score.ci95),
        "n": score.n,
        "prompt_tokens": float(np.mean(predictions.prompt_tokens)),
        "dropped_examples": predictions.dropped,
        "latency_ms_p50": latency,
        "joules_per_prediction": None if meter.joules is None else meter.joules / (2 * len(timed)),
        "flops_per_request": _request_flops(task, engine, predictions),
        "params_total": count(engine.params),
        "bytes": nbytes(engine.params),
    }
    if task.options is not None:
        row["macro_f1"] = macro_f1(predictions.answers, answers).value
    return row, predictions


def _request_flops(task: Task, engine: Engine, predictions: Predictions) -> float:
    """The mean prompt read once for each option, or once with the longest answer written after it."""
    prompt = float(np.mean(predictions.prompt_tokens))
    passes = 1 if task.options is None else len(task.options)
    tokens = prompt + answer_tokens(task, engine.tokenizer)
    return passes * forward_flops(engine.config, engine.params, tokens, tokens / 2)

