"""One model adapted to one task in every way: prompted, by a searched prompt, tuned, distilled; and one advice."""

import dataclasses
import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from limbeck.evaluation.asked import write_asked
from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.bias.built_in import load_pairs, probe
from limbeck.evaluation.bias.rows import told
from limbeck.evaluation.comparison import advice, break_even_table
from limbeck.evaluation.paired import paired_difference
from limbeck.evaluation.prompted import prompted, together
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.adaptation_config import AdaptationConfig
from limbeck.experiments.answering import Setting, answerable, rows_of, setting
from limbeck.experiments.cards import tell_bias
from limbeck.experiments.distillation import taught_students, teacher_of
from limbeck.experiments.machine import provenance
from limbeck.experiments.rundir import stage, stage_seconds
from limbeck.experiments.searching import about_search, found_prompt, searched, worth
from limbeck.experiments.start import begin
from limbeck.experiments.teaching import check_written, start_flops
from limbeck.experiments.tuning import Tuned, tuned
from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError, one_of
from limbeck.model.flops import forward_flops
from limbeck.model.pretrained import load_pretrained
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import answer_tokens
from limbeck.prompting.prompts import scored
from limbeck.prompting.search import showable
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.task import Task
from limbeck.train.methods import METHODS

_SEARCHED, _ENSEMBLE = "searched_prompt", "ensemble"
_VIRTUAL = ("prompt", "p_tuning", "prefix")  # ways of tuning with virtual tokens before every text


def run(config: AdaptationConfig, rundir: Path) -> int:
    """Prompts, tunes and distils, measures all on the same test records, and says what to take; exit status 0."""
    at, engine, too_long = _begin(config, rundir)
    task = at.task
    prompts = {name: _named(task, each) for name, each in config.prompts(scored(task, config.prompt)).items()}
    rows, answers, curves, folders = {}, {}, {}, {}
    found: dict[str, Any] = {}
    if config.search.candidates:
        most = prompts[next(name for name in ("few_shot", "one_shot", "zero_shot") if name in prompts)]
        find = partial(searched, config.search, task, engine, most, rundir / "search", at.config.seed)
        found = stage(rundir, "search", find)
        prompts[_SEARCHED] = found_prompt(found)
    for name, prompt in prompts.items():
        ask = partial(prompted, count=config.variants, records=config.spread_records, seed=at.config.seed)
        done = stage(rundir, name, partial(ask, rundir, task, engine, name, prompt))
        spent = {"train_seconds": 0.0, "train_flops": 0.0}
        rows[name], answers[name] = {**done["row"], **spent, "params_trainable": 0}, done["answers"]
    if found:
        rows[_SEARCHED] |= {"train_seconds": found["seconds"], "train_flops": found["flops"]}
    untrained = set(prompts)
    if len(prompts) > 1:
        done = stage(rundir, _ENSEMBLE, partial(together, rundir, task, {name: rows[name] for name in prompts}))
        rows[_ENSEMBLE], answers[_ENSEMBLE] = done["row"], done["answers"]
        untrained.add(_ENSEMBLE)
    for way in config.ways:
        folder = _made(rundir / way)
        done = tuned(dataclasses.replace(at.config, tuning=way), folder, task=task)
        rows[way], answers[way], curves[way] = _trained(done), done.answers, done.training["curve"]
        folders[way] = folder
    seconds = sum(row["train_seconds"] for name, row in rows.items() if name != _ENSEMBLE)  # its members' own
    if config.students:
        fit = config.student_fit or at.config.fit
        writing = forward_flops(engine.config, engine.params, config.teaching.transfer_tokens, fit.length / 2)
        for name, folder, done, start in _students(config, at, rundir):
            rows[name], answers[name], curves[name] = _trained(done), done.answers, done.training["curve"]
            # A student's way begins with its teacher's training, with what the teacher writes, and with its own start.
            teacher, written = rows[config.ways[-1]], stage_seconds(rundir / "students", "written", "transfer_set")
            made = stage_seconds(folder.parent, "start")
            seconds += made + done.row["train_seconds"]
            rows[name]["train_seconds"] += teacher["train_seconds"] + written + made
            rows[name]["train_flops"] += teacher["train_flops"] + writing + start
            folders[name] = folder
        seconds += stage_seconds(rundir / "students", "written", "transfer_set")
    for name in rows.keys() - prompts.keys():
        said = zip(task.splits["test"], answers[name], strict=True)
        told = ({"id": record["id"], "answer": answer, "right": task.answer(record)} for record, answer in said)
        write_asked(rundir, name, task.metric, told, rows[name].get("prompt"))
    best = _best(rows, task)
    worths = {name: worth(task, answers[name], task.splits["test"]) for name in rows}
    for name, row in rows.items():
        if name != best:
            found_N = paired_difference(worths[name], worths[best])
            row["difference"] = {"value": found_N.value, "ci95": list(found_N.ci95), "n": found_N.n}
    probes = stage(rundir, "bias", partial(_probed, engine, {} if at.head else folders))
    for name, folder in ({} if at.head else folders).items():
        tell_bias(folder / "model", name, probes)
    for name, row in rows.items():
        row["stereotyped"] = probes["stereotyped"].get("base" if name in untrained else name)  # a head writes nothing
    table = [{"method": name, **row} for name, row in rows.items()]
    words = advice(table, task.metric)
    cheap, tuned_ways = _best({name: rows[name] for name in prompts}, task), list(config.ways)
    students = [name for name in rows if name not in untrained and name not in tuned_ways]
    pairs = [(cheap, way) for way in tuned_ways] + [(tuned_ways[-1], name) for name in students]
    about = about_search(found, prompts[_SEARCHED], float(np.mean(worths[_SEARCHED]))) if found else []
    data = {
        "title": f"Limbeck: {task.name}, adapted in {len(rows)} ways",
        **provenance(rundir, at.config.seed),
        "seconds": seconds,
        "task": {"name": task.name, "train": len(task.splits["train"]), "test": len(task.splits["test"])},
        "facts": [["advice", words], *about_dropped(rows), *about],
        "metric": task.metric,
        "rows": table + stage(rundir, "baselines", lambda: baselines(task)),
        "break_even": break_even_table(table, pairs),
        "curves": curves,
        "bias": probes["rows"],
        "bias_differences": probes["differences"],
        "skipped": [*task.skipped, *too_long],
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"`limbeck report {rundir} --record 17` shows one record; the report is {rundir / 'report.html'}")
    return 0


