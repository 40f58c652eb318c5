"""What a method's row in the report holds: quality, size, cost of training, cost of a request."""

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from limbeck.evaluation.asked import changes
from limbeck.evaluation.energy import Meter, of_requests
from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, ScoreRequest
from limbeck.inference.sharing import LEAST, common_start
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops
from limbeck.model.params import count, nbytes
from limbeck.model.progress import no_progress
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import Predictions, answer_tokens, examples_for, make_requests, predict
from limbeck.prompting.prompts import scored
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.task import Record, Task

_TIMED = 40  # requests whose latency is measured, one at a time
_LEAST_SECONDS = 0.5


def serve(engine: Engine, request: GenerateRequest | ScoreRequest) -> Any:
    """One answer to one request, as live traffic would ask for it."""
    return engine.generate([request])[0] if isinstance(request, GenerateRequest) else engine.score([request])[0]


class Timing(NamedTuple):
    """Median milliseconds of a call, how many calls were timed, and what metered them."""

    ms: float
    calls: int
    meter: Meter


def timing(call: Callable[[Any], Any], arguments: Sequence[Any]) -> Timing:
    """Times a call with each argument, again and again for half a second; once before, to compile and warm it.

    Calls of less than a millisecond were over in an instant, and what else the machine did then was in the median.
    """
    seconds: list[float] = []
    with no_progress():
        for argument in arguments:
            call(argument)
        with Meter() as meter:
            while sum(seconds) < _LEAST_SECONDS:
                for argument in arguments:
                    start = time.perf_counter()
                    call(argument)
                    seconds.append(time.perf_counter() - start)
    return Timing(1e3 * statistics.median(seconds), len(seconds), meter)


def median_ms(call: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    """The milliseconds of `timing`."""
    return timing(call, arguments).ms


def all_metrics(task: Task, predictions: Sequence[str], answers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name: {"value", "ci95", "n"}} of every metric that fits the task's kind, the task's own first.

    No records is a UserError.
    """
    fitting = [name for name, metric in METRICS.items() if task.kind in metric.kinds and name != task.metric]
    return {name: measured(name, predictions, answers) for name in (task.metric, *fitting)}


def measured(metric: str, predictions: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """{"value", "ci95", "n"} of one metric. No records is a UserError."""
    score = METRICS[metric].score(predictions, answers)
    return {"value": score.value, "ci95": list(score.ci95), "n": score.n}


def measure(
    task: Task, engine: Engine, records: Sequence[Record], prompt: PromptConfig = PromptConfig()
) -> tuple[dict[str, Any], Predictions]:
    """The part of a row that comes of asking: quality with its intervals, prompt tokens, latency, energy, FLOPs; how.

    A request finds its examples and is answered; where all prompts begin alike, as with fixed examples, also what it
    costs once that has been read and kept.
    """
    predictions = predict(task, engine, records, prompt)
    answers = [task.answer(record) for record in records]
    single = Engine(engine.config, engine.params, engine.tokenizer, batch_size=1)
    single.indexes = engine.indexes  # made of many texts together; what is looked up in them comes alone
    first = records[:_TIMED]
    requests, _ = make_requests(task, engine, first, prompt)
    choose = examples_for(task, single, prompt)
    run_before = single.tokens_run
    choose.many(first)
    looked_up = (single.tokens_run - run_before) / len(first)  # tokens a request by which its examples are found
    finding = forward_flops(engine.config, engine.params, looked_up, looked_up / 2)

    def ask(asked: tuple[Record, Sequence[GenerateRequest | ScoreRequest]]) -> None:
        choose(asked[0])
        for request in asked[1]:
            serve(single, request)

    timed = [_draws(request, prompt.samples) for request in requests]
    latency = timing(ask, list(zip(first, timed, strict=True)))
    total = request_tokens(task, single, requests, prompt)
    row: dict[str, Any] = {
        "metrics": all_metrics(task, predictions.answers, answers),
        "prompt": {**changes(prompt), "seed": prompt.seed},
        "prompt_tokens": float(np.mean(predictions.prompt_tokens)),
        "dropped_examples": predictions.dropped,
        "latency_ms_p50": latency.ms,
        **of_requests(latency.meter, latency.calls),
        "flops_per_request": finding + forward_flops(engine.config, engine.params, total, total / 2),
        "params_total": count(engine.params),
        "bytes": nbytes(engine.params),
    }
    start = common_start([request.prompt for request in requests])
    if len(requests) > 1 and start >= LEAST:
        with contextlib.suppress(UserError):  # of a model that cannot
            name = single.keep(requests[0].prompt[:start])
            rests = [[replace(each, prompt=each.prompt[start:], adapter=name) for each in asked] for asked in timed]
            left, context = total - start * prompt.samples, start + (total - start) / 2
            row["latency_ms_prefix"] = median_ms(ask, list(zip(first, rests, strict=True)))
            row["flops_per_request_prefix"] = finding + forward_flops(engine.config, engine.params, left, context)
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
