"""A task as models are trained for it and measured by it: its rows, its loss, its answers, whatever the model."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limbeck.evaluation.energy import of_requests
from limbeck.evaluation.measure import all_metrics, median_ms, request_tokens, serve, timing
from limbeck.experiments.rundir import cache_folder
from limbeck.experiments.start import Start, begin, with_head
from limbeck.experiments.text_sources import by_content
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.inference.classify import answer, score
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.flops import forward_flops
from limbeck.model.params import Params, count, nbytes
from limbeck.model.prefix import prefix_length
from limbeck.model.transformer import with_prefix
from limbeck.prompting.predict import make_requests, predict
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.probability_metrics import calibration_error
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Record, Task
from limbeck.train.data import Rows, pack
from limbeck.train.examples import completions, labelled
from limbeck.train.loop import Evaluation
from limbeck.train.loss import LossFn, multi_label_loss, regression_loss, token_loss
from limbeck.train.row_cache import cached, rows_key
from limbeck.train.validation import mean_loss

_TIMED = 40  # requests whose latency is measured, one at a time
_TOGETHER = 256  # and whose answers are timed in bulk, so often
_TURNS = 7


class Setting(NamedTuple):
    """A task with a validation split, and whether a head answers it."""

    config: TuningConfig
    rundir: Path
    task: Task
    head: bool


def setting(config: TuningConfig, rundir: Path, task: Task | None = None) -> Setting:
    """Loads the task that a config names, if it is not given."""
    if task is None:
        described = json.loads(config.description) if config.description else None
        task = load_task(config.task, description=described, on_bad_row=config.on_bad_row)
        task = with_validation(task, config.held_out)
    return Setting(config, rundir, task, config.head and task.kind != "generation")


def start_of(at: Setting, model: str) -> Start:
    """The model of a folder or the name of a size, with a head where one answers."""
    config, task = at.config, at.task
    queries = [task.query(record) for record in task.splits["train"]]
    start = begin(model, at.rundir, queries, vocab_size=config.vocab_size, max_len=config.max_len, seed=config.seed)
    start = start._replace(config=dataclasses.replace(start.config, remat=config.remat))
    return with_head(start, labels_of(at), config.seed)


def labels_of(at: Setting) -> tuple[str, ...]:
    """The outputs of the head that answers the task; none where its answers are text."""
    return (at.task.options or (at.task.answer_field,)) if at.head else ()


def rows_of(at: Setting, split: str, start: Start) -> Rows:
    """The records of a split, tokenised and packed, from the cache if an earlier run did it."""
    config, task, records, length = at.config, at.task, at.task.splits[split], at.config.fit.length
    make, kind = (labelled, "labelled") if at.head else (completions, "completions")
    settings = {"length": length, "on_bad_row": config.on_bad_row, "task": task.digest()}
    texts = [json.dumps([task.place(record), record], sort_keys=True) for record in records]
    key = rows_key(kind, start.tokenizer, settings, texts)
    return cached(
        cache_folder(at.rundir) / "rows",
        key,
        lambda: pack(make(task, records, start.tokenizer), length, on_bad_row=config.on_bad_row),
    )


def loss_of(at: Setting, model: ModelConfig) -> LossFn:
    """What tuning for the task minimises."""
    if at.head and at.task.kind == "multi_label":
        return multi_label_loss(model)
    if at.head and at.task.kind == "regression":
        return regression_loss(model)
    return token_loss(model, smoothing=at.config.smoothing)


def answerable(at: Setting, start: Start, spare: int = 0) -> tuple[Setting, list[str]]:
    """The setting without the validation and test records that are too long for the model, and a line for each.

    `spare` positions of it are left for what stands before and after a record.
    Raises UserError for the first of them unless they may be left out.
    """
    task, on_bad_row = at.task, at.config.on_bad_row
    room = start.config.max_len - prefix_length(start.params) - spare
    beside = f" beside {spare} for virtual tokens and the answer" if spare else ""
    splits, left_out = dict(task.splits), []
    for split in ("validation", "test"):
        lengths = [len(start.tokenizer.prompt(task.query(record))) for record in task.splits[split]]
        kept = []
        for record, length in zip(task.splits[split], lengths, strict=True):
            if length <= room:
                kept.append(record)
                continue
            left_out.append(f"{task.place(record)}: {length} tokens, and the model has {room} positions{beside}")
            if on_bad_row == "error":
                raise UserError(f'{left_out[-1]}: shorten it, or leave it out with on_bad_row="skip"')
        splits[split] = tuple(kept)
    return at._replace(task=dataclasses.replace(task, splits=splits)), left_out


def answers(
    at: Setting, start: Start, params: Params, records: Sequence[Record]
) -> tuple[list[str], np.ndarray | None]:
    """What the model answers to each record, and how sure a head is of it."""
    if at.head:
        found = answer(at.task, start.config, params, start.tokenizer, records)
        return found.answers, found.confidence_N
    return list(predict(at.task, Engine(start.config, params, start.tokenizer), records).answers), None


def evaluation(at: Setting, start: Start) -> Callable[[Params], Evaluation]:
    """A function of the model's parameters: its loss and the task's metric on the validation split."""
    loss = mean_loss(loss_of(at, start.config), rows_of(at, "validation", start), at.config.fit.batch_size)
    records, metric = at.task.splits["validation"], METRICS[at.task.metric]
    right = [at.task.answer(record) for record in records]

    def evaluate(params: Params) -> Evaluation:
        score = metric.score(answers(at, start, params, records)[0], right).value
        found = {"validation_loss": loss(params)["loss"], f"validation_{at.task.metric}": score}
        return Evaluation(score if metric.higher_is_better else -score, found)

    return evaluate


def tested(at: Setting, start: Start, params: Params) -> dict[str, Any]:
    """{"row", "answers"}: the model's row of a report, and what it answers to the test split."""
    task, records = at.task, at.task.splits["test"]
    right = [task.answer(record) for record in records]
    said, confidence_N = answers(at, start, params, records)
    metrics = all_metrics(task, said, right)
    if confidence_N is not None and task.kind == "classification":
        error = calibration_error(confidence_N, np.array([a == b for a, b in zip(said, right, strict=True)]))
        metrics["calibration_error"] = {"value": error.value, "ci95": list(error.ci95), "n": error.n}
    row = {"metrics": metrics, "params_total": count(params), "bytes": nbytes(params)}
    return {"row": row | _asked(at, start, params), "answers": said}