def _begin(config: AdaptationConfig, rundir: Path) -> tuple[Setting, Engine, list[str]]:
    common = config.tuning
    for way in config.ways:
        one_of("way of tuning", way, METHODS)
    at = setting(common, rundir)
    if config.students:
        check_written(config.teaching, at)
    queries = [at.task.query(record) for record in at.task.splits["train"]]
    base = begin(
        common.model, rundir, queries, vocab_size=common.vocab_size, max_len=common.max_len, seed=common.seed
    )
    virtual = common.method.length if any(way in _VIRTUAL for way in config.ways) else 0
    prompts = [config.prompt, *([PromptConfig()] if config.ways else [])]  # what is tuned is asked plainly
    new_tokens = max(answer_tokens(at.task, base.tokenizer, prompt) for prompt in prompts)
    at, too_long = answerable(at, base, virtual + new_tokens)  # every way answers the same records
    fits = [*([common.fit] if config.ways else []), *([config.student_fit] if config.students else [])]
    for fit in filter(None, fits):  # a record that is too long for a row stops here, before hours of prompting
        for split in ("train", "validation"):
            rows_of(at._replace(config=dataclasses.replace(common, fit=fit)), split, base)
    return at, Engine(base.config, base.params, base.tokenizer), too_long


def _named(task: Task, prompt: PromptConfig) -> PromptConfig:
    """The prompt with its fixed examples by name: the first of some that no test record is among."""
    if prompt.pick != "fixed" or prompt.examples or not prompt.shots or task.group_field:
        return prompt
    ids = showable(task, prompt)
    if len(ids) < prompt.shots:
        raise UserError(
            f"{prompt.shots} shots: {len(ids)} training records have queries of their own, that stand in no other "
            "split; ask for that many at most"
        )
    random.Random(prompt.seed).shuffle(ids)
    return dataclasses.replace(prompt, examples=tuple(ids[: prompt.shots]))


def about_dropped(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """How many examples did not fit their prompts, if any."""
    dropped = [f"{name} {count:,}" for name, row in rows.items() if (count := row.get("dropped_examples", 0))]
    return [["examples that did not fit", ", ".join(dropped)]] if dropped else []


def _students(config: AdaptationConfig, at: Setting, rundir: Path) -> Iterator[tuple[str, Path, Tuned, float]]:
    """(name, folder, what came of it, FLOPs of making its start) of each student of the last way of tuning's model."""
    folder = _made(rundir / "students")
    teacher = str(rundir / config.ways[-1] / "model")
    fit = config.student_fit or at.config.fit
    own = at._replace(config=dataclasses.replace(at.config, model=teacher, tuning="full", fit=fit), rundir=folder)
    teachers = [teacher_of(own, each) for each in (teacher, *config.teaching.others)]
    students = config.teaching.students()
    for name, made, _, done in taught_students(own, teachers, config.teaching):
        yield name, made, done, start_flops(students[made.parent.name], teachers[0].config, fit)


def _trained(done: Tuned) -> dict[str, Any]:
    """Its row, with the FLOPs of the steps that were run: patience may have ended it early."""
    steps, _ = done.training["curve"][-1]
    return {**done.row, "train_flops": done.row["flops_per_step"] * steps}


def _probed(base: Engine, folders: Mapping[str, Path]) -> dict[str, Any]:
    """The bias probes of the base and of the models in these folders, loaded one after another."""
    pairs = load_pairs()
    found = {"base": probe(base, pairs)}
    found |= {name: probe(_engine(folder), pairs) for name, folder in folders.items()}
    share = {name: next(row for row in rows if row.probe == "stereotype_preference") for name, rows in found.items()}
    stereotyped = {name: {"value": row.value, "ci95": list(row.ci95), "n": row.n} for name, row in share.items()}
    return {"stereotyped": stereotyped, "rows": told(found), "differences": []}


def _best(rows: Mapping[str, Mapping[str, Any]], task: Task) -> str:
    sign = 1 if METRICS[task.metric].higher_is_better else -1
    return max(rows, key=lambda name: sign * rows[name]["metrics"][task.metric]["value"])


def _engine(folder: Path) -> Engine:
    model = load_pretrained(folder / "model")
    assert model.tokenizer is not None
    return Engine(model.config, model.params, model.tokenizer)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
