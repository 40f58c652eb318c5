"""One model adapted to one task in every way: prompted, by a searched prompt, tuned, distilled; and one advice."""

import dataclasses
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from limbeck.evaluation import bias
from limbeck.evaluation.asked import write_asked
from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.comparison import advice, break_even_table
from limbeck.evaluation.measure import measure
from limbeck.evaluation.paired import paired_difference
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.adaptation_config import AdaptationConfig
from limbeck.experiments.answering import Setting, answerable, rows_of, setting
from limbeck.experiments.distillation import taught_students, teacher_of
from limbeck.experiments.machine import provenance
from limbeck.experiments.rundir import stage, stage_seconds
from limbeck.experiments.start import begin
from limbeck.experiments.teaching import check_written
from limbeck.experiments.tuning import Tuned, tuned
from limbeck.inference.engine import Engine
from limbeck.model.errors import UserError, one_of
from limbeck.model.flops import forward_flops
from limbeck.model.pretrained import load_pretrained
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.predict import answer_tokens, predict
from limbeck.prompting.prompts import scored
from limbeck.prompting.proposals import proposer
from limbeck.prompting.search import candidates, search, showable
from limbeck.prompting.sensitivity import spread, variants
from limbeck.prompting.tries import Measured
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.number_metrics import number
from limbeck.tasks.task import Record, Task
from limbeck.train.config import FitConfig
from limbeck.train.methods import METHODS

_SEARCHED = "searched_prompt"
_VIRTUAL = ("prompt", "p_tuning", "prefix")  # ways of tuning with virtual tokens before every text
# By what one record's answer is worth something, of metrics that are no mean over records.
_CORPUS: dict[str, str] = dict.fromkeys(("macro_f1", "matthews", "micro_f1", "label_macro_f1"), "accuracy")


