"""The lesson: one foundation model pretrained, prompted, tuned, distilled, run in bulk, probed for bias, reported.

Every stage leaves its result in the run's folder and is not computed again, so a run that was killed goes on where
it was: `models/<name>` holds what training made, `stages/<name>.json` what a stage measured.
"""

import dataclasses
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from limbeck.distill.teacher import STUDENT, distillation_loss, with_teacher, without_teacher
from limbeck.distill.transfer_set import write_transfer_set
from limbeck.evaluation import bias
from limbeck.evaluation.baseline import tfidf_logistic
from limbeck.evaluation.comparison import break_even_table
from limbeck.evaluation.measure import measure
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.claims import lesson_claims
from limbeck.experiments.lesson_config import LessonConfig
from limbeck.experiments.offline import ambiguity, bulk_and_lookup
from limbeck.experiments.rundir import MetricsLog, versions
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.files import write_atomic
from limbeck.model.flops import step_flops
from limbeck.model.params import Params, count, digest, join, merge
from limbeck.model.pretrained import load_pretrained, save_pretrained
from limbeck.model.tokenizer import Tokenizer, load_tokenizer, train_bpe
from limbeck.model.transformer import init
from limbeck.prompting.demonstrations import choose
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Record, Task
from limbeck.tasks.world import corpus
from limbeck.train.adapters import add_lora
from limbeck.train.config import FitConfig
from limbeck.train.data import Example, batches, chunked, completions, documents, mixture, pack
from limbeck.train.loop import fit
from limbeck.train.loss import Batch, LossFn, token_loss
from limbeck.train.optim import make_optimizer, optimizer_bytes
from limbeck.train.select import Selection, apply_selection, bias_norm, describe, last_blocks, lora_only, moved

PROMPTED = ("zero_shot", "one_shot", "few_shot")
TRAINED = ("full", "lora", "bias_norm", "last_block", "distilled", "student_alone")


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What every stage needs."""

    config: LessonConfig
    folder: Path
    task: Task
    tokenizer: Tokenizer
    foundation: list[Example]  # the foundation's text
    log: Callable[[dict], None]

    def stage(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stage's result, from its file if an earlier run got that far."""
        path = self.folder / "stages" / f"{name}.json"
        if not path.exists():
            start = time.perf_counter()
            result = compute()
            path.parent.mkdir(exist_ok=True)
            record = {"seconds": time.perf_counter() - start, "result": result}
            write_atomic(path, json.dumps(record, ensure_ascii=False, indent=1))
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def engine(self, name: str) -> Engine:
        """The trained model of that name, ready to answer."""
        model = load_pretrained(self.folder / "models" / name)
        return Engine(model.config, model.params, self.tokenizer)


