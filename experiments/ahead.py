"""Answers ahead of time: a model is tuned, a list of queries answered in bulk and stored, live traffic looked up in it.

What is not in the list is asked of the model then. The traffic writes a query as people do, so that it shows what of
it a look-up finds by which normalisation.
"""

import json
import random
import statistics
import time
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from limbeck.evaluation.measure import measured
from limbeck.evaluation.quantities import quantity
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.ahead_config import AheadConfig
from limbeck.experiments.machine import provenance
from limbeck.experiments.predicting import asker, predict
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.rundir import stage
from limbeck.experiments.text_sources import by_content
from limbeck.experiments.tuning import tuned
from limbeck.inference.lookup import NORMALISATIONS, normalise
from limbeck.inference.store import PredictionStore
from limbeck.inference.words import reader
from limbeck.model.errors import UserError
from limbeck.model.files import write_atomic
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields

WAYS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in small letters": str.lower,
    "in capitals": str.upper,
    "with more spaces": lambda text: f" {text.replace(' ', '  ')} ",
    "with letters and marks apart": partial(unicodedata.normalize, "NFD"),
}


class Asked(NamedTuple):
    """A live query: the record that it means, the way in which it is written, and the text."""

    record: Record
    way: str
    text: str


def run(config: AheadConfig, rundir: Path) -> int:
    """Tunes, predicts the list in bulk, compacts, looks the traffic up, reports; exit status 0."""
    done = tuned(config.tuning, rundir)
    task = done.task
    [field] = _asked_fields(task)
    records = [record for split in task.splits.values() for record in split]
    distinct = {record[field]: record for record in records}
    listed, unlisted = by_content(sorted(distinct), str, config.unlisted) if config.unlisted else (list(distinct), [])
    store, serving = rundir / "predictions.db", rundir / "serving.db"
    bulk = stage(rundir, "bulk", lambda: _in_bulk(config, rundir, field, listed, store, serving))
    traffic = _traffic(config, distinct, field)
    found = stage(rundir, "looked_up", lambda: _looked_up(traffic, serving))
    online = stage(rundir, "online", lambda: _online(traffic, serving))
    rules = {name: _found_by(name, listed, traffic) for name in NORMALISATIONS}
    times = 1e3 * online["ms_p50"] / found["us_p50"]
    facts = [
        ("listed, answered in bulk", f"{bulk['rows']:,} of {len(distinct):,} queries in {bulk['seconds']:.1f} s"),
        ("the store for look-ups", quantity(bulk["bytes"], "B")),
        ("live queries", f"{len(traffic):,}, {config.unlisted:.0%} of what they mean is in no list"),
        *((f"found where written {way}", f"{share:.1%}") for way, share in found["coverage"].items()),
        *((f"found by {name}", f"{share:.1%} ({NORMALISATIONS[name]})") for name, share in rules.items()),
        ("a look-up", f"{found['us_p50']:.1f} µs, 99 % below {found['us_p99']:.1f} µs"),
        ("asked of the model", f"{online['ms_p50']:.2f} ms, {times:,.0f} times that"),
    ]
    right = [task.answer(each.record) for each in traffic]
    both = zip(found["answers"], online["answers"], strict=True)
    else_asked = [stored if stored is not None else said for stored, said in both]
    hits = [i for i, said in enumerate(found["answers"]) if said is not None]
    quality = partial(_quality, task.metric, right)
    rows = [
        {
            "method": "looked up, where listed",
            "metrics": quality(found["answers"], hits),
            "latency_ms_p50": found["us_p50"] / 1e3,
            "per_second": 1e6 / found["us_p50"],
            "bytes": bulk["bytes"],
        },
        {
            "method": "asked online",
            "metrics": quality(online["answers"]),
            "latency_ms_p50": online["ms_p50"],
            "per_second": 1e3 / online["ms_p50"],
            "bytes": done.row["bytes"],
        },
        {"method": "looked up, else asked", "metrics": quality(else_asked)},
    ]
    data = {
        "title": f"Limbeck: {task.name}, answered ahead of time",
        **provenance(rundir, config.tuning.seed),
        "seconds": done.training["train_seconds"] + bulk["seconds"],
        "task": {"name": task.name, "train": len(task.splits["train"]), "test": len(task.splits["test"])},
        "metric": task.metric,
        "facts": [list(fact) for fact in facts],
        "rows": [{"method": "tuned, test split", **done.row}, *rows],
        "curves": {"tune": done.training["curve"]},
        "skipped": done.skipped,
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"limbeck serve {serving}; the report is {rundir / 'report.html'}")
    return 0


