"""The queries of a prediction job, wherever they come from, line by line; and the line that answers each."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from limbeck.experiments.asking import Asking, asking, record_of
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.inference.agenda import BulkRequest
from limbeck.inference.engine import Engine
from limbeck.inference.inputs import Line, identities, open_input, row_count, texts_of
from limbeck.inference.openai_batch import Defaults, answer_line, is_batch, read_line
from limbeck.inference.requests import Sampling
from limbeck.inference.store import PredictionStore
from limbeck.inference.stored import result_of
from limbeck.model.errors import UserError, one_of
from limbeck.model.progress import progress
from limbeck.prompting.config import PromptConfig
from limbeck.tasks.sources import load_task
from limbeck.tasks.tables import Table, text_of
from limbeck.tasks.task import Record, Task

BATCH = "OpenAI batch"  # the kind of a job whose lines say themselves how they are asked

_PORTION = 1024  # records whose prompts are made together
_MANY = 10_000  # rows whose reading takes long enough for a progress bar

Payload = Mapping[str, Any]


class Source(NamedTuple):
    """What a job reads, before there is a model: a task, rows of an input, whether they are of the batch format."""

    task: Task | None
    table: Table | None
    batch: bool


class Job(NamedTuple):
    """`answer` makes the line of the output of a line, what the store has of its requests, and why it lacks one."""

    manifest: dict[str, str]
    lines: Iterator[Line]
    answer: Callable[[Line, Sequence[Payload | None], str], dict[str, Any]]


class _Item(NamedTuple):
    id: str
    place: str
    record: Record | None
    reason: str = ""


def source(config: PredictionConfig) -> Source:
    """Raises UserError where there is nothing to predict, and for an input or a task that cannot be read."""
    if not config.input and not config.task:
        raise UserError("nothing to predict: give --input, a file of queries, or --task, of which a split is answered")
    table, batch = None, False
    if config.input:
        table = open_input(config.input, config.split)
        rows = iter(table.rows)
        seen = []
        for row in rows:
            seen.append(row)
            if not isinstance(row.content, UserError):
                batch = is_batch(row.content)
                break
        table = Table(table.place, itertools.chain(seen, rows), table.classes)
    if batch and (config.task or config.kind or config.options or config.samples > 1):
        raise UserError(
            f"{config.input} is in the batch format, whose lines say how they are asked: leave out --task, --kind, "
            "--options and --samples"
        )
    task = open_task(config) if config.task else None
    if task and table is None:
        one_of("split", config.split, task.splits)
    return Source(task, table, batch)


def open_task(config: PredictionConfig) -> Task:
    """The task of a config."""
    return load_task(config.task, description=json.loads(config.description) if config.description else None)


def job(config: PredictionConfig, found: Source, engine: Engine, adapter: str) -> Job:
    """Raises UserError for what the task or the model does not allow."""
    hints = {"model": config.model, "adapter": config.adapter, "records": config.task}
    manifest = {name: value for name, value in hints.items() if value}
    if found.batch and found.table is not None:
        return _batch(config, found.table, engine, adapter, manifest)
    how = asking(config, engine, adapter, found.task)
    manifest |= {"job": canonical(how.settings), "options": json.dumps(how.options, ensure_ascii=False)}
    manifest |= {"task": how.task.digest()} if how.task else {}
    if found.table is not None:
        items, total = _of_rows(how, found.table), row_count(config.input)
    elif how.task:
        records = how.task.splits[config.split]
        items, total = _of_records(how.task, records), len(records)
    else:
        items, total = iter(()), 0

    def answer(line: Line, payloads: Sequence[Payload | None], failure: str) -> dict[str, Any]:
        there = [payload for payload in payloads if payload is not None]
        said = {"id": line.id, "query": line.body, "answer": None, "predictions": [], "error": None}
        if line.reason or len(there) < len(payloads):
            return said | {"error": {"message": line.reason or failure or "not predicted"}}
        return said | {"answer": how.read([result_of(payload) for payload in there]), "predictions": there}

    return Job(manifest, _counted(_lines(how, items), total), answer)


def require(store: PredictionStore, manifest: Mapping[str, str]) -> None:
    """Raises UserError unless the store is of the same job, by the name of the setting that differs."""
    mine, its = json.loads(manifest["job"]), json.loads(store.manifest.get("job", "{}"))
    for name in sorted(mine.keys() | its.keys()) if its else ():
        if mine.get(name) != its.get(name):
            plain = {**dataclasses.asdict(PromptConfig()), **dataclasses.asdict(PredictionConfig())}.get(name)
            raise UserError(
                f"{store.path} was made with {name} {its.get(name, plain)}, not {mine.get(name, plain)}: name another "
                "store, or remove this one to predict again"
            )
    store.require({name: value for name, value in manifest.items() if not store.read_only or name in store.manifest})


def canonical(settings: Mapping[str, Any]) -> str:
    """Settings as the one text that a store's manifest compares."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def content_id(texts: Mapping[str, str]) -> str:
    """The id of a record that has none of the task's: by its content, so that its examples are always the same."""
    return "query/" + hashlib.sha256(json.dumps(dict(texts), sort_keys=True).encode()).hexdigest()[:16]