def run(config: LessonConfig, rundir: Path) -> int:
    """All stages in order; exit status 1 if a claim does not hold."""
    lesson = prepare(config, rundir)
    base_config = dataclasses.replace(config.base, vocab_size=lesson.tokenizer.vocab_size)
    student_config = dataclasses.replace(config.student, vocab_size=lesson.tokenizer.vocab_size)
    training = {
        "base": _train(
            lesson,
            "base",
            base_config,
            lambda: init(base_config, jax.random.key(config.seed)),
            config.pretrain,
            _stream(lesson, config.pretrain, task_share=0.0),
        )
    }
    base = lesson.engine("base")
    digest_before = digest(base.params)
    results = {
        name: _measured(lesson, name, base, shots)
        for name, shots in zip(PROMPTED, (0, 1, config.shots), strict=True)
    }
    unsure = lesson.stage("ambiguity", lambda: ambiguity(lesson.task, base, config.shots))
    digest_after = digest(base.params)

    def lora_params() -> Params:
        key = jax.random.key(config.seed)
        return add_lora(base.params, key, rank=config.lora_rank, targets=config.lora_targets)

    for name, start_from, settings, selection in (
        ("full", lambda: base.params, config.full, Selection()),
        ("lora", lora_params, config.lora, lora_only()),
        ("bias_norm", lambda: base.params, config.bias_norm, bias_norm()),
        ("last_block", lambda: base.params, config.last_block, last_blocks(base_config.depth)),
    ):
        stream = _stream(lesson, settings, task_share=1.0)
        training[name] = _train(lesson, name, base_config, start_from, settings, stream, selection)
        results[name] = _measured(lesson, name, lesson.engine(name), 0)

    teacher = lesson.engine("full")
    written = lesson.stage("transfer_set", lambda: _transfer_set(lesson, teacher))
    loss_fn = distillation_loss(
        student_config,
        base_config,
        config.distil_objective,
        temperature=config.distil_temperature,
        hard_weight=config.distil_hard_weight,
    )

    def student() -> Params:
        return init(student_config, jax.random.key(config.seed))

    training["distilled"] = _train(
        lesson,
        "distilled",
        student_config,
        lambda: with_teacher(student(), teacher.params),
        config.distil,
        _stream(lesson, config.distil, config.distil_task_share, written["records"]),
        STUDENT,
        loss_fn,
    )
    stream = _stream(lesson, config.distil, config.distil_task_share)
    training["student_alone"] = _train(lesson, "student_alone", student_config, student, config.distil, stream)
    for name in ("distilled", "student_alone"):
        results[name] = _measured(lesson, name, lesson.engine(name), 0)
    # A student's way begins with its teacher's.
    training["distilled"]["train_seconds"] += training["full"]["train_seconds"] + written["seconds"]
    training["distilled"]["train_flops"] += training["full"]["train_flops"]

    offline = lesson.stage("offline", lambda: bulk_and_lookup(lesson.task, teacher, rundir / "predictions.db"))
    probes = lesson.stage("bias", lambda: _probe(lesson))
    rows = [_row(name, results[name], training) for name in PROMPTED + TRAINED]
    if lesson.task.options is not None:
        rows.append({"method": "tfidf_logistic", **lesson.stage("tfidf_logistic", lambda: tfidf_logistic(lesson.task))})
    claims = lesson_claims(rows, training, offline, probes, unsure, digest_before == digest_after)
    seconds = _seconds(rundir)
    data = {
        "title": f"Limbeck: {lesson.task.name}, adapted in every way",
        "command": (rundir / "command.txt").read_text(encoding="utf-8").splitlines()[-1],
        "seed": config.seed,
        "seconds": seconds,
        "machine": machine(),
        "versions": versions(),
        "task": _about(lesson),
        "rows": rows,
        "claims": claims,
        "curves": {"pretrain" if name == "base" else name: stage["curve"] for name, stage in training.items()},
        "ambiguity": unsure.get("apple"),
        "break_even": break_even_table(rows),
        "bias": probes["rows"],
        "bias_differences": probes["differences"],
        "offline": offline,
        "samples": _samples(lesson, results),
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"{seconds:.0f} s; the report is {rundir / 'report.html'}")
    return 0 if all(claim["holds"] for claim in claims) else 1


def prepare(config: LessonConfig, rundir: Path) -> Lesson:
    """The task, the foundation's text and a tokenizer learned from it."""
    task = load_task(config.task)
    texts = list(corpus(config.seed, config.documents))
    if task.name != "world":
        # A foundation has read text like the user's, but none of the answers.
        texts += [task.query(record) for record in task.splits["train"]]
    path = rundir / "tokenizer.json"
    if not path.exists():
        train_bpe(texts, config.base.vocab_size, line_prefix=True).save(path)
    tokenizer = load_tokenizer(path)
    return Lesson(config, rundir, task, tokenizer, documents(texts, tokenizer), MetricsLog(rundir).append)


def _transfer_set(lesson: Lesson, teacher: Engine) -> dict[str, Any]:
    start = time.perf_counter()
    records = write_transfer_set(lesson.task, teacher, lesson.config.transfer_tokens, lesson.config.seed)
    return {"records": records, "seconds": time.perf_counter() - start}


def _stream(
    lesson: Lesson, settings: FitConfig, task_share: float, written: Sequence[Record] = ()
) -> Callable[[int], Batch]:
    """Batches of foundation text and of task examples, the training split and the `written`; their share is given."""
    of_task = round(task_share * settings.batch_size)
    of_text = settings.batch_size - of_task
    seed, length, streams = lesson.config.seed, settings.length, []
    if of_task:
        examples = completions(lesson.task, [*lesson.task.splits["train"], *written], lesson.tokenizer)
        length = max(length, max(len(example.ids) - 1 for example in examples))  # no answer is cut
        streams.append(batches(pack(examples, length), of_task, seed))
    if of_text:
        streams.append(batches(pack(chunked(lesson.foundation, length), length), of_text, seed))
    return mixture(*streams)


