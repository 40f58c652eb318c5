"""What a method's row in the report holds: quality, size, cost of training, cost of a request."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from limbeck.evaluation.energy import Meter
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, ScoreRequest
from limbeck.inference.sharing import LEAST, common_start
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops
from limbeck.model.params import count, nbytes
from limbeck.model.progress import no_progress
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import Predictions, answer_tokens, make_requests, predict
from limbeck.prompting.prompts import scored
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.task import Record, Task

_TIMED = 40  # requests whose latency is measured, one at a time
_LEAST_SECONDS = 0.5


def serve(engine: Engine, request: GenerateRequest | ScoreRequest) -> Any:
    """One answer to one request, as live traffic would ask for it."""
    return engine.generate([request])[0] if isinstance(request, GenerateRequest) else engine.score([request])[0]


class Timing(NamedTuple):
    """Median milliseconds of a call, and how many calls were made in all."""

    ms: float
    calls: int


def timing(call: Callable[[Any], Any], arguments: Sequence[Any]) -> Timing:
    """Times a call with each argument, again and again for half a second; once before, to compile and warm it.

    Calls of less than a millisecond were over in an instant, and what else the machine did then was in the median.
    """
    seconds: list[float] = []
    with no_progress():
        for argument in arguments:
            call(argument)
        while sum(seconds) < _LEAST_SECONDS:
            for argument in arguments:
                start = time.perf_counter()
                call(argument)
                seconds.append(time.perf_counter() - start)
    return Timing(1e3 * statistics.median(seconds), len(arguments) + len(seconds))


def median_ms(call: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    """The milliseconds of `timing`."""
    return timing(call, arguments).ms


def all_metrics(task: Task, predictions: Sequence[str], answers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {"value", "ci95", "n"}} of every metric that fits the task's kind, the task's own first.

    No records is a UserError.
    """
    fitting = [name for name, metric in METRICS.items() if task.kind in metric.kinds and name != task.metric]
    scores = {name: METRICS[name].score(predictions, answers) for name in (task.metric, *fitting)}
    return {name: {"value": s.value, "ci95": list(s.ci95), "n": s.n} for name, s in scores.items()}


def measure(
    task: Task, engine: Engine, records: Sequence[Record], prompt: PromptConfig = PromptConfig()
) -> tuple[dict[str, Any], Predictions]:
    """The part of a row that comes of asking: quality with its intervals, prompt tokens, latency, energy, FLOPs.

    Where all prompts begin alike, as with fixed examples, also what a request costs once that has been read and kept.
    """
    predictions = predict(task, engine, records, prompt)
    answers = [task.answer(record) for record in records]
    single = Engine(engine.config, engine.params, engine.tokenizer, batch_size=1)
    requests, _ = make_requests(task, engine, records[:_TIMED], prompt)  # which embeds many examples together
    timed = [_draws(request, prompt.samples) for request in requests]
    with Meter() as meter:
        latency = timing(lambda asked: [serve(single, request) for request in asked], timed)
    total = request_tokens(task, single, requests, prompt)
    row: dict[str, Any] = {
        "metrics": all_metrics(task, predictions.answers, answers),
        "prompt_tokens": float(np.mean(predictions.prompt_tokens)),
        "dropped_examples": predictions.dropped,
        "latency_ms_p50": latency.ms,
        "joules_per_prediction": None if meter.joules is None else meter.joules / latency.calls,
        "flops_per_request": forward_flops(engine.config, engine.params, total, total / 2),
        "params_total": count(engine.params),
        "bytes": nbytes(engine.params),
    }
    start = common_start([request.prompt for request in requests])
    if len(requests) > 1 and start >= LEAST:
        with contextlib.suppress(UserError):  # of a model that cannot
            name = single.keep(requests[0].prompt[:start])
            rests = [[replace(each, prompt=each.prompt[start:], adapter=name) for each in asked] for asked in timed]
            left, context = total - start * prompt.samples, start + (total - start) / 2
            row["latency_ms_prefix"] = median_ms(lambda asked: [serve(single, request) for request in asked], rests)
            row["flops_per_request_prefix"] = forward_flops(engine.config, engine.params, left, context)
    return row, predictions


def _draws(request: GenerateRequest | ScoreRequest, samples: int) -> list[GenerateRequest | ScoreRequest]:
    """All that is asked about a record of which one request is given."""
    if isinstance(request, ScoreRequest):
        return [request]
    return [replace(request, sample=sample) for sample in range(samples)]


def request_tokens(
    task: Task,
    engine: Engine,
    requests: Sequence[GenerateRequest | ScoreRequest],
    prompt: PromptConfig = PromptConfig(),
) -> float:
    """Tokens that a request runs: the mean prompt with its options, or for each sample with the longest answer."""
    asked = float(np.mean([len(request.prompt) for request in requests]))
    if scored(task, prompt):
        options = [len(option) - 1 for each in requests if isinstance(each, ScoreRequest) for option in each.options]
        return asked + sum(options) / len(requests)
    return prompt.samples * (asked + answer_tokens(task, engine.tokenizer, prompt))
