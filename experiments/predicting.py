"""`limbeck predict`: queries answered in bulk into a store; and the same asked of a single query later."""

import contextlib
import dataclasses
import json
import math
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.evaluation.quantities import duration
from limbeck.experiments.asking import asking, open_engine, record_of
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.queries import BATCH, Job, canonical, content_id, job, open_task, require, source
from limbeck.experiments.workers import predict_in_shards
from limbeck.inference.agenda import BulkRequest, Predictor, Refused, digests
from limbeck.inference.engine import Engine
from limbeck.inference.inputs import Line, check_text
from limbeck.inference.job import BulkPlan, BulkReport, follow_bulk, plan_bulk, run_bulk
from limbeck.inference.key import prediction_key
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, write_atomic
from limbeck.model.hosts import joined, leads
from limbeck.model.sharding import over
from limbeck.prompting.config import PromptConfig

_LISTED = 10  # failures, or kinds of them, that are told


class _Kept(NamedTuple):
    """What of a line its answer is made of, once it was asked."""

    line: Line
    keys: tuple[str, ...]


def run(config: PredictionConfig, rundir: Path) -> int:
    """Predicts into the config's store, or into predictions.db of the run's folder; exit status 1 if a row failed."""
    return predict(dataclasses.replace(config, store=config.store or str(rundir / "predictions.db")))


def predict(config: PredictionConfig, dry_run: bool = False) -> int:
    """Answers what the store lacks and prints counts, or what would be done; exit status 1 if a row failed."""
    if not config.store:
        raise UserError("no store is said: give --store, the file that keeps the predictions")
    hosts = joined() if config.hosts else contextlib.nullcontext()
    with hosts, _cluster(config, dry_run), over(config.mesh):
        # Asked only where it matters: a process that starts workers must not take the devices itself.
        return _follow(config, dry_run) if config.hosts and not leads() else _predict(config, dry_run)


def _predict(config: PredictionConfig, dry_run: bool) -> int:
    found = source(config)
    many = config.workers > 1 and not config.ray and not dry_run
    done = predict_in_shards(config) if many else None
    if done is None or config.output:
        with _open_store(config, dry_run or many) as store:
            engine, adapter = open_engine(config)
            asked = job(config, found, engine, adapter)
            if store is not None:
                require(store, asked.manifest)
            if dry_run:
                plan = plan_bulk(engine, (row for line in asked.lines for row in line.rows()), store)
                _print_plan(config.store, plan)
                return 1 if plan.refused else 0
            assert store is not None
            kept: list[_Kept] | None = [] if config.output else None
            rows = _rows(asked.lines, digests(engine), kept)
            if done is None:
                done = run_bulk(_predictor(config, engine), rows, store, config.chunk)
            else:
                deque(rows, maxlen=0)
            if kept is not None:
                output = Path(config.output)
                with disk_errors(output):
                    output.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(output, (f"{line}\n" for line in _answers(kept, asked, store)))
    _print_report(config.store, done)
    return 1 if done.failed else 0


def _follow(config: PredictionConfig, dry_run: bool) -> int:
    """What a process does that does not lead: its part of what is computed."""
    found = source(config)
    engine, adapter = open_engine(config)
    asked = job(config, found, engine, adapter)
    digests(engine)  # of weights that no host has whole: worked out by all
    if not dry_run:
        follow_bulk(engine, (row for line in asked.lines for row in line.rows()))
    return 0


