"""The folder of a run: what was run and with what, held by one process at a time, and what it measured."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from limbeck.experiments.config import flatten
from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, write_atomic

_PACKAGES = ("limbeck", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_MARK, _SEEN_WITHIN = ".shared", 20  # seconds: a network's file system may show a new file late
_SOURCE = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def open_run(workdir: Path, config: Any, argv: Sequence[str], fixed: bool = True) -> Iterator[Path]:
    """Makes or enters the folder of a run and holds it for this process alone; yields its path.

    It holds config.json, command.txt (a line for each start), versions.json and commit (of the last start).
    Raises UserError if the folder belongs to a run of another config (where that is `fixed`), is held by another
    process, or cannot be written.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; a run needs a folder: choose another --workdir")
    with disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir} is in use by another run; wait for it, or choose another --workdir"
            ) from None
        if not fixed:
            (workdir / "config.json").unlink(missing_ok=True)
        _claim(workdir, config)
        _describe(workdir, argv)
        yield workdir
    finally:
        os.close(lock)


@contextlib.contextmanager
def shared_run(workdir: Path, config: Any, argv: Sequence[str]) -> Iterator[Path]:
    """`open_run` by the process that leads; the others wait for it, must see the same folder, and are silent.

    Raises UserError in all of them where one does not see it, and as `open_run` does: none is to be started again.
    """
    from limbeck.model.hosts import from_leader, leads, without

    with contextlib.ExitStack() as stack:
        told, mark = "", secrets.token_hex(16)
        if leads():
            try:
                write_atomic(stack.enter_context(open_run(workdir, config, argv)) / _MARK, mark)
            except UserError as error:
                told = str(error)
        told, mark = from_leader((told, mark))
        if told:
            raise UserError(told)
        if blind := without(_sees(workdir / _MARK, mark)):
            raise UserError(
                f"{workdir.absolute()} of process {blind[0]} is not the run's folder of process 0: name one on a file "
                "system that all hosts share"
            )
        if not leads():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield workdir


def _sees(path: Path, content: str) -> bool:
    for _ in range(_SEEN_WITHIN):
        with contextlib.suppress(OSError):
            if path.read_text() == content:
                return True
        time.sleep(1)
    return False


def versions() -> dict[str, str]:
    """The versions that a number depends on: Python, the platform, and the packages that compute."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The git commit of this source tree, "(modified)" if it has changes; None where there is no git."""
    try:
        # Installed inside some other project's work tree, this is not its root, and the commit is not ours.
        if _git("rev-parse", "--show-prefix"):
            return None
        return _git("rev-parse", "HEAD") + (" (modified)" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def plain(config: Any) -> dict[str, Any]:
    """Dotted names and what JSON makes of the values, as a config is written and compared with."""
    return json.loads(json.dumps(flatten(config), default=str))


def stage(rundir: Path, name: str, compute: Callable[[], Any]) -> Any:
    """The result (JSON) of a stage of a run, from `stages/<name>.json` if an earlier start got that far.

    Processes that run it together all compute it, and have the leader's result.
    """
    from limbeck.model.hosts import from_leader, leads  # brings JAX, which a run's folder is there before

    path = rundir / "stages" / f"{name}.json"
    # No other process looks: a network's file system may remember that a file was not there.
    if not from_leader(leads() and path.exists()):
        start = time.perf_counter()
        result = compute()
        record = {"seconds": time.perf_counter() - start, "result": result}
        if leads():
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, json.dumps(record, ensure_ascii=False, indent=1))
    return from_leader(json.loads(path.read_text(encoding="utf-8"))["result"] if leads() else None)


def stage_seconds(rundir: Path, *names: str) -> float:
    """What stages of a run took, as far as they are there."""
    paths = [rundir / "stages" / f"{name}.json" for name in names]
    return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in paths if path.exists())


def cache_folder(rundir: Path) -> Path:
    """What runs can share (training rows, compiled programs): beside the run, if that can be written, else in it."""
    beside = rundir.absolute().parent
    there = next(folder for folder in (beside, *beside.parents) if folder.exists())
    return (beside if os.access(there, os.W_OK) else rundir) / ".cache"


class MetricsLog:
    """metrics.jsonl of a run: one JSON object a line, each with the "stage" and "step" that it is about.

    A stage that went back to a checkpoint writes some steps again: its first row replaces what it wrote from
    that step on. A last line that was torn when a run was killed is dropped. Raises UserError if any other
    line is not JSON.
    """

    def __init__(self, rundir: Path):
        self._path = rundir / "metrics.jsonl"
        rows, whole = _read(self._path)
        if not whole:
            self._rewrite(rows)
        self._last = {row["stage"]: row["step"] for row in rows}

    def rows(self) -> list[dict[str, Any]]:
        """All that has been written, oldest first."""
        return _read(self._path)[0]

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row; its numbers may be numpy's or jax's scalars."""
        stage, step = row["stage"], row["step"]
        if step <= self._last.get(stage, -1):
            self._rewrite([old for old in self.rows() if old["stage"] != stage or old["step"] < step])
        self._last[stage] = step
        with disk_errors(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=float, ensure_ascii=False) + "\n")

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_atomic(self._path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _claim(workdir: Path, config: Any) -> None:
    """Writes config.json, or compares with the one that is there."""
    path = workdir / "config.json"
    mine = plain(config)
    if not path.exists():
        write_atomic(path, json.dumps(mine, indent=2, ensure_ascii=False) + "\n")
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); choose another --workdir, or delete that folder"
        ) from error
    for name in mine | theirs:
        here, there = _show(mine, name), _show(theirs, name)
        if here != there:
            raise UserError(
                f"{workdir} holds a run with {name} {there}, and this one has {here}; "
                "choose another --workdir, or delete that folder"
            )


def _show(values: dict[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "absent"


def _describe(workdir: Path, argv: Sequence[str]) -> None:
    with disk_errors(workdir), open(workdir / "command.txt", "a", encoding="utf-8") as file:
        file.write(shlex.join(argv) + "\n")
    now = versions()
    path = workdir / "versions.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        # Numbers of one run from two versions may differ in their last digits: said, not refused.
        changes = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in changed)
        print(f"note: this run was begun with other versions: {changes}", file=sys.stderr)
    write_atomic(path, json.dumps(now, indent=2) + "\n")
    if sha := commit():
        write_atomic(workdir / "commit", sha + "\n")


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(_SOURCE), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _read(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows, and whether the file ends in a whole line."""
    if not path.exists():
        return [], True
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON: delete that line, then run again") from error
    return rows, not rest