def _batch(config: PredictionConfig, table: Table, engine: Engine, adapter: str, manifest: dict[str, str]) -> Job:
    rest = Sampling(top_k=config.top_k, top_p=config.top_p, min_p=config.min_p, seed=config.seed)
    defaults = Defaults(config.max_new_tokens, config.temperature, rest, config.stop, adapter)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")
    plain = PredictionConfig()
    own = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}
    settings = {"kind": BATCH} | own | ({"adapter_digest": adapter} if adapter else {})
    rows = identities(table.rows, "custom_id")
    lines = (read_line(row, duplicate, engine, defaults) for _, row, duplicate in rows)
    return Job(
        manifest | {"job": canonical(settings), "options": "null"},
        _counted(lines, row_count(config.input)),
        answer_line,
    )


def _of_records(task: Task, records: Sequence[Record]) -> Iterator[_Item]:
    return (_Item(record["id"], task.place(record), record) for record in records)


def _of_rows(how: Asking, table: Table) -> Iterator[_Item]:
    """Rows of an input as records. Raises UserError where the first one lacks a field: then all do."""
    looked = False
    for identity, row, duplicate in identities(table.rows):
        if not looked and not isinstance(row.content, UserError):
            looked = True
            for name in how.names:
                if name not in row.content:
                    text_of(table, row, name)
        try:
            if duplicate:
                raise UserError(duplicate)
            texts = texts_of(table, row, how.names)
        except UserError as error:
            yield _Item(identity, row.place, None, str(error))
        else:
            yield _Item(identity, row.place, record_of(how.task, content_id(texts), texts))


def _lines(how: Asking, items: Iterator[_Item]) -> Iterator[Line]:
    while portion := list(itertools.islice(items, _PORTION)):
        records = [item.record for item in portion if item.record is not None]
        asked = iter(how.ask(records)) if records else iter(())
        for item in portion:
            found = UserError(item.reason) if item.record is None else next(asked)
            query = None if item.record is None else how.about(item.record)
            if isinstance(found, UserError):
                reason = str(found) if item.record is None else f"{item.place}: {found}"
                yield Line(item.id, item.place, reason=reason, body=query)
            else:
                yield Line(item.id, item.place, tuple(BulkRequest(query or "", each) for each in found), body=query)


def _counted(lines: Iterator[Line], total: int | None) -> Iterator[Line]:
    """The same lines, with a bar where there are many."""
    with progress("read", total, "row") if total and total > _MANY else nullcontext(lambda n: None) as advance:
        for number, line in enumerate(lines):
            yield line
            if number % _PORTION == _PORTION - 1:
                advance(_PORTION)
