"""A store that is served and may be replaced: a new file at its path is read through, then takes the old one's place.

Replaced means by a rename, as `limbeck store compact` does it: whoever has the old file open keeps it.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError
from limbeck.model.files import sha256_file

_EXAMPLES = 8
_REASONS = 5  # the most frequent ones
_TRIED = 100  # queries that are looked up, too, in a file that is read through
_ODD = re.compile(r"[\x00-\x1f\x7f]|.{60}", re.DOTALL)  # a query that is no example
_COUNT_EVERY = 10  # seconds between two counts of a store that grows: on a million rows one takes a tenth of a second


class Facts(NamedTuple):
    """What a store holds: counts, bytes, its manifest, and some of its queries.

    `coverage` is the share of the jobs' queries that find an answer, `reasons` how many failed for what. `digest` is
    the SHA-256 of a compacted file, and empty for a store that may still grow.
    """

    rows: int
    queries: int
    failures: int
    bytes: int
    coverage: float
    reasons: dict[str, int]
    digest: str
    manifest: dict[str, str]
    examples: list[str]


class _Mark(NamedTuple):
    """What tells one file at a path from another, and one state of it, with its log, from another."""

    file: tuple[int, int]
    state: tuple[int, ...]


class ServedStore:
    """The store at `path`, and then the one that is put in its place.

    `store` is for look-ups of one thread, between two awaits: so nobody is at it when it is replaced. `problem` says
    why what lies at the path now is not what is served. Raises UserError as `PredictionStore` does, and for a damaged
    row anywhere.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.problem: str | None = None
        self.swaps = 0
        self._counted = time.monotonic()
        self._served = _mark(self.path)
        self._refused: _Mark | None = None
        self.facts = inspect(self.path)
        self.store = PredictionStore(self.path, read_only=True)
        self.since = time.time()

    def close(self) -> None:
        """Closes the file."""
        self.store.close()

    async def watch(self, every: float) -> None:
        """Looks for a new file every so many seconds, for ever."""
        while True:
            await asyncio.sleep(every)
            await self.refresh()

    async def refresh(self) -> None:
        """Serves the file that lies at the path if it is another one and whole; else `problem` says why not.

        It is read in a process of its own, so that look-ups in the old one are not slower meanwhile, and that a file
        on which SQLite itself comes to grief does no harm here.
        """
        mark = None
        try:
            mark = await asyncio.to_thread(_mark, self.path)
            if mark == self._refused:
                return
            if mark.file == self._served.file and not self.facts.digest:
                await self._count(mark)
            elif mark != self._served:
                await self._take(mark)
            if mark == self._served:
                self.problem = self._refused = None
        except Exception as error:  # whatever is wrong with the new file, the old one is served
            self._refused, self.problem = mark, str(error)
            if not isinstance(error, UserError):
                traceback.print_exc()

    async def _count(self, mark: _Mark) -> None:
        """A store that grows is the same file with new rows."""
        if mark != self._served and time.monotonic() > self._counted + _COUNT_EVERY:
            self.facts = await _elsewhere("count", self.path)
            self._served, self._counted = mark, time.monotonic()

    async def _take(self, mark: _Mark) -> None:
        facts = await _elsewhere("inspect", self.path)
        new = PredictionStore(self.path, read_only=True)
        if _mark(self.path) != mark:  # replaced once more meanwhile: what was opened need not be what was read
            new.close()
            return
        old, self.store, self._served = self.store, new, mark
        self.facts, self.since, self.swaps = facts, time.time(), self.swaps + 1
        old.close()


def inspect(path: str | os.PathLike[str]) -> Facts:
    """Reads a store from its first row to its last. Raises UserError if it is damaged anywhere."""
    with PredictionStore(path, read_only=True) as store:
        for _ in store.texts():
            pass
        for number, (query, _) in enumerate(store.links()):
            if number < _TRIED:
                store.find(query)
    return count(path)


def count(path: str | os.PathLike[str]) -> Facts:
    """What a store holds, its rows unread."""
    with PredictionStore(path, read_only=True) as store:
        status = store.status()
        counts = {name: status[name] for name in ("rows", "queries", "failures", "bytes", "coverage")}
        reasons = dict(sorted(status["reasons"].items(), key=lambda item: -item[1])[:_REASONS])
        digest = sha256_file(store.path) if store.compacted else ""
        queries = (query for _, query, _ in itertools.islice(store.rows(), 10 * _EXAMPLES))
        examples = itertools.islice((query for query in queries if not _ODD.search(query)), _EXAMPLES)
        return Facts(**counts, reasons=reasons, digest=digest, manifest=store.manifest, examples=list(examples))


async def _elsewhere(what: str, path: Path) -> Facts:
    """What `inspect` or `count` says, in another process. Raises UserError as they do."""
    words = [sys.executable, "-m", "limbeck.inference.served", what, os.fspath(path)]
    child = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        told, crash = await child.communicate()
    finally:
        if child.returncode is None:  # nobody waits for it any more
            child.kill()
            await child.wait()
    if child.returncode:
        raise RuntimeError(f"reading {path} ended with status {child.returncode}: {crash.decode(errors='replace')}")
    answer = json.loads(told)
    if "error" in answer:
        raise UserError(answer["error"])
    return Facts(**answer)


def _mark(path: Path) -> _Mark:
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): put a store there") from error
    state = (found.st_mtime_ns, found.st_size)
    with contextlib.suppress(FileNotFoundError):
        log = os.stat(f"{os.path.realpath(path)}-wal")
        state += (log.st_mtime_ns, log.st_size)
    return _Mark((found.st_dev, found.st_ino), state)


if __name__ == "__main__":
    os.nice(5)
    try:
        print(json.dumps({"inspect": inspect, "count": count}[sys.argv[1]](sys.argv[2])._asdict()))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
