"""The prediction store as a file: its one writer, making it, opening it, and words for what can be wrong."""

import contextlib
import fcntl
import glob
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, sync_folder
from limbeck.model.progress import progress

_LIVE = int.from_bytes(b"Limb", "big")  # SQLite's "application id"
_COMPACT = int.from_bytes(b"LimC", "big")
_LAYOUT = {_LIVE: 1, _COMPACT: 2}

_LOG_PAGES = 8000  # of 4 KB, before the log is worked into the file: keys are random, and a page is often hit again
_COMPACT_PAGE = 16384  # bytes
_MAPPED = 1 << 40  # bytes; SQLite takes as many as it can
_SORTED = 64_000  # KB of memory for making a compacted copy

_TABLES = """
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE failures (key TEXT PRIMARY KEY, query TEXT NOT NULL, reason TEXT NOT NULL,
                       attempts INTEGER NOT NULL) WITHOUT ROWID;
"""
_LIVE_TABLES = """
CREATE TABLE predictions (key TEXT PRIMARY KEY, query TEXT NOT NULL, payload TEXT NOT NULL,
                          checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE queries (query TEXT PRIMARY KEY, key TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
"""
# A query leads to its prediction by a number: most of a look-up's time goes into comparing texts in cold memory.
_COMPACT_TABLES = """
CREATE TABLE predictions (id INTEGER PRIMARY KEY, key TEXT NOT NULL, query TEXT NOT NULL, payload TEXT NOT NULL,
                          checksum INTEGER NOT NULL);
CREATE TABLE links (query TEXT PRIMARY KEY, id INTEGER NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE VIEW queries AS
SELECT query, (SELECT key FROM predictions WHERE predictions.id = links.id) AS key, checksum FROM links;
"""
# In order, so that the same content is the same bytes.
_COPY = (
    "INSERT INTO manifest SELECT * FROM source.manifest ORDER BY name",
    "INSERT INTO failures SELECT key, query, reason, attempts FROM source.failures ORDER BY key",
    "INSERT INTO predictions SELECT NULL, key, query, payload, checksum FROM source.predictions ORDER BY key",
    "CREATE UNIQUE INDEX prediction_of_key ON predictions (key)",
    """
    INSERT INTO links SELECT query, (SELECT id FROM predictions WHERE key = found.key), checksum
    FROM source.queries AS found WHERE key IN (SELECT key FROM predictions) ORDER BY query
    """,
)