def _train(
    lesson: Lesson,
    name: str,
    model: ModelConfig,
    start_from: Callable[[], Params],
    settings: FitConfig,
    stream: Callable[[int], Batch],
    selection: Selection = Selection(),
    loss_fn: LossFn | None = None,
) -> dict[str, Any]:
    """Trains and saves `models/<name>`; returns what the training cost and what it moved."""

    def compute() -> dict[str, Any]:
        params = start_from()
        trainable, frozen = apply_selection(selection, params)
        print(f"{name}: {describe(trainable, frozen)}", file=sys.stderr)
        checkpoints = lesson.folder / "checkpoints" / name
        fitted = fit(
            loss_fn or token_loss(model),
            params,
            stream,
            settings,
            selection=selection,
            seed=lesson.config.seed,
            name=name,
            checkpoints=checkpoints,
            log=lesson.log,
        )
        final = without_teacher(join(merge(fitted.trainable, fitted.frozen)))
        save_pretrained(lesson.folder / "models" / name, model, final, lesson.tokenizer)
        shutil.rmtree(checkpoints, ignore_errors=True)
        rows, length = stream(0)["tokens_BT"].shape
        per_step = step_flops(model, trainable, without_teacher(frozen), rows * length, length / 2)
        by_leaf = moved(apply_selection(selection, params)[0], fitted.trainable)
        still = moved(without_teacher(frozen), without_teacher(fitted.frozen))
        return {
            "params_trainable": count(trainable),
            "train_seconds": fitted.seconds,
            "optimizer_bytes": optimizer_bytes(make_optimizer(settings.optim, settings.steps), trainable),
            "flops_per_step": per_step,
            "train_flops": per_step * settings.steps,
            "leaves_moved": sorted(path for path, changed in by_leaf.items() if changed),
            "leaves_unmoved": sorted(path for path, changed in by_leaf.items() if not changed),
            "frozen_moved": sorted(path for path, changed in still.items() if changed),
            "frozen_leaves": len(still),
            "curve": fitted.curve,
        }

    return lesson.stage(f"train_{name}", compute)


def _measured(lesson: Lesson, name: str, engine: Engine, shots: int) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        test = lesson.task.splits["test"]
        row, predictions = measure(lesson.task, engine, test, shots, lesson.config.seed)
        return {"row": row, "answers": list(predictions.answers)}

    return lesson.stage(name, compute)


def _row(name: str, result: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """What asking measured and what training cost; prompting trains nothing."""
    cost = training.get(name, {})
    spent = ("params_trainable", "train_seconds", "optimizer_bytes", "flops_per_step", "train_flops")
    return {"method": name, **result["row"], **{key: cost.get(key, 0) for key in spent}}


def _probe(lesson: Lesson) -> dict[str, Any]:
    names = {"base": "base", "tuned": "full", "distilled": "distilled", "student alone": "student_alone"}
    measured = {name: bias.probe(lesson.engine(model), bias.load_pairs()) for name, model in names.items()}
    rows = []
    for name, probes in measured.items():
        perplexity = next(row.value for row in probes if row.probe == "perplexity")
        rows += [
            {
                "model": name,
                "probe": row.probe,
                "value": row.value,
                "ci95": list(row.ci95),
                "n": row.n,
                "ideal": row.ideal,
                "note": row.note,
                "perplexity": perplexity,
            }
            for row in probes
            if row.probe != "perplexity"
        ]
    lineage = {name: measured[name] for name in ("base", "tuned", "distilled")}
    differences = [dataclasses.asdict(difference) for difference in bias.compare(lineage)]
    return {"rows": rows, "differences": differences}


def _about(lesson: Lesson) -> dict[str, Any]:
    task = lesson.task
    record = task.splits["test"][0]
    return {
        "name": task.name,
        "train": len(task.splits["train"]),
        "test": len(task.splits["test"]),
        "example_prompt": task.prompt(record, choose(task, record, 2, lesson.config.seed)),
    }


def _samples(lesson: Lesson, results: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    test = lesson.task.splits["test"]
    picked = np.random.default_rng(lesson.config.seed).choice(len(test), min(12, len(test)), replace=False)
    shown = ("zero_shot", "few_shot", "full", "distilled")
    return [
        {
            "input": lesson.task.query(test[i]),
            "answer": lesson.task.answer(test[i]),
            **{name: results[name]["answers"][i] for name in shown},
        }
        for i in sorted(picked)
    ]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def _seconds(rundir: Path) -> float:
    """Seconds of work in all, over all starts of the run."""
    return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in (rundir / "stages").glob("*.json"))
