"""Where predictions live: one SQLite file with one writer, and immutable compacted copies of it for look-ups.

What `put_many` has returned from is on disk and survives a kill or a power cut. Every row carries a checksum:
a damaged row or file is an error, never an answer.
"""

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from limbeck.inference import store_file, store_rows
from limbeck.inference.lookup import NORMALISATIONS, normalise
from limbeck.inference.store_rows import link_checksum, payload_of, row_checksum, storable, to_json
from limbeck.model.errors import UserError, one_of

# Names of the manifest that tell people something, and no two predictions apart.
HINTS = ("model", "adapter", "records")

_LIST_ROWS = 8192
_LIST_CHARACTERS = 1 << 24

Text = tuple[str, str, str]  # key, query, payload as JSON


class PredictionStore:
    """Predictions by key, and by normalised query; opens the file at `path`, or makes it unless read_only.

    manifest names what the predictions belong to (digests of weights, tokenizer, task; "normalisation" is one
    of NORMALISATIONS); a store made with another value is refused. Raises UserError for that, for a second
    writer, a missing (read_only), damaged or foreign file, and a place that cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], read_only: bool = False, manifest: Mapping[str, str] | None = None
    ) -> None:
        self.path = Path(os.path.realpath(path))  # one lock for a file, whatever link leads to it
        self.read_only = read_only
        self._errors = store_file.SqliteErrors(self.path)
        made_with = {"normalisation": "nfc"} | dict(manifest or {})
        one_of("normalisation", made_with["normalisation"], NORMALISATIONS)
        with contextlib.ExitStack() as opened:
            if not read_only:
                opened.enter_context(store_file.only_writer(self.path))
                if not self.path.exists():
                    store_file.create(self.path, made_with)
            with self._errors:
                self._db, self.compacted = store_file.connect(self.path, read_only)
                opened.enter_context(contextlib.closing(self._db))
                self._find = store_rows.FIND_COMPACTED if self.compacted else store_rows.FIND
                self.manifest: dict[str, str] = dict(self._db.execute("SELECT name, value FROM manifest"))
            self._casefold = self.manifest["normalisation"] == "nfc_casefold"
            self.require(manifest or {})
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Closes the file and lets the next writer in."""
        self._opened.close()

    def __enter__(self) -> "PredictionStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def require(self, manifest: Mapping[str, str]) -> None:
        """Raises UserError unless the store was made with these values; an empty store takes new names on.

        HINTS are not compared: a store that may be written remembers the last one.
        """
        for name, value in compared(manifest).items():
            made_with = self.manifest.get(name)
            if made_with != value and (made_with is not None or self.read_only or self.count("predictions")):
                raise UserError(
                    f"{self.path} was made with {name} {_short(made_with)}, not {_short(value)}: "
                    "name another store, or remove this one to predict again"
                )
        new = {} if self.read_only else {n: value for n, value in manifest.items() if self.manifest.get(n) != value}
        if new:
            with self._transaction():
                self._db.executemany("INSERT OR REPLACE INTO manifest VALUES (?, ?)", new.items())
            self.manifest |= new

    def normalise(self, query: str) -> str:
        """The form under which this store keeps `query`; raises UserError for empty or invalid text."""
        return normalise(query, self._casefold)

    def put_many(
        self, rows: Iterable[tuple[str, str, dict[str, Any]]], links: Iterable[tuple[str, str]] | None = None
    ) -> None:
        """Stores (key, query, payload) rows in one transaction; when it returns they are safe on disk.

        A key that is there already keeps its payload; a stored key's failures are forgotten. links are
        (query, key) pairs: from now on that query finds that key. Without them each row's own query finds it.
        """
        rows = list(rows)
        if links is None:
            links = [(query, key) for key, query, _ in rows]
        links = [(self.normalise(query), key) for query, key in links]
        texts = [(key, query, to_json(payload)) for key, query, payload in rows]
        with self._transaction():
            self._put(texts, links, store_rows.LINK)

    def take(self, texts: Iterable[Text], links: Iterable[tuple[str, str]], failures: Iterable[dict[str, Any]]) -> int:
        """As put_many, of what `texts`, `links` and `failures` of another store give; how many rows were new.

        What is there wins over what comes: the payload of a key, and the key that a query finds.
        """
        with self._transaction():
            new = self._put(texts, links, store_rows.FIRST_LINK)
            self._db.executemany(store_rows.TAKE_FAILURE, failures)
        return new

    def fail_many(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Records (key, query, reason) rows that could not be predicted, and counts their attempts."""
        texts = [(key, storable(query), storable(reason)) for key, query, reason in rows]
        with self._transaction():
            self._db.executemany(store_rows.FAIL, texts)

    def __contains__(self, key: str) -> bool:
        with self._errors:
            return self._db.execute("SELECT 1 FROM predictions WHERE key = ?", (key,)).fetchone() is not None

    def get(self, key: str) -> dict[str, Any] | None:
        """The payload of a key, or None; raises UserError if the row is damaged."""
        with self._errors:
            row = self._db.execute(f"{store_rows.ROW} WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._payload(*row)

    def find(self, query: str) -> dict[str, Any] | None:
        """The payload that a normalised query finds, or None; raises UserError if the row is damaged."""
        query = normalise(query, self._casefold)
        try:
            row = self._db.execute(self._find, (query,)).fetchone()
        except sqlite3.Error as error:
            raise self._errors.told(error) from error
        if row is None:
            return None
        linked, key, first_query, payload, checksum = row
        if linked != link_checksum(query, key) or checksum != row_checksum(key, first_query, payload):
            raise self._damaged(key)
        return payload_of(payload)

    def rows(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Every (key, query, payload), by key; raises UserError at a damaged row."""
        return ((key, query, payload_of(payload)) for texts in self.texts() for key, query, payload in texts)

    def texts(self) -> Iterator[list[Text]]:
        """Every (key, query, payload as JSON), by key, in lists of bounded size; raises UserError at a damaged row."""
        texts, size = [], 0
        for text in self._checked(f"{store_rows.ROW} ORDER BY key", row_checksum):
            texts.append(text)
            size += len(text[1]) + len(text[2])
            if len(texts) == _LIST_ROWS or size > _LIST_CHARACTERS:
                yield texts
                texts, size = [], 0
        if texts:
            yield texts

    def links(self, by: Literal["query", "key"] = "query") -> Iterator[tuple[str, str]]:
        """Every (normalised query, the key that it finds); raises UserError at a damaged one."""
        yield from self._checked(f"SELECT query, key, checksum FROM queries ORDER BY {by}, query", link_checksum)

    def count(self, table: Literal["predictions", "queries", "failures"]) -> int:
        """How many rows a table has."""
        with self._errors:
            return self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def failures(self) -> list[dict[str, Any]]:
        """What could not be predicted, by key: key, query, reason, attempts."""
        names = ("key", "query", "reason", "attempts")
        with self._errors:
            rows = self._db.execute("SELECT * FROM failures ORDER BY key").fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def status(self, weights: str | None = None, asked: Iterable[str] | None = None) -> dict[str, Any]:
        """Counts of rows, queries and failures, the reasons of these, bytes on disk with the log, and the manifest.

        coverage is the share of queries that find an answer: of those `asked`, else of all that jobs have come to.
        With the digest of a model's weights, stale is how many predictions are of other weights.
        """
        files = (self.path, Path(f"{self.path}-wal"))
        rows, queries, failures = self.count("predictions"), self.count("queries"), self.count("failures")
        found, all_asked = (queries, queries + failures) if asked is None else self._found(asked)
        with self._errors:
            reasons = self._db.execute(store_rows.REASONS).fetchall()
        return {
            "rows": rows,
            "queries": queries,
            "failures": failures,
            "reasons": dict(reasons),
            "asked": all_asked,
            "coverage": found / all_asked if all_asked else 1.0,
            "stale": None if weights is None else 0 if weights == self.manifest.get("weights") else rows,
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "manifest": dict(self.manifest),
        }

    def prune(self, failures: bool = False, unfound: bool = False) -> dict[str, int]:
        """Forgets what failed, and the predictions that no query finds; how many of each, and gives their room back.

        Predictions that only a key finds are among the latter: the second sample of a query, for one. The next run of
        the job predicts again what it asks for.
        """
        tables = {"failures": "failures"} if failures else {}
        tables |= {"unfound": store_rows.UNFOUND} if unfound else {}
        with self._transaction():
            gone = {name: self._db.execute(f"DELETE FROM {rows}").rowcount for name, rows in tables.items()}
        if any(gone.values()):
            with self._errors:
                self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def check(self) -> None:
        """Reads all of it; raises UserError for a damaged page, row or link."""
        with self._errors:
            [found] = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise UserError(f"{self.path} is damaged ({found}); {store_file.REBUILD}")
        for _ in itertools.chain(self.texts(), self.links()):
            pass

    def export(self, dst: str | os.PathLike[str]) -> int:
        """Writes all predictions to a Parquet file, by key, as `write_parquet` says; how many.

        Raises UserError if `dst` is anything but an older export, or cannot be written, and for damage.
        """
        from limbeck.inference.store_export import write_parquet  # which takes a third of a second to import

        dst, count = Path(os.path.realpath(dst)), self.count("predictions")
        if dst == self.path:  # which no one but SQLite may open: see `store_file`
            raise UserError(f"{dst} is the store itself: name another file")
        write_parquet(dst, compared(self.manifest), self.texts(), self.links(by="key"), count)
        return count

    def compact(self, dst: str | os.PathLike[str]) -> None:
        """Writes an immutable copy for look-ups to `dst`, in one step; readers of an older copy keep it.

        Raises UserError if `dst` is anything but a compacted copy, or cannot be written.
        """
        store_file.compact(self.path, Path(os.path.realpath(dst)))

    def _put(self, texts: Iterable[Text], links: Iterable[tuple[str, str]], link: str) -> int:
        texts = list(texts)
        new = self._db.executemany(store_rows.PUT, ((*text, row_checksum(*text)) for text in texts))
        self._db.executemany(link, ((*pair, link_checksum(*pair)) for pair in links))
        self._db.executemany("DELETE FROM failures WHERE key = ?", ((key,) for key, _, _ in texts))
        return new.rowcount

    def _checked(self, select: str, checksum_of: Callable[..., int]) -> Iterator[Any]:
        with self._errors:
            for *texts, checksum in self._db.execute(select):
                if checksum != checksum_of(*texts):
                    raise self._damaged(texts[0])
                yield tuple(texts)

    def _payload(self, key: str, query: str, payload: str, checksum: int) -> dict[str, Any]:
        if checksum != row_checksum(key, query, payload):
            raise self._damaged(key)
        return payload_of(payload)

    def _damaged(self, key: str) -> UserError:
        return UserError(f"{self.path}: the row {key[:12]} fails its checksum; {store_file.REBUILD}")

    def _found(self, queries: Iterable[str]) -> tuple[int, int]:
        """(how many of the distinct queries find an answer, how many there are)."""
        legal, others = set(), set()
        for query in queries:
            try:
                legal.add(self.normalise(query))
            except UserError:
                others.add(query)
        return sum(self.find(query) is not None for query in legal), len(legal) + len(others)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, durable at the end."""
        with self._errors, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield


def compared(manifest: Mapping[str, str]) -> dict[str, str]:
    """A manifest without its HINTS."""
    return {name: value for name, value in manifest.items() if name not in HINTS}


def _short(digest: str | None) -> str:
    return "(none)" if digest is None else digest if len(digest) <= 16 else f"{digest[:12]}..."
