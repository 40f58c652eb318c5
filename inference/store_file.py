"""The prediction store as a file: its one writer, making it, opening it, and words for what can be wrong."""

import contextlib
import fcntl
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, sync_folder

SCHEMA = 1

# Marks in the file's head, offset 68 (https://www.sqlite.org/fileformat2.html), readable before it is opened.
_LIVE = int.from_bytes(b"Limb", "big")
_COMPACT = int.from_bytes(b"LimC", "big")

_TABLES = """
CREATE TABLE manifest (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE predictions (key TEXT PRIMARY KEY, query TEXT NOT NULL, payload TEXT NOT NULL,
                          checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE queries (query TEXT PRIMARY KEY, key TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE failures (key TEXT PRIMARY KEY, query TEXT NOT NULL, reason TEXT NOT NULL,
                       attempts INTEGER NOT NULL) WITHOUT ROWID;
"""

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
    _make_folder(path.parent)
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
    if Path(f"{path}-wal").exists():  # SQLite would replay it into the new file
        raise UserError(f"{path} is gone but its log {path}-wal is there: restore one or remove the other")
    with _whole(path, mode=0o644) as temporary, contextlib.closing(sqlite3.connect(temporary)) as db:
        db.executescript(_TABLES)
        db.executemany("INSERT INTO manifest VALUES (?, ?)", manifest.items())
        db.execute(f"PRAGMA application_id = {_LIVE}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.commit()
        # Here and not in the live file: a kill during the change leaves a journal that readers cannot roll back.
        db.execute("PRAGMA journal_mode = WAL")


def compact(db: sqlite3.Connection, path: Path) -> None:
    """Writes an immutable copy of an open store; `path` holds the old copy or the new one at any instant."""
    if path.exists() and _mark(path) != _COMPACT:
        raise UserError(f"{path} exists and is not a compacted store: name another file")
    _make_folder(path.parent)
    with _whole(path, mode=0o444) as temporary:
        db.execute("VACUUM INTO ?", (temporary,))
        with contextlib.closing(sqlite3.connect(temporary)) as copy:
            copy.execute(f"PRAGMA application_id = {_COMPACT}")


def connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """An autocommit connection: immutable for a compacted copy, else read-only or the one writer."""
    compacted = _mark(path) == _COMPACT
    if compacted and not read_only:
        raise UserError(f"{path} is a compacted copy for look-ups: write to the store that it was made from")
    mode = "mode=rw" if not read_only else "mode=ro&immutable=1" if compacted else "mode=ro"
    db = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, isolation_level=None)
    try:
        if not read_only:
            db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


class SqliteErrors:
    """Turns what SQLite reports about the file or the disk into a UserError with `path` and the remedy.

    A class and not a generator: a look-up passes through it, and a generator would be a tenth of its time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind of the error
        if "decode to UTF-8" in str(error):  # raised by Python, which has no code for it
            code = sqlite3.SQLITE_CORRUPT
        if code in _REMEDY:
            raise UserError(f"cannot use {self.path} ({error}): {_REMEDY[code]}") from error


@contextlib.contextmanager
def _whole(path: Path, mode: int) -> Iterator[str]:
    """A temporary SQLite file that durably becomes `path` if the block ends well, else vanishes."""
    with disk_errors(path), SqliteErrors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        sync_folder(path.parent)


def _make_folder(path: Path) -> None:
    if not path.exists():  # mkdir's own exist_ok would complain of a file there in other words
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)


def _mark(path: Path) -> int:
    """_LIVE or _COMPACT, from the file's head; UserError for a missing, foreign, damaged or newer file."""
    try:
        with open(path, "rb") as file:
            head = file.read(100)
    except FileNotFoundError as error:
        raise UserError(f"no prediction store at {path}: make one with limbeck predict") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    mark, version = int.from_bytes(head[68:72], "big"), int.from_bytes(head[60:64], "big")
    if not head.startswith(b"SQLite format 3\0") or mark not in (_LIVE, _COMPACT):
        raise UserError(f"{path} is damaged or not a prediction store: check the path, or {REBUILD}")
    if version != SCHEMA:
        raise UserError(f"{path} has layout {version}, not {SCHEMA}: predict again into a new store")
    return mark