REBUILD = "restore it from a backup or a compacted copy, or remove it and run the job again"
_REMEDY = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space and run the same command again, nothing is lost",
    sqlite3.SQLITE_NOTADB: f"it is damaged or not a prediction store; {REBUILD}",
    sqlite3.SQLITE_CORRUPT: f"it is damaged; {REBUILD}",
    sqlite3.SQLITE_IOERR: f"the disk reports an error; check the disk, then {REBUILD}",
    sqlite3.SQLITE_READONLY: "it is open for look-ups only or not yours to write; open it for writing",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the permissions of it and its folder, or compact it",
    sqlite3.SQLITE_BUSY: "another program has it open; close that program and run the same command again",
}


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Holds the lock file, which the system frees however the process ends; UserError if it is taken."""
    make_folder(path.parent)
    with disk_errors(path):
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{path} is being written by another process: wait until it is done, or name another store"
            ) from error
        yield
    finally:
        os.close(lock)


def create(path: Path, manifest: dict[str, str]) -> None:
    """Makes an empty store, there as a whole or not at all; the caller is the only writer."""
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:  # SQLite would replay it into the new file
        raise UserError(f"{path} is gone but its log {log} is there: restore one or remove the other")
    with whole(path, mode=0o644) as temporary, contextlib.closing(sqlite3.connect(temporary)) as db:
        db.executescript(_TABLES + _LIVE_TABLES)
        db.executemany("INSERT INTO manifest VALUES (?, ?)", manifest.items())
        db.execute(f"PRAGMA application_id = {_LIVE}")
        db.execute(f"PRAGMA user_version = {_LAYOUT[_LIVE]}")
        db.commit()
        # Here and not in the live file: a kill during the change leaves a journal that readers cannot roll back.
        db.execute("PRAGMA journal_mode = WAL")


def compact(source: Path, path: Path) -> None:
    """Writes an immutable copy of the store `source`; `path` holds the old copy or the new one at any instant."""
    if path.exists() and _head(path)[0] != _COMPACT:  # of any layout
        raise UserError(f"{path} exists and is not a compacted store: name another file")
    make_folder(path.parent)
    with whole(path, mode=0o444) as temporary, contextlib.closing(_open(Path(temporary), "rw")) as copy:
        for setting in (f"page_size = {_COMPACT_PAGE}", f"cache_size = -{_SORTED}", "journal_mode = OFF"):
            copy.execute(f"PRAGMA {setting}")
        copy.execute("ATTACH ? AS source", (f"{source.as_uri()}?mode=ro",))
        copy.executescript(_TABLES + _COMPACT_TABLES)
        copy.execute("BEGIN")  # of a store that is being written, one moment
        with progress("compact", len(_COPY)) as advance:
            for statement in _COPY:
                copy.execute(statement)
                advance()
        copy.execute("COMMIT")
        copy.execute(f"PRAGMA application_id = {_COMPACT}")
        copy.execute(f"PRAGMA user_version = {_LAYOUT[_COMPACT]}")


def connect(path: Path, read_only: bool) -> tuple[sqlite3.Connection, bool]:
    """(an autocommit connection, whether to a compacted copy); threads may share one that only reads."""
    compacted = _mark(path) == _COMPACT
    if compacted and not read_only:
        raise UserError(f"{path} is a compacted copy for look-ups: write to the store that it was made from")
    db = _open(path, "rw" if not read_only else "ro&immutable=1" if compacted else "ro", shared=read_only)
    settings = [] if read_only else ["synchronous = FULL", f"wal_autocheckpoint = {_LOG_PAGES}"]
    settings += [f"mmap_size = {_MAPPED}"] if compacted else []  # nobody cuts that file short: it may be mapped
    try:
        for setting in settings:
            db.execute(f"PRAGMA {setting}")
    except BaseException:
        db.close()
        raise
    return db, compacted


def _open(path: Path, mode: str, shared: bool = False) -> sqlite3.Connection:
    alone = not shared or sqlite3.threadsafety < 3
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=alone)


class SqliteErrors:
    """Turns what SQLite reports about the file or the disk into a UserError with `path` and the remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, sqlite3.Error) and (told := self.told(error)) is not error:
            raise told from error

    def told(self, error: sqlite3.Error) -> Exception:
        """The error in the user's words, or itself where it is none of the user's."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind of the error
        if "decode to UTF-8" in str(error):  # raised by Python, which has no code for it
            code = sqlite3.SQLITE_CORRUPT
        return UserError(f"cannot use {self.path} ({error}): {_REMEDY[code]}") if code in _REMEDY else error


@contextlib.contextmanager
def whole(path: Path, mode: int) -> Iterator[str]:
    """A temporary file that durably becomes `path` if the block ends well, else vanishes."""
    with disk_errors(path), SqliteErrors(path):
        _sweep(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        finally:
            os.close(handle)
        sync_folder(path.parent)


def _sweep(path: Path) -> None:
    """Removes what processes that were killed left of `path`: a copy may be as large as the store."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(OSError), open(left, "rb") as file:  # another process is at it, or was quicker
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def make_folder(path: Path) -> None:
    if not path.exists():  # mkdir's own exist_ok would complain of a file there in other words
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)


def _mark(path: Path) -> int:
    """_LIVE or _COMPACT; UserError for a missing, foreign or damaged file, and for another layout."""
    mark, layout = _head(path)
    if layout != _LAYOUT[mark]:
        remedy = "predict again into a new store" if mark == _LIVE else "compact the store that it was made from again"
        raise UserError(f"{path} has layout {layout}, not {_LAYOUT[mark]}: {remedy}")
    return mark


def _head(path: Path) -> tuple[int, int]:
    """(mark, layout) of a store's file.

    SQLite reads it and not `open`: POSIX lets go of all of a process's locks on a file when any descriptor of it is
    closed, and a connection that this process has to the file would read what the writer is about to overwrite.
    """
    if not path.exists():
        raise UserError(f"no prediction store at {path}: make one with limbeck predict")
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UserError(f"cannot read {path}: name a prediction store, and check its permissions")
    with SqliteErrors(path), contextlib.closing(_open(path, "ro")) as db:
        [mark] = db.execute("PRAGMA application_id").fetchone()
        [layout] = db.execute("PRAGMA user_version").fetchone()
    if mark not in _LAYOUT:
        raise UserError(f"{path} is damaged or not a prediction store: check the path, or {REBUILD}")
    return mark, layout
