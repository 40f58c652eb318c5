"""Tuning a foundation for one task, and what came of it beside the baselines that a user would try first."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from limbeck.distill.teacher import without_teacher
from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.answering import (
    answerable,
    evaluation,
    loss_of,
    rows_of,
    setting,
    start_of,
    tested,
)
from limbeck.experiments.cards import tell_quality, train_energy
from limbeck.experiments.machine import provenance
from limbeck.experiments.rundir import stage
from limbeck.experiments.start import Taught, adapted, first_rows
from limbeck.experiments.training import trained
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.flops import step_flops
from limbeck.model.params import count, nbytes
from limbeck.model.pretrained import load_pretrained
from limbeck.model.pretrained.lineage import data_of
from limbeck.tasks.task import Task
from limbeck.train.data import batches
from limbeck.train.select import apply_selection, describe, table


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


def tuned(config: TuningConfig, rundir: Path, taught: Taught | None = None, task: Task | None = None) -> Tuned:
    """Loads, tunes, saves `model/` and what was added to it, answers the test split.

    With a teacher `taught` says what is learned of it, from which rows. `task` is the config's own where the caller
    has it, less the records that are too long for what it is compared with.
    """
    at = setting(config, rundir, task)
    start = start_of(at, config.model)
    plain_loss = loss_fn = loss_of(at, start.config)
    rows = rows_of(at, "train", start)
    stream = batches(rows, config.fit.batch_size, config.seed)
    start, fit = adapted(start, config, lambda n: (plain_loss, first_rows(stream, config.fit.batch_size, n)))
    at, too_long = answerable(at, start)
    trainable, frozen = apply_selection(start.selection, start.params)
    print(f"{at.task.name}, tuning {config.tuning}: {describe(trainable, frozen)}", file=sys.stderr)
    if frozen:
        print(table(trainable, frozen), file=sys.stderr)
    per_step = step_flops(
        start.config, trainable, frozen, config.fit.batch_size * config.fit.length, config.fit.length / 2
    )
    evaluate = evaluation(at, start)
    data = data_of(at.task.name, at.task.splits["train"])
    start = start._replace(past=start.past._replace(data=(data,)))
    if taught is not None:
        start, stream, loss_fn, teaching_flops = taught(start, [(rows, 1.0)])
        per_step += teaching_flops
    trainable, frozen = apply_selection(start.selection, start.params)  # with what stands beside the student
    again = partial(start_of, at, config.model)
    training = trained(config, fit, rundir, start, again, loss_fn, stream, evaluate, per_step, "tune")
    final = load_pretrained(rundir / "model")
    found = stage(rundir, "test", lambda: tested(at, start, final.params))
    moving = without_teacher(trainable)
    row = {
        **found["row"],
        "params_trainable": count(moving),
        "train_seconds": training["train_seconds"],
        **train_energy(training),
        "learning_rate": fit.optim.learning_rate,
        "flops_per_step": per_step,
        "adapter_bytes": nbytes(moving) + nbytes({k: v for k, v in frozen.items() if k in start.added}),
        **{name: training[name] for name in ("step_bytes", "step_seconds")},
    }
    tell_quality(rundir / "model", at.task.name, at.task.kind, row)
    skipped = [*at.task.skipped, *rows.skipped, *too_long, *training["skipped"]]
    return Tuned(at.task, row, training, found["answers"], skipped)


def _samples(task: Task, answers: Sequence[str], seed: int) -> list[dict[str, Any]]:
    test = task.splits["test"]
    picked = np.random.default_rng(seed).choice(len(test), min(12, len(test)), replace=False)
    return [
        {"input": task.query(test[i]), "answer": task.answer(test[i]), "tuned": answers[i]} for i in sorted(picked)
    ]
