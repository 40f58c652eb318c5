"""Students of a teacher, each beside the same student without it, and what of the teacher's quality each keeps."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.evaluation.agreement import agreement, by_group
from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.answering import Setting, answerable, evaluation, labels_of, rows_of, setting, tested
from limbeck.experiments.distillation_config import DistillationConfig, TeachingConfig, TextDistillationConfig
from limbeck.experiments.machine import provenance
from limbeck.experiments.pretraining import assessed, pretrained, text_mixture, text_start
from limbeck.experiments.rundir import stage
from limbeck.experiments.start import Start, begin, first_rows
from limbeck.experiments.teaching import student_folder, taught_by
from limbeck.experiments.text_sources import read_sources
from limbeck.experiments.tuning import Tuned, tuned
from limbeck.model.errors import UserError
from limbeck.train.data import batches
from limbeck.train.loss import Batch

_GROUPS = 100  # of records; where there are more, as in tasks that are answered in text, they are not told apart


def run(config: DistillationConfig, rundir: Path) -> int:
    """Measures the teacher, then trains and measures each student with and without it; exit status 0."""
    common, teaching = config.tuning, config.teaching
    at = setting(common, rundir)
    teachers = [teacher_of(at, folder) for folder in (common.model, *teaching.others)]
    at, too_long = answerable(at, teachers[0])
    task, test = at.task, at.task.splits["test"]
    first = stage(rundir, "teacher", partial(_measured, at, teachers[0]))
    _tell(first["row"]["metrics"], first["validation"])
    rows: list[dict[str, Any]] = [{"method": "teacher", **first["row"]}]
    runs, disagreement = {}, {}
    groups = [record[task.group_field] if task.group_field else task.answer(record) for record in test]
    for name, _, is_taught, done in taught_students(at, teachers, teaching):
        row = {"method": name, **done.row}
        if task.kind != "regression":
            row["metrics"] = {**done.row["metrics"], "agreement": agreement(first["answers"], done.answers)}
            if is_taught and len(set(groups)) <= _GROUPS:
                right = [task.answer(record) for record in test]
                disagreement[name] = by_group(groups, right, first["answers"], done.answers)
        rows.append(row)
        runs[name] = done.training
    sizes = {split: len(task.splits[split]) for split in ("train", "test")}
    about = {
        "title": f"Limbeck: {task.name}, distilled",
        "task": {"name": task.name, **sizes},
        "metric": task.metric,
        "disagreement": disagreement,
        "skipped": [*task.skipped, *too_long],
    }
    rows += stage(rundir, "baselines", lambda: baselines(task))
    return _report(rundir, rows, runs, common.seed, about)


def taught_students(
    at: Setting, teachers: Sequence[Start], teaching: TeachingConfig
) -> Iterator[tuple[str, Path, bool, Tuned]]:
    """(name, folder, whether it is taught, what came of it) of each student of a task's teachers, one after another."""
    common = at.config
    stream = batches(rows_of(at, "train", teachers[0]), common.fit.batch_size, common.seed)
    some = partial(first_rows, stream, common.fit.batch_size)
    for name, model, folder, is_taught in _students(teaching, teachers[0], some, at.rundir, common.seed):
        taught = taught_by(teachers, teaching, common.fit, folder, common.seed, at) if is_taught else None
        yield name, folder, is_taught, tuned(dataclasses.replace(common, model=model), folder, taught, at.task)


def run_on_text(config: TextDistillationConfig, rundir: Path) -> int:
    """The same for a language model, on text."""
    common, teaching = config.pretraining, config.teaching
    teachers = [
        text_start(dataclasses.replace(common, model=folder), rundir) for folder in (common.model, *teaching.others)
    ]
    first = stage(rundir, "teacher", lambda: assessed(common, teachers[0], rundir))
    _tell(first["row"]["metrics"], {})
    mixture = text_mixture(common, read_sources(common), teachers[0], rundir)
    some = partial(first_rows, batches(mixture, common.fit.batch_size, common.seed), common.fit.batch_size)
    rows: list[dict[str, Any]] = [{"method": "teacher", **first["row"]}]
    runs, texts = {}, [{"prompt": f"teacher: {each['prompt']}", "text": each["text"]} for each in first["texts"]]
    for name, model, folder, is_taught in _students(teaching, teachers[0], some, rundir, common.seed):
        taught = taught_by(teachers, teaching, common.fit, folder, common.seed) if is_taught else None
        done = pretrained(dataclasses.replace(common, model=model), folder, taught)
        rows.append({"method": name, **done.row})
        runs[name] = done.training
        texts += [{"prompt": f"{name}: {each['prompt']}", "text": each["text"]} for each in done.texts]
    metric = next(iter(first["row"]["metrics"]))
    about = {"title": f"Limbeck: {rundir.name}, distilled on text", "metric": metric, "texts": texts}
    return _report(rundir, rows, runs, common.seed, about)


def teacher_of(at: Setting, folder: str) -> Start:
    """The model of a folder as a task's teacher. Raises UserError where its head is not the task's."""
    config = at.config
    start = begin(folder, at.rundir, [], vocab_size=config.vocab_size, max_len=config.max_len, seed=config.seed)
    expected = labels_of(at)
    if start.config.labels != expected:
        has, needs = (", ".join(labels[:5]) or "none" for labels in (start.config.labels, expected))
        raise UserError(
            f"the teacher {folder} has a head for: {has}; task {at.task.name!r} needs one for: {needs}: "
            "tune it for the task first"
        )
    return start


def _measured(at: Setting, teacher: Start) -> dict[str, Any]:
    """The teacher's row and answers, and what it comes to on the validation split."""
    return {**tested(at, teacher, teacher.params), "validation": evaluation(at, teacher)(teacher.params).metrics}


def _tell(metrics: Mapping[str, Any], validation: Mapping[str, float]) -> None:
    """A teacher that is wrong is known before its students are trained."""
    found = {name: score["value"] for name, score in metrics.items()} | dict(validation)
    print("the teacher: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), file=sys.stderr)


def _students(
    config: TeachingConfig, teacher: Start, some: Callable[[int], Sequence[Batch]], rundir: Path, seed: int
) -> Iterator[tuple[str, str, Path, bool]]:
    """(name, the folder that it starts from, the folder of its training, whether it is taught) of each student."""
    for name, student in config.students().items():
        folder = rundir / name
        folder.mkdir(exist_ok=True)
        model = student_folder(student, teacher, some, folder, seed)
        for way in ("distilled", "alone") if config.control else ("distilled",):
            (folder / way).mkdir(exist_ok=True)
            yield name.replace("student", way), model, folder / way, way == "distilled"


def _report(
    rundir: Path, rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Any], seed: int, about: Mapping[str, Any]
) -> int:
    data = {
        **provenance(rundir, seed),
        "seconds": sum(training["train_seconds"] for training in runs.values()),
        "rows": list(rows),
        "curves": {name: training["curve"] for name, training in runs.items()},
        "evaluations": {
            name: [{k: v for k, v in each.items() if k != "texts"} for each in training["evaluations"]]
            for name, training in runs.items()
        },
        **about,
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"the students are in {rundir}, the report is {rundir / 'report.html'}")
    return 0
