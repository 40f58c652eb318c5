"""Tuning a foundation for one task, and what came of it beside the baselines that a user would try first."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.measure import all_metrics, median_ms
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.machine import provenance
from limbeck.experiments.rundir import cache_folder, stage
from limbeck.experiments.start import Start, adapted, begin, first_rows, with_head
from limbeck.experiments.text_sources import by_content
from limbeck.experiments.training import cost_of_step, trained
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.inference.classify import answer, score
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.flops import step_flops
from limbeck.model.params import Params, count, nbytes
from limbeck.model.prefix import prefix_length
from limbeck.model.pretrained import load_pretrained
from limbeck.prompting.predict import predict
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.probability_metrics import calibration_error
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Record, Task
from limbeck.train.data import Rows, batches, pack
from limbeck.train.examples import completions, labelled
from limbeck.train.loop import Evaluation
from limbeck.train.loss import LossFn, multi_label_loss, regression_loss, token_loss
from limbeck.train.row_cache import cached, rows_key
from limbeck.train.select import apply_selection, describe, table
from limbeck.train.validation import mean_loss

_TIMED = 40  # requests whose latency is measured, one at a time


class Tuned(NamedTuple):
    """What one tuning gave: its row of the report, and what else a report tells of it."""

    task: Task
    row: dict[str, Any]
    training: dict[str, Any]
    answers: list[str]
    skipped: list[str]


def run(config: TuningConfig, rundir: Path) -> int:
    """Loads, tunes, saves `model/`, answers the test split, compares, reports; exit status 0."""
    done = tuned(config, rundir)
    task, training = done.task, done.training
    data = {
        "title": f"Limbeck: {task.name}, tuned",
        **provenance(rundir, config.seed),
        "seconds": training["train_seconds"],
        "task": {"name": task.name, "train": len(task.splits["train"]), "test": len(task.splits["test"])},
        "metric": task.metric,
        "rows": [{"method": "tuned", **done.row}, *stage(rundir, "baselines", lambda: baselines(task))],
        "curves": {"tune": training["curve"]},
        "evaluations": {"tune": training["evaluations"]},
        "samples": _samples(task, done.answers, config.seed),
        "skipped": done.skipped,
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"the model is {rundir / 'model'}, the report {rundir / 'report.html'}")
    return 0


def tuned(config: TuningConfig, rundir: Path) -> Tuned:
    """Loads, tunes, saves `model/` and what was added to it, answers the test split."""
    described = json.loads(config.description) if config.description else None
    task = _validated(load_task(config.task, description=described, on_bad_row=config.on_bad_row), config.held_out)
    head = config.head and task.kind != "generation"
    start = _start(config, task, rundir, head)
    loss_fn = _loss(start.config, task, config, head)
    rows, validation = (_rows(config, task, split, start, rundir, head) for split in ("train", "validation"))
    stream = batches(rows, config.fit.batch_size, config.seed)
    start, fit = adapted(start, config, lambda n: (loss_fn, first_rows(stream, config.fit.batch_size, n)))
    task, too_long = _answerable(task, start, config.on_bad_row)
    trainable, frozen = apply_selection(start.selection, start.params)
    print(f"{task.name}, tuning {config.tuning}: {describe(trainable, frozen)}", file=sys.stderr)
    if frozen:
        print(table(trainable, frozen), file=sys.stderr)
    per_step = step_flops(
        start.config, trainable, frozen, config.fit.batch_size * config.fit.length, config.fit.length / 2
    )

    def answers(params: Params, records: Sequence[Record]) -> tuple[list[str], np.ndarray | None]:
        if head:
            found = answer(task, start.config, params, start.tokenizer, records)
            return found.answers, found.confidence_N
        return list(predict(task, Engine(start.config, params, start.tokenizer), records).answers), None

    evaluate = _evaluation(task, loss_fn, validation, config.fit.batch_size, answers)
    cost = stage(rundir, "cost", lambda: cost_of_step(loss_fn, fit, trainable, frozen, stream(0)))
    again = partial(_start, config, task, rundir, head)
    training = trained(config, fit, rundir, start, again, loss_fn, stream, evaluate, per_step, "tune")
    final = load_pretrained(rundir / "model")
    tested = stage(rundir, "test", lambda: _tested(task, final.params, answers, start, head))
    row = {
        **tested["row"],
        "params_trainable": count(trainable),
        "train_seconds": training["train_seconds"],
        "flops_per_step": per_step,
        "learning_rate": fit.optim.learning_rate,
        "adapter_bytes": nbytes(trainable) + nbytes({k: v for k, v in frozen.items() if k in start.added}),
        **cost,
    }
    skipped = [*task.skipped, *rows.skipped, *too_long, *training["skipped"]]
    return Tuned(task, row, training, tested["answers"], skipped)


def _validated(task: Task, share: float) -> Task:
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


def _start(config: TuningConfig, task: Task, rundir: Path, head: bool) -> Start:
    """The foundation, with a head where one answers."""
    queries = [task.query(record) for record in task.splits["train"]]
    start = begin(
        config.model, rundir, queries, vocab_size=config.vocab_size, max_len=config.max_len, seed=config.seed
    )
    return with_head(start, (task.options or (task.answer_field,)) if head else (), config.seed)


def _answerable(task: Task, start: Start, on_bad_row: str) -> tuple[Task, list[str]]:
    """The task without the validation and test records that are too long for the model, and a line for each.

    Raises UserError for the first of them unless they may be left out.
    """
    room = start.config.max_len - prefix_length(start.params)
    splits, left_out = dict(task.splits), []
    for split in ("validation", "test"):
        lengths = [len(start.tokenizer.prompt(task.query(record))) for record in task.splits[split]]
        kept = []
        for record, length in zip(task.splits[split], lengths, strict=True):
            if length <= room:
                kept.append(record)
                continue
            left_out.append(f"{task.place(record)}: {length} tokens, and the model has {room} positions")
            if on_bad_row == "error":
                raise UserError(f'{left_out[-1]}: shorten it, or leave it out with on_bad_row="skip"')
        splits[split] = tuple(kept)
    return dataclasses.replace(task, splits=splits), left_out


def _rows(config: TuningConfig, task: Task, split: str, start: Start, rundir: Path, head: bool) -> Rows:
    records, length = task.splits[split], config.fit.length
    make, kind = (labelled, "labelled") if head else (completions, "completions")
    settings = {"length": length, "on_bad_row": config.on_bad_row, "task": task.digest()}
    texts = [json.dumps([task.place(record), record], sort_keys=True) for record in records]
    key = rows_key(kind, start.tokenizer, settings, texts)
    return cached(
        cache_folder(rundir) / "rows",
        key,
        lambda: pack(make(task, records, start.tokenizer), length, on_bad_row=config.on_bad_row),
    )


def _loss(model: ModelConfig, task: Task, config: TuningConfig, head: bool) -> LossFn:
    if head and task.kind == "multi_label":
        return multi_label_loss(model)
    if head and task.kind == "regression":
        return regression_loss(model)
    return token_loss(model, smoothing=config.smoothing)


def _evaluation(
    task: Task,
    loss_fn: LossFn,
    validation: Rows,
    batch_size: int,
    answers: Callable[[Params, Sequence[Record]], tuple[list[str], np.ndarray | None]],
) -> Callable[[Params], Evaluation]:
    loss = mean_loss(loss_fn, validation, batch_size)
    records, metric = task.splits["validation"], METRICS[task.metric]

    def evaluate(params: Params) -> Evaluation:
        score = metric.score(answers(params, records)[0], [task.answer(record) for record in records]).value
        found = {"validation_loss": loss(params)["loss"], f"validation_{task.metric}": score}
        return Evaluation(score if metric.higher_is_better else -score, found)

    return evaluate


def _tested(
    task: Task,
    params: Params,
    answers: Callable[[Params, Sequence[Record]], tuple[list[str], np.ndarray | None]],
    start: Start,
    head: bool,
) -> dict[str, Any]:
    """The report's row of the tuned model, and its answers."""
    records = task.splits["test"]
    right = [task.answer(record) for record in records]
    said, confidence_N = answers(params, records)
    metrics = all_metrics(task, said, right)
    if confidence_N is not None and task.kind == "classification":
        error = calibration_error(confidence_N, np.array([a == b for a, b in zip(said, right, strict=True)]))
        metrics["calibration_error"] = {"value": error.value, "ci95": list(error.ci95), "n": error.n}
    row: dict[str, Any] = {"metrics": metrics, "params_total": count(params), "bytes": nbytes(params)}
    if head:
        texts = [start.tokenizer.prompt(task.query(record)) for record in records[:_TIMED]]
        row["latency_ms_p50"] = median_ms(lambda text: score(start.config, params, [text]), texts)
    return {"row": row, "answers": said}


def _samples(task: Task, answers: Sequence[str], seed: int) -> list[dict[str, Any]]:
    test = task.splits["test"]
    picked = np.random.default_rng(seed).choice(len(test), min(12, len(test)), replace=False)
    return [
        {"input": task.query(test[i]), "answer": task.answer(test[i]), "tuned": answers[i]} for i in sorted(picked)
    ]