def _asked_fields(task: Task) -> list[str]:
    names = fields(task.template.query)
    if len(names) != 1 or task.kind not in ("classification", "generation"):
        raise UserError(f"task {task.name!r} asks by {', '.join(names)}: live queries are one text, and answers words")
    return names


def _in_bulk(
    config: AheadConfig, rundir: Path, field: str, listed: list[str], store: Path, serving: Path
) -> dict[str, Any]:
    """The list answered into a store, and the compacted copy for look-ups made of it."""
    queries = rundir / "queries.jsonl"
    lines = (json.dumps({field: text}, ensure_ascii=False) + "\n" for text in listed)
    write_atomic(queries, "".join(lines))
    job = PredictionConfig(
        model=str(rundir / "model"),
        store=str(store),
        task=config.tuning.task,
        description=config.tuning.description,
        input=str(queries),
        normalisation=config.normalisation,
    )
    start = time.perf_counter()
    predict(job)
    seconds = time.perf_counter() - start
    with PredictionStore(store, read_only=True) as opened:
        opened.compact(serving)
        status = opened.status()
    return {"rows": status["rows"], "seconds": seconds, "bytes": serving.stat().st_size}


def _traffic(config: AheadConfig, distinct: Mapping[str, Record], field: str) -> list[Asked]:
    """Queries drawn evenly from all that there are, each written in one of the ways, all ways as often."""
    draw = random.Random(config.tuning.seed)
    texts, ways = sorted(distinct), list(WAYS)
    asked = []
    for number in range(config.traffic):
        text, way = draw.choice(texts), ways[number % len(ways)]
        asked.append(Asked(distinct[text], way, WAYS[way](text)))
    return asked


def _looked_up(traffic: list[Asked], serving: Path) -> dict[str, Any]:
    """The answers that the store has (None: a miss), what share of each way it finds, and how long that takes."""
    answers: list[str | None] = []
    seconds: list[float] = []
    with PredictionStore(serving, read_only=True) as store:
        say = reader(store.manifest)
        for each in traffic:
            start = time.perf_counter()
            payload = store.find(each.text)
            seconds.append(time.perf_counter() - start)
            answers.append(None if payload is None else say(payload))
    seconds.sort()
    pairs = list(zip(answers, traffic, strict=True))
    return {
        "answers": answers,
        "coverage": {way: _share([said is not None for said, each in pairs if each.way == way]) for way in WAYS},
        "us_p50": 1e6 * statistics.median(seconds),
        "us_p99": 1e6 * seconds[int(0.99 * len(seconds))],
    }


def _online(traffic: list[Asked], serving: Path) -> dict[str, Any]:
    """What the model says to each query, one after the other, and how long one takes."""
    with PredictionStore(serving, read_only=True) as store:
        ask, say = asker(store.manifest), reader(store.manifest)
    answers, seconds = [], []
    for each in traffic:
        start = time.perf_counter()
        _, payload = ask(normalise(each.text))
        seconds.append(time.perf_counter() - start)
        answers.append(say(payload))
    return {"answers": answers, "ms_p50": 1e3 * statistics.median(seconds)}


def _found_by(name: str, listed: list[str], traffic: list[Asked]) -> float:
    """The share of the traffic that a store of that normalisation would find."""
    casefold = name == "nfc_casefold"
    known = {normalise(text, casefold) for text in listed}
    return _share([normalise(each.text, casefold) in known for each in traffic])


def _share(found: list[bool]) -> float:
    return sum(found) / len(found) if found else 0.0


def _quality(
    metric: str, right: list[str], said: list[str | None], only: list[int] | None = None
) -> dict[str, dict[str, Any]]:
    places = range(len(right)) if only is None else only
    return {metric: measured(metric, [said[i] or "" for i in places], [right[i] for i in places])}