def asker(manifest: Mapping[str, str], model: str | None = None) -> Callable[[str], tuple[str, dict[str, Any]]]:
    """What answers one query as the job of a store with this manifest did: (its key, its payload).

    `model` says where the model is, if it is no more where it was. Raises UserError, here, for a job whose queries are
    not single texts, another model and another task than the store's; then, for a query that cannot be answered.
    """
    settings = json.loads(manifest.get("job", "{}"))
    if "kind" not in settings or settings["kind"] == BATCH:
        raise UserError(
            "this store does not say how a query is asked, so none can be asked now: it is no job of a task"
        )
    own = {field.name for field in dataclasses.fields(PredictionConfig)}
    settings = {name: _tuples(value) for name, value in settings.items()}
    prompt = {field.name for field in dataclasses.fields(PromptConfig)} - own
    config = PredictionConfig(
        model=model or manifest.get("model", ""),
        adapter=manifest.get("adapter", ""),
        task=manifest.get("records", ""),
        prompt=PromptConfig(**{name: value for name, value in settings.items() if name in prompt}),
        **{name: value for name, value in settings.items() if name in own},
    )
    task = open_task(config) if config.task else None
    engine, adapter = open_engine(config)
    how = asking(config, engine, adapter, task)
    made_with = digests(engine) | {"job": canonical(how.settings)} | ({"task": task.digest()} if task else {})
    for name, value in made_with.items():
        if manifest.get(name) != value:
            raise UserError(f"the store was made with another {name}: say where the model, or the task, of then is")
    if len(how.names) > 1:
        raise UserError(
            f"a query of this store has the fields {', '.join(how.names)}, and one text says but one of them"
        )

    def ask(query: str) -> tuple[str, dict[str, Any]]:
        check_text(query, "the query")
        texts = {how.names[0]: query}
        [found] = how.ask([record_of(task, content_id(texts), texts)])
        if isinstance(found, UserError):
            raise found
        engine.check(found[0])
        [(_, result)] = engine.answers([found[0]])
        payload = dataclasses.asdict(result)
        if not all(map(math.isfinite, _numbers(payload))):
            raise UserError("what the model gives is not a finite number: check the weights")
        return prediction_key(found[0], **digests(engine)), payload

    return ask


def _numbers(payload: Mapping[str, Any]) -> Iterable[float]:
    return [payload["logprob"]] if "logprob" in payload else payload.get("logprobs") or payload.get("values") or ()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _predictor(config: PredictionConfig, engine: Engine) -> Predictor:
    if not config.ray:
        return engine
    from limbeck.inference.ray_job import RayPredictor

    return RayPredictor(engine, partial(_opened, config), config.workers)


def _cluster(config: PredictionConfig, dry_run: bool) -> contextlib.AbstractContextManager[None]:
    if not config.ray or dry_run:
        return contextlib.nullcontext()
    from limbeck.inference.ray_job import cluster

    return cluster(config.ray)


def _opened(config: PredictionConfig) -> Engine:
    return open_engine(config)[0]


@contextlib.contextmanager
def _open_store(config: PredictionConfig, read_only: bool) -> Iterator[PredictionStore | None]:
    """The store, open before the model is read, so that a second writer hears of it at once; a dry run makes none."""
    if read_only and not Path(config.store).exists():
        yield None
        return
    manifest = {"normalisation": config.normalisation} if config.normalisation else None
    with PredictionStore(config.store, read_only=read_only, manifest=manifest) as store:
        yield store


def _rows(
    lines: Iterable[Line], made_by: Mapping[str, str], kept: list[_Kept] | None
) -> Iterator[BulkRequest | Refused]:
    """What a run reads of the lines; `kept` takes down what the output needs."""
    for line in lines:
        if kept is not None:
            keys = tuple(prediction_key(each.request, **made_by) for each in line.requests)
            kept.append(_Kept(line._replace(requests=()), keys))
        yield from line.rows()


def _answers(kept: Iterable[_Kept], asked: Job, store: PredictionStore) -> Iterator[str]:
    reasons = {failure["key"]: failure["reason"] for failure in store.failures()}
    for line, keys in kept:
        failure = next((reasons[key] for key in keys if key in reasons), "")
        answer = asked.answer(line, [store.get(key) for key in keys], failure)
        text = json.dumps(answer, ensure_ascii=False)
        yield text if _is_unicode(text) else json.dumps(answer)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as an id may hold: JSON can say it
        return False
    return True


def _print_plan(store: str, plan: BulkPlan) -> None:
    print(f"{store}: {plan.new} new, {plan.cached} there already, {plan.duplicate} duplicate, {plan.refused} refused")
    took = f"about {duration(plan.seconds)}" if plan.seconds is not None else "how long it takes is not known"
    print(f"{plan.prompt_tokens} tokens to read and at most {plan.new_tokens_at_most} beside: {took} ({plan.source})")
    kinds = Counter(re.sub(r"'[^']*'|\d[\d,]*", "…", reason) for _, reason in plan.refusals)
    for reason, count in kinds.most_common(_LISTED):
        print(f"{count} refused: {reason}", file=sys.stderr)


def _print_report(store: str, done: BulkReport) -> None:
    for query, reason in done.failures[:_LISTED]:
        print("refused: " + (reason if reason.startswith(query) else f"{query!r:.200}: {reason}"), file=sys.stderr)
    if len(done.failures) > _LISTED:
        print(f"... and {len(done.failures) - _LISTED} more: limbeck store status {store}", file=sys.stderr)
    print(f"{store}: {done.new} new, {done.cached} there already, {done.duplicate} duplicate, {done.failed} refused")
