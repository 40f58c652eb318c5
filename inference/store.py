"""Where predictions live: one SQLite file with one writer, and immutable compacted copies of it for look-ups.

What `put_many` has returned from is on disk and survives a kill or a power cut. Every row carries a checksum:
a damaged row or file is an error, never an answer.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from limbeck.inference import store_file
from limbeck.inference.lookup import normalise
from limbeck.model.errors import UserError, one_of

NORMALISATIONS = ("nfc", "nfc_casefold")

_LINK = """
INSERT INTO queries VALUES (?, ?, ?) ON CONFLICT (query)
DO UPDATE SET key = excluded.key, checksum = excluded.checksum WHERE key != excluded.key
"""
_FAIL = """
INSERT INTO failures VALUES (?, ?, ?, 1) ON CONFLICT (key)
DO UPDATE SET query = excluded.query, reason = excluded.reason, attempts = attempts + 1
"""
_FIND = """
SELECT queries.query, queries.key, queries.checksum, predictions.query, payload, predictions.checksum
FROM queries JOIN predictions ON predictions.key = queries.key WHERE queries.query = ?
"""


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
                self._db = opened.enter_context(contextlib.closing(store_file.connect(self.path, read_only)))
                self.manifest: dict[str, str] = dict(self._db.execute("SELECT name, value FROM manifest"))
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
        """Raises UserError unless the store was made with these values; an empty store takes new names on."""
        for name, value in manifest.items():
            made_with = self.manifest.get(name)
            if made_with != value and (made_with is not None or self.read_only or self._count("predictions")):
                raise UserError(
                    f"{self.path} was made with {name} {_short(made_with)}, not {_short(value)}: "
                    "name another store, or remove this one to predict again"
                )
        new = {name: value for name, value in manifest.items() if name not in self.manifest}
        if new:
            with self._transaction():
                self._db.executemany("INSERT INTO manifest VALUES (?, ?)", new.items())
            self.manifest |= new

    def normalise(self, query: str) -> str:
        """The form under which this store keeps `query`; raises UserError for empty or invalid text."""
        return normalise(query, self.manifest["normalisation"] == "nfc_casefold")

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
        texts = [(key, query, _json(payload)) for key, query, payload in rows]
        with self._transaction():
            self._db.executemany(
                "INSERT INTO predictions VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                ((*text, _checksum(*text)) for text in texts),
            )
            self._db.executemany(_LINK, ((*link, _checksum(*link)) for link in links))
            self._db.executemany("DELETE FROM failures WHERE key = ?", ((key,) for key, _, _ in texts))

    def fail_many(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Records (key, query, reason) rows that could not be predicted, and counts their attempts."""
        texts = [(key, _storable(query), _storable(reason)) for key, query, reason in rows]
        with self._transaction():
            self._db.executemany(_FAIL, texts)

    def __contains__(self, key: str) -> bool:
        with self._errors:
            return self._db.execute("SELECT 1 FROM predictions WHERE key = ?", (key,)).fetchone() is not None

    def get(self, key: str) -> dict[str, Any] | None:
        """The payload of a key, or None; raises UserError if the row is damaged."""
        with self._errors:
            row = self._db.execute("SELECT * FROM predictions WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._payload(*row)

    def find(self, query: str) -> dict[str, Any] | None:
        """The payload that a normalised query finds, or None; raises UserError if the row is damaged."""
        with self._errors:
            row = self._db.execute(_FIND, (self.normalise(query),)).fetchone()
        if row is None:
            return None
        text, key, link_checksum, first_query, payload, checksum = row
        if link_checksum != _checksum(text, key):
            raise self._damaged(key)
        return self._payload(key, first_query, payload, checksum)

    def rows(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Every (key, query, payload), by key; raises UserError at a damaged row."""
        with self._errors:
            for row in self._db.execute("SELECT * FROM predictions ORDER BY key"):
                yield row[0], row[1], self._payload(*row)

    def failures(self) -> list[dict[str, Any]]:
        """What could not be predicted, by key: key, query, reason, attempts."""
        names = ("key", "query", "reason", "attempts")
        with self._errors:
            rows = self._db.execute("SELECT * FROM failures ORDER BY key").fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def status(self) -> dict[str, Any]:
        """Counts of rows, queries and failures, bytes on disk with the log, and the manifest."""
        files = (self.path, Path(f"{self.path}-wal"))
        return {
            "rows": self._count("predictions"),
            "queries": self._count("queries"),
            "failures": self._count("failures"),
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "manifest": dict(self.manifest),
        }

    def compact(self, dst: str | os.PathLike[str]) -> None:
        """Writes an immutable copy for look-ups to `dst`, in one step; readers of an older copy keep it.

        Raises UserError if `dst` is anything but a compacted copy, or cannot be written.
        """
        store_file.compact(self._db, Path(os.path.realpath(dst)))

    def _payload(self, key: str, query: str, payload: str, checksum: int) -> dict[str, Any]:
        if checksum != _checksum(key, query, payload):
            raise self._damaged(key)
        return _decode(payload)[0]

    def _damaged(self, key: str) -> UserError:
        return UserError(f"{self.path}: the row {key[:12]} fails its checksum; {store_file.REBUILD}")

    def _count(self, table: str) -> int:
        with self._errors:
            return self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, durable at the end."""
        with self._errors, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield


# json.loads looks for white space around the value; a checked payload has none.
_decode = json.JSONDecoder().raw_decode


def _json(payload: dict[str, Any]) -> str:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, sort_keys=True)


def _checksum(*texts: str) -> int:
    return zlib.crc32("\n".join(texts).encode())


def _storable(text: str) -> str:
    """Text that is not valid Unicode, made visible instead of refused."""
    return text.encode("utf-8", "backslashreplace").decode()


def _short(digest: str | None) -> str:
    return "(none)" if digest is None else digest if len(digest) <= 16 else f"{digest[:12]}..."
