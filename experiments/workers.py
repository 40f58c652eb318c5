"""A prediction job in several processes: each answers its shard of the queries into a store of its own."""

import contextlib
import dataclasses
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from limbeck.experiments.asking import open_engine
from limbeck.experiments.prediction_config import PredictionConfig
from limbeck.experiments.queries import job, require, source
from limbeck.inference.job import BulkReport, run_bulk
from limbeck.inference.shards import merge, shard_of
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError
from limbeck.model.progress import no_progress


def predict_in_shards(config: PredictionConfig) -> BulkReport:
    """Answers what the store lacks in `config.workers` processes of this machine, and merges what they wrote into it.

    Their stores lie beside it until then, so a job that is killed goes on where each of them was. Raises UserError as a
    worker does, and for one that ended before its work did.
    """
    count = config.workers
    parts = [part_of(config.store, shard, count) for shard in range(count)]
    with PredictionStore(
        config.store, manifest=_normalisation(config)
    ) as store:  # it is there, and nobody writes it
        failed_before = {failure["key"] for failure in store.failures()}
        config = dataclasses.replace(config, normalisation=store.manifest["normalisation"])
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    context = multiprocessing.get_context("spawn")  # a copy of a process in which JAX runs does not work
    try:
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            asked = [pool.submit(work, config, shard, cores[shard::count]) for shard in range(count)]
            reports = [each.result() for each in asked]
    except BrokenProcessPool as error:
        raise UserError(
            "a worker was killed, for want of memory perhaps: what it had committed is kept; run the same command "
            "again, with fewer --workers if need be"
        ) from error
    again, manifest = [], {}
    for part in parts:
        with PredictionStore(part, read_only=True) as store:
            manifest = store.manifest
            again += [(each["key"], each["query"], each["reason"]) for each in store.failures()]
    merge(config.store, parts)
    with PredictionStore(config.store, manifest=manifest) as store:  # where the model is, too
        store.fail_many(each for each in again if each[0] in failed_before)  # one attempt more
    for part in parts:
        for ending in ("", "-wal", "-shm", ".lock", ".runs.json"):
            Path(f"{part}{ending}").unlink(missing_ok=True)
    return _together(reports)


def work(config: PredictionConfig, shard: int, cores: list[int]) -> BulkReport:
    """What one worker does, in a process of its own; the first one's bar stands for all, for shards are about equal."""
    if cores:
        os.sched_setaffinity(0, cores)
    part = part_of(config.store, shard, config.workers)
    with contextlib.ExitStack() as opened:
        if shard:
            opened.enter_context(no_progress())
        found = source(config)
        whole = opened.enter_context(PredictionStore(config.store, read_only=True))
        store = opened.enter_context(PredictionStore(part, manifest=_normalisation(config)))
        engine, adapter = open_engine(config)
        asked = job(config, found, engine, adapter)
        for each in (whole, store):
            require(each, asked.manifest)
        rows = (row for line in asked.lines for row in line.rows())
        own = lambda key: shard_of(key, config.workers) == shard  # noqa: E731
        return run_bulk(engine, rows, store, config.chunk, own, whole)


def part_of(store: str, shard: int, count: int) -> Path:
    """Where the predictions of a shard are kept until they are merged: a.shard-0-of-4.db beside a.db."""
    path = Path(os.path.realpath(store))
    return path.with_name(f"{path.stem}.shard-{shard}-of-{count}{path.suffix}")


def _normalisation(config: PredictionConfig) -> dict[str, str] | None:
    return {"normalisation": config.normalisation} if config.normalisation else None


def _together(reports: list[BulkReport]) -> BulkReport:
    counts = ("total", "new", "cached", "duplicate", "failed", "new_tokens", "resumed")
    summed = {name: sum(getattr(report, name) for report in reports) for name in counts}
    failures = tuple(failure for report in reports for failure in report.failures)
    return BulkReport(**summed, seconds=max(report.seconds for report in reports), failures=failures)
