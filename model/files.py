"""Files that are whole or not there: atomic writes, locks, digests, and the user's words for what a disk refuses."""

import contextlib
import errno
import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from limbeck.model.errors import UserError

_REMEDY = {
    errno.ENOSPC: "the disk is full; free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is spent; free some space, then run the same command again",
    errno.EACCES: "no permission to write there; choose another folder or change its permissions",
    errno.EPERM: "no permission to write there; choose another folder or change its permissions",
    errno.EROFS: "that file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of that path is a file; choose another folder",
    errno.EEXIST: "that is a file; choose another folder",
    errno.EISDIR: "that is a folder; name a file",
}


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the disk refuses (full, read-only, no permission) into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDY:
            raise
        raise UserError(f"cannot write {os.fspath(path)}: {_REMEDY[error.errno]}") from error


def write_atomic(path: str | os.PathLike[str], data: bytes | str | Iterable[str]) -> None:
    """Writes `data` (text as UTF-8, as it comes) so that `path` holds the old content or the new one, at any instant.

    Raises UserError when the disk is full or the place cannot be written.
    """
    path = Path(path)
    with disk_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                for part in [data] if isinstance(data, bytes | str) else data:
                    file.write(part.encode() if isinstance(part, str) else part)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool) -> Iterator[None]:
    """Holds the lock file `path` for this block: one process, and one block of it, at a time.

    Its folder is made if need be, and the file stays. The system lets go of it when the process ends, however it ends.
    Raises UserError where it cannot be written and, unless it is to `wait`, where another holds it.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(
                    f"{path.parent} is in use by another process; wait for it, or choose another folder"
                ) from None
            print(f"waiting for another process that holds {path}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Makes the renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
