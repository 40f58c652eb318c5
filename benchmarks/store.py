"""A prediction store as it grows: rows put a second, and how long a look-up takes, live and in a compacted copy.

    .venv/bin/python benchmarks/store.py
    taskset -c 0 .venv/bin/python benchmarks/store.py --rows 10000 100000 --folder /var/tmp

One store is filled to each of the sizes in turn, in commits of `--chunk` rows whose keys are digests. At each size it
is compacted and exported, and queries drawn at random are looked up one by one, in turns in the live store, in the
copy, and in the copy just after it was opened, when the system has not mapped much of it yet. A look-up normalises the
query, finds the row, checks two checksums and decodes the payload. The table has the median over all turns, and that
of the best turn, which other programs of the machine disturbed least. `SELECT ?` is what SQLite takes in Python to read
no table at all.
"""

import contextlib
import dataclasses
import hashlib
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from contest import console, table

from limbeck.inference.store import PredictionStore
from limbeck.model.progress import no_progress

_WARM_UP = 100_000  # look-ups that do not count


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    chunk: int = 256
    """Rows of a commit."""
    lookups: int = 5000
    """Of a turn."""
    turns: int = 8
    folder: Path | None = None
    """Where the files are for a while (default: a temporary folder); a million rows take 1 GB."""


def main(args: Args) -> int:
    out = console()
    rng = np.random.default_rng(0)
    columns = ["rows", "put rows/s", "compact s", "export s", "live MB", "copy MB", "Parquet MB"]
    writing = table(f"writing, {args.chunk} rows a commit", columns)
    columns = ["rows", "", "p50 µs", "p50 of the best turn", "p99 µs"]
    reading = table(f"looking up, {args.turns} turns of {args.lookups}", columns)
    with tempfile.TemporaryDirectory(dir=args.folder) as name, out.status("") as status, no_progress():
        folder, done = Path(name), 0
        for size in sorted(args.rows):
            status.update(f"writing {size:,} rows")
            writing.add_row(f"{size:,}", *_write(folder, done, size, args.chunk))
            done = size
            status.update(f"looking up in {size:,} rows")
            for kind, turns in _look_up(folder, size, args, rng).items():
                p50, p99 = np.percentile(np.concatenate(turns), [50, 99])
                best = min(map(statistics.median, turns))
                reading.add_row(f"{size:,}", kind, f"{p50:.1f}", f"{best:.1f}", f"{p99:.1f}")
    out.print(writing)
    out.print(reading)
    return 0


def _row(i: int) -> tuple[str, str, dict[str, Any]]:
    key = hashlib.sha256(b"%d" % i).hexdigest()
    answer = {"text": f" country number {i}", "tokens": [i % 1000, 2, 3, 4, 5, 6], "logprob": -i / 7.3, "stopped": True}
    return key, f"what is the name of country {i} in language {i % 60}?", answer


def _write(folder: Path, done: int, size: int, chunk: int) -> list[str]:
    files = [folder / name for name in ("live.db", "copy.db", "all.parquet")]
    with PredictionStore(files[0]) as store:
        start, made = time.perf_counter(), 0.0
        for first in range(done, size, chunk):
            making = time.perf_counter()
            rows = [_row(i) for i in range(first, min(first + chunk, size))]
            made += time.perf_counter() - making
            store.put_many(rows)
        put = (size - done) / (time.perf_counter() - start - made)
        start = time.perf_counter()
        store.compact(files[1])
        compacted = time.perf_counter()
        store.export(files[2])
        exported = time.perf_counter()
    seconds = [f"{compacted - start:.1f}", f"{exported - compacted:.1f}"]
    return [f"{put:,.0f}", *seconds, *(f"{file.stat().st_size / 1e6:,.0f}" for file in files)]


def _look_up(folder: Path, size: int, args: Args, rng: np.random.Generator) -> dict[str, list[list[float]]]:
    """Microseconds of each look-up, in each turn."""

    def drawn(count: int) -> list[str]:
        return [_row(i)[1] for i in rng.integers(size, size=count).tolist()]

    turns: dict[str, list[list[float]]] = {name: [] for name in ("live", "compacted", "just opened", "SELECT ?")}
    with (
        PredictionStore(folder / "live.db", read_only=True) as live,
        PredictionStore(folder / "copy.db", read_only=True) as copy,
        contextlib.closing(sqlite3.connect(":memory:")) as nothing,
    ):
        for store in (live, copy):
            assert all(map(store.find, drawn(_WARM_UP)))
        for _ in range(args.turns):
            for kind, store in (("live", live), ("compacted", copy)):
                turns[kind].append(_timed(store.find, drawn(args.lookups)))
            with PredictionStore(folder / "copy.db", read_only=True) as fresh:
                turns["just opened"].append(_timed(fresh.find, drawn(args.lookups)))
            select = lambda query: nothing.execute("SELECT ?", (query,)).fetchone()  # noqa: E731
            turns["SELECT ?"].append(_timed(select, drawn(args.lookups)))
    return turns


def _timed(function: Callable[[str], Any], queries: Sequence[str]) -> list[float]:
    taken, clock = [], time.perf_counter_ns
    for query in queries:
        start = clock()
        function(query)
        taken.append((clock() - start) / 1e3)
    return taken


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args, description=__doc__)))