def _asked(at: Setting, start: Start, params: Params) -> dict[str, Any]:
    """What a request costs of the test split, each asked alone, and how many a second are answered together."""
    records = at.task.splits["test"]
    first = records[:_TIMED]
    ask: Callable[[Any], Any]
    if at.head:
        model = with_prefix(start.config, params)
        requests = [start.tokenizer.prompt(at.task.query(record)) for record in first]
        asked = tokens = float(np.mean([len(request) for request in requests]))
        ask = lambda request: score(start.config, model, [request])  # noqa: E731
    else:
        engine = Engine(start.config, params, start.tokenizer, batch_size=1)
        requests, _ = make_requests(at.task, engine, first)
        asked = float(np.mean([len(request.prompt) for request in requests]))
        tokens = request_tokens(at.task, engine, requests)
        ask = partial(serve, engine)
    latency = timing(ask, requests)
    together = records[:_TOGETHER]
    return {
        "prompt_tokens": asked,
        "latency_ms_p50": latency.ms,
        "per_second": 1e3 * len(together) / median_ms(lambda _: answers(at, start, params, together), [None] * _TURNS),
        **of_requests(latency.meter, latency.calls),
        "flops_per_request": forward_flops(start.config, params, tokens, tokens / 2),
    }


def with_validation(task: Task, share: float) -> Task:
    """The task with a validation split: its own, or a share of the training records, by their content."""
    if task.splits.get("validation"):
        return task
    queries = [task.query(record) for record in task.splits["train"]]
    held = set(by_content(sorted(set(queries)), str, share)[1])
    parts: dict[bool, list[Record]] = {False: [], True: []}
    for query, record in zip(queries, task.splits["train"], strict=True):
        parts[query in held].append(record)
    splits = {**task.splits, "train": tuple(parts[False]), "validation": tuple(parts[True])}
    return dataclasses.replace(task, splits=splits)