def run(config: AdaptationConfig, rundir: Path) -> int:
    """Prompts, tunes and distils, measures all on the same test records, and says what to take; exit status 0."""
    at, engine, too_long = _begin(config, rundir)
    task = at.task
    prompts = {name: _named(task, each) for name, each in config.prompts(scored(task, config.prompt)).items()}
    rows, answers, curves, folders = {}, {}, {}, {}
    found: dict[str, Any] = {}
    if config.search.candidates:
        most = prompts[next(name for name in ("few_shot", "one_shot", "zero_shot") if name in prompts)]
        found = stage(rundir, "search", partial(_searched, config, at, engine, most))
        prompts[_SEARCHED] = PromptConfig(**{name: _tuples(value) for name, value in found["prompt"].items()})
    for name, prompt in prompts.items():
        done = stage(rundir, name, partial(_prompted, config, at, engine, name, prompt))
        spent = {"train_seconds": 0.0, "train_flops": 0.0}
        rows[name], answers[name] = {**done["row"], **spent, "params_trainable": 0}, done["answers"]
    if found:
        rows[_SEARCHED] |= {"train_seconds": found["seconds"], "train_flops": found["flops"]}
    for way in config.ways:
        folder = _made(rundir / way)
        done = tuned(dataclasses.replace(at.config, tuning=way), folder, task=task)
        rows[way], answers[way], curves[way] = _trained(done, at.config.fit), done.answers, done.training["curve"]
        folders[way] = folder
    seconds = sum(row["train_seconds"] for row in rows.values())
    if config.students:
        for name, folder, done in _students(config, at, rundir):
            fit = config.student_fit or at.config.fit
            rows[name], answers[name], curves[name] = _trained(done, fit), done.answers, done.training["curve"]
            seconds += done.row["train_seconds"]
            # A student's way begins with its teacher's training, and with what the teacher writes.
            writing = {"train_seconds": stage_seconds(rundir / "students", "written", "transfer_set")}
            if config.teaching.transfer_tokens:
                tokens, context = config.teaching.transfer_tokens, fit.length / 2
                writing["train_flops"] = forward_flops(engine.config, engine.params, tokens, context)
            for cost in ("train_seconds", "train_flops"):
                rows[name][cost] += rows[config.ways[-1]][cost] + writing.get(cost, 0.0)
            folders[name] = folder
    for name in rows.keys() - prompts.keys():
        said = zip(task.splits["test"], answers[name], strict=True)
        told = ({"id": record["id"], "answer": answer, "right": task.answer(record)} for record, answer in said)
        write_asked(rundir, name, told)
    best = _best(rows, task)
    worth = {name: _worth(task, answers[name], task.splits["test"]) for name in rows}
    for name, row in rows.items():
        if name != best:
            found_N = paired_difference(worth[name], worth[best])
            row["difference"] = {"value": found_N.value, "ci95": list(found_N.ci95), "n": found_N.n}
    probes = stage(rundir, "bias", partial(_probed, engine, {} if at.head else folders))
    for name, row in rows.items():
        row["stereotyped"] = probes["stereotyped"].get("base" if name in prompts else name)  # a head writes nothing
    table = [{"method": name, **row} for name, row in rows.items()]
    words = advice(table, task.metric)
    cheap, tuned_ways = _best({name: rows[name] for name in prompts}, task), list(config.ways)
    students = [name for name in rows if name not in prompts and name not in tuned_ways]
    pairs = [(cheap, way) for way in tuned_ways] + [(tuned_ways[-1], name) for name in students]
    searched = _about_search(found, float(np.mean(worth[_SEARCHED]))) if found else []
    data = {
        "title": f"Limbeck: {task.name}, adapted in {len(rows)} ways",
        **provenance(rundir, at.config.seed),
        "seconds": seconds,
        "task": {"name": task.name, "train": len(task.splits["train"]), "test": len(task.splits["test"])},
        "facts": [["advice", words], *about_dropped(rows), *searched],
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
    new_tokens = max(answer_tokens(at.task, base.tokenizer, prompt) for prompt in (PromptConfig(), config.prompt))
    at, too_long = answerable(at, base, virtual + new_tokens)  # every way answers the same records
    fits = [*([common.fit] if config.ways else []), *([config.student_fit] if config.students else [])]
    for fit in filter(None, fits):  # a record that is too long for a row stops here, before hours of prompting
        for split in ("train", "validation"):
            rows_of(at._replace(config=dataclasses.replace(common, fit=fit)), split, base)
    return at, Engine(base.config, base.params, base.tokenizer), too_long


def _prompted(
    config: AdaptationConfig, at: Setting, engine: Engine, name: str, prompt: PromptConfig
) -> dict[str, Any]:
    """{"row", "answers"} of one prompt; its row says too how far prompts that mean the same lie apart."""
    task, test = at.task, at.task.splits["test"]
    row, said = measure(task, engine, test, prompt)
    write_asked(at.rundir, name, [each._asdict() for each in said.asked])
    some = np.random.default_rng(at.config.seed).permutation(len(test))[: config.spread_records]
    part = [test[i] for i in sorted(some)]
    right, scores = [task.answer(record) for record in part], []
    for other in variants(task, prompt, config.variants, at.config.seed):
        try:
            found = predict(task, engine, part, other)
        except UserError as error:  # the prompt itself went through: this form of it is too long, say
            print(f"{name}: a variant is left out: {error}", file=sys.stderr)
            continue
        scores.append(METRICS[task.metric].score(found.answers, right).value)
    apart = {"spread": spread(scores)._asdict()} if len(scores) > 1 else {}
    return {"row": {**row, **apart}, "answers": list(said.answers)}


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


def _searched(config: AdaptationConfig, at: Setting, engine: Engine, prompt: PromptConfig) -> dict[str, Any]:
    """The prompt that does best on the validation split, what was tried and what that took."""
    task, how, seed = at.task, config.search, at.config.seed
    validation = task.splits["validation"]

    def evaluate(tried: PromptConfig, records: Sequence[Record]) -> Measured:
        run_before = engine.tokens_run
        said = predict(task, engine, records, tried)
        return Measured(tuple(_worth(task, said.answers, records)), engine.tokens_run - run_before)

    start = time.perf_counter()
    given = candidates(task, prompt, how.candidates, seed, how.instructions)
    propose = proposer(engine, task, how.proposer, seed=seed) if how.proposer else None
    budget = int(how.passes * len(validation))
    found = search(given, evaluate, validation, budget=budget, how=how.how, seed=seed, propose=propose)
    tokens = found.tokens + found.proposing_tokens
    return {
        "prompt": dataclasses.asdict(found.config),
        "validation": found.quality,
        "unoptimised": found.unoptimised,
        "records": found.records,
        "tokens": tokens,
        "tried": [{**each._asdict(), "config": dataclasses.asdict(each.config)} for each in found.tries],
        "seconds": time.perf_counter() - start,
        "flops": forward_flops(engine.config, engine.params, tokens, engine.config.max_len / 4),
    }


def about_dropped(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """How many examples did not fit their prompts, if any."""
    dropped = [f"{name} {count:,}" for name, row in rows.items() if (count := row.get("dropped_examples", 0))]
    return [["examples that did not fit", ", ".join(dropped)]] if dropped else []


def _about_search(found: Mapping[str, Any], test: float) -> list[list[str]]:
    """What was found, and by how much; `test` is the mean worth of its answers to the test split."""
    changed = [
        f"{name} {value!r}"
        for name, value in found["prompt"].items()
        if _tuples(value) != getattr(PromptConfig(), name)
    ]
    return [
        ["searched prompt", ", ".join(changed) or "the one that it began with"],
        [
            "search",
            f"{len(found['tried'])} prompts, {found['records']:,} answers, {found['tokens']:,} tokens; on validation "
            f"{found['validation']:.3f} (the first prompt {found['unoptimised']:.3f}), on test {test:.3f}: validation "
            f"flattered it by {found['validation'] - test:+.3f}",
        ],
    ]


def _students(config: AdaptationConfig, at: Setting, rundir: Path) -> Iterator[tuple[str, Path, Tuned]]:
    """(name, folder, what came of it) of each student of the last way of tuning's model."""
    folder = _made(rundir / "students")
    teacher = str(rundir / config.ways[-1] / "model")
    fit = config.student_fit or at.config.fit
    own = at._replace(config=dataclasses.replace(at.config, model=teacher, tuning="full", fit=fit), rundir=folder)
    teachers = [teacher_of(own, each) for each in (teacher, *config.teaching.others)]
    for name, made, _, done in taught_students(own, teachers, config.teaching):
        yield name, made, done


def _trained(done: Tuned, fit: FitConfig) -> dict[str, Any]:
    return {**done.row, "train_flops": done.row["flops_per_step"] * fit.steps}


def _probed(base: Engine, folders: Mapping[str, Path]) -> dict[str, Any]:
    """The bias probes of the base and of the models in these folders, loaded one after another."""
    pairs = bias.load_pairs()
    found = {"base": bias.probe(base, pairs)}
    found |= {name: bias.probe(_engine(folder), pairs) for name, folder in folders.items()}
    share = {name: next(row for row in rows if row.probe == "stereotype_preference") for name, rows in found.items()}
    stereotyped = {name: {"value": row.value, "ci95": list(row.ci95), "n": row.n} for name, row in share.items()}
    return {"stereotyped": stereotyped, **bias.told(found)}


def _best(rows: Mapping[str, Mapping[str, Any]], task: Task) -> str:
    sign = 1 if METRICS[task.metric].higher_is_better else -1
    return max(rows, key=lambda name: sign * rows[name]["metrics"][task.metric]["value"])


def _worth(task: Task, said: Sequence[str], records: Sequence[Record]) -> list[float]:
    """What each record's answer is worth; more is better.

    Of a number it is the squared error, negative; what is no number is as far off as the training split has answers.
    """
    if task.kind == "regression":
        seen = [task.number(record) for record in task.splits["train"]]
        low, high, rights = min(seen), max(seen), [task.number(record) for record in records]
        worst = [max(abs(right - low), abs(right - high), 1.0) for right in rights]
        read = [number(answer) for answer in said]
        triples = zip(read, rights, worst, strict=True)
        return [-((most if told is None else told - right) ** 2) for told, right, most in triples]
    metric = METRICS[_CORPUS.get(task.metric, task.metric)]
    sign = 1 if metric.higher_is_better else -1
    pairs = zip(said, records, strict=True)
    return [sign * metric.score([answer], [task.answer(record)]).value for answer, record in pairs]


def _engine(folder: Path) -> Engine:
    model = load_pretrained(folder / "model")
    assert model.tokenizer is not None
    return Engine(model.config, model.params, model.tokenizer)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
