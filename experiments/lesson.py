"""The lesson: one foundation model pretrained, prompted, tuned, distilled, run in bulk, probed for bias, reported.

Every stage is computed once (`stages.py`), so a run that was killed goes on where it was.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from limbeck.distill.config import DistilConfig
from limbeck.distill.rows.transfer_set import write_transfer_set
from limbeck.distill.teacher import STUDENT, distillation_loss, with_teacher
from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.bias.built_in import load_pairs, probe
from limbeck.evaluation.bias.mentions import load_group_words
from limbeck.evaluation.bias.rows import changes, told
from limbeck.evaluation.comparison import break_even_table
from limbeck.evaluation.data_audit.audit import audit_task
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.cards import tell_bias, tell_data, tell_quality, train_energy
from limbeck.experiments.claims import lesson_claims
from limbeck.experiments.distillation_set import audited_set
from limbeck.experiments.lesson_config import LessonConfig
from limbeck.experiments.machine import provenance
from limbeck.experiments.offline import ambiguity, bulk_and_lookup
from limbeck.experiments.stages import Lesson, measured, prepare, stream_of, train
from limbeck.experiments.start import Past
from limbeck.inference.engine import Engine
from limbeck.model.params import Params, digest
from limbeck.model.pretrained.lineage import data_of
from limbeck.model.transformer import init
from limbeck.prompting.demonstrations import choose
from limbeck.train.adapters import add_lora
from limbeck.train.select import Selection, bias_norm, last_blocks, lora_only

PROMPTED = ("zero_shot", "one_shot", "few_shot")
PROBED = {"base": "base", "tuned": "full", "distilled": "distilled", "student alone": "student_alone"}
TRAINED = ("full", "lora", "bias_norm", "last_block", "distilled", "student_alone")


def run(config: LessonConfig, rundir: Path) -> int:
    """All stages in order; exit status 1 if a claim does not hold."""
    lesson = prepare(config, rundir)
    base_config = dataclasses.replace(config.base, vocab_size=lesson.tokenizer.vocab_size)
    student_config = dataclasses.replace(config.student, vocab_size=lesson.tokenizer.vocab_size)
    foundation = data_of("the foundation's text", lesson.foundation)
    records = data_of(lesson.task.name, lesson.task.splits["train"])
    training = {
        "base": train(
            lesson,
            "base",
            base_config,
            lambda: init(base_config, jax.random.key(config.seed)),
            config.pretrain,
            stream_of(lesson, config.pretrain, task_share=0.0),
            past=Past(data=(foundation,)),
        )
    }
    base = lesson.engine("base")
    results = {
        name: measured(lesson, name, base, shots)
        for name, shots in zip(PROMPTED, (0, 1, config.shots), strict=True)
    }
    unsure = lesson.stage("ambiguity", lambda: ambiguity(lesson.task, base, config.shots))
    # The digest was taken when the base was trained, before any prompt and maybe in an earlier start of this run.
    base_unmoved = digest(base.params) == training["base"]["digest"]

    def lora_params() -> Params:
        key = jax.random.key(config.seed)
        return add_lora(base.params, key, rank=config.lora_rank, targets=config.lora_targets)

    for name, start_from, settings, selection in (
        ("full", lambda: base.params, config.full, Selection()),
        ("lora", lora_params, config.lora, lora_only()),
        ("bias_norm", lambda: base.params, config.bias_norm, bias_norm()),
        ("last_block", lambda: base.params, config.last_block, last_blocks(base_config.depth)),
    ):
        stream = stream_of(lesson, settings, task_share=1.0)
        past = Past((("base", lesson.lineage("base")),), (records,))
        training[name] = train(lesson, name, base_config, start_from, settings, stream, selection, past=past)
        results[name] = measured(lesson, name, lesson.engine(name), 0)

    teacher = lesson.engine("full")
    written = lesson.stage("transfer_set", lambda: _transfer_set(lesson, teacher))
    if written["records"]:
        how = {"transfer_tokens": config.transfer_tokens}
        audited_set(rundir, lesson.task, written["records"], how, teacher, lesson.lineage("full"))
    how = DistilConfig(
        config.distil_objective, temperature=config.distil_temperature, hard_weight=config.distil_hard_weight
    )
    loss_fn = distillation_loss(student_config, base_config, how)

    def student() -> Params:
        return init(student_config, jax.random.key(config.seed))

    training["distilled"] = train(
        lesson,
        "distilled",
        student_config,
        lambda: with_teacher(student(), teacher.params),
        config.distil,
        stream_of(lesson, config.distil, config.distil_task_share, written["records"]),
        STUDENT,
        loss_fn,
        past=Past(
            (("teacher", lesson.lineage("full")),),
            (foundation, records, data_of("queries that the teacher wrote", written["records"])),
            config.distil_objective,
        ),
    )
    stream, past = stream_of(lesson, config.distil, config.distil_task_share), Past(data=(foundation, records))
    training["student_alone"] = train(
        lesson, "student_alone", student_config, student, config.distil, stream, past=past
    )
    for name in ("distilled", "student_alone"):
        results[name] = measured(lesson, name, lesson.engine(name), 0)
    # A student's way begins with its teacher's.
    training["distilled"]["train_seconds"] += training["full"]["train_seconds"] + written["seconds"]
    training["distilled"]["train_flops"] += training["full"]["train_flops"]

    offline = lesson.stage("offline", lambda: bulk_and_lookup(lesson.task, teacher, rundir / "predictions.db"))
    probes = lesson.stage("bias", lambda: _probe(lesson))
    rows = [_row(name, results[name], training) | _stereotyped(name, probes) for name in PROMPTED + TRAINED]
    for name, row in zip(TRAINED, rows[len(PROMPTED) :], strict=True):
        tell_quality(rundir / "models" / name, lesson.task.name, lesson.task.kind, row)
    audit = lesson.stage("data_audit", lambda: audit_task(lesson.task, words=load_group_words()))
    for name in TRAINED:
        tell_data(rundir / "models" / name, audit)
    for name, model in PROBED.items():
        tell_bias(rundir / "models" / model, name, probes)
    rows += lesson.stage("baselines", lambda: baselines(lesson.task))
    claims = lesson_claims(lesson.task.metric, rows, training, offline, probes, unsure, base_unmoved)
    seconds = _seconds(rundir)
    data = {
        "title": f"Limbeck: {lesson.task.name}, adapted in every way",
        **provenance(rundir, config.seed),
        "seconds": seconds,
        "task": _about(lesson),
        "metric": lesson.task.metric,
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


def _transfer_set(lesson: Lesson, teacher: Engine) -> dict[str, Any]:
    start = time.perf_counter()
    records = write_transfer_set(lesson.task, teacher, lesson.config.transfer_tokens, lesson.config.seed)
    return {"records": records, "seconds": time.perf_counter() - start}


def _row(name: str, result: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """What asking measured and what training cost; prompting trains nothing."""
    cost = training.get(name, {})
    energy = train_energy(cost) if cost else {"train_joules": 0.0}
    spent = ("params_trainable", "train_seconds", "optimizer_bytes", "flops_per_step", "train_flops")
    return {"method": name, **result["row"], **{key: cost.get(key, 0) for key in spent}, **energy}


def _probe(lesson: Lesson) -> dict[str, Any]:
    pairs = load_pairs()
    probes = {name: probe(lesson.engine(model), pairs) for name, model in PROBED.items()}
    edges = [("base", "tuned"), ("tuned", "distilled"), ("student alone", "distilled")]
    return {"rows": told(probes), "differences": changes(probes, edges)}


def _stereotyped(method: str, probes: dict[str, Any]) -> dict[str, Any]:
    """The bias column of a method whose model was probed; prompting asks the base."""
    names = dict.fromkeys(PROMPTED, "base") | {model: name for name, model in PROBED.items()}
    for row in probes["rows"]:
        if row["probe"] == "stereotype_preference" and row["model"] == names.get(method):
            return {"stereotyped": {key: row[key] for key in ("value", "ci95", "n")}}
    return {}


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


def _seconds(rundir: Path) -> float:
    """Seconds of work in all, over all starts of the run."""
    return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in (rundir / "stages").glob("*.json"))
