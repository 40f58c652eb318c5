"""Training checkpoints: Orbax for the arrays, a SHA-256 manifest beside them, the newest undamaged one on the way back.

A bit that flips in stored array data is restored silently wrong by Orbax, hence the manifest. A checkpoint is a tree
of arrays and JSON notes; it is written in the background, by the one run that holds the folder's lock. Of several
processes that train together each writes its part, while the run waits; what is read may lie on another mesh.
"""

import contextlib
import copy
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from limbeck.model.files import disk_errors, locked, sha256_file, sync_folder, write_atomic
from limbeck.model.hosts import from_leader, leads, together

_KEEP = 2

Save = Callable[[int, Any, dict[str, Any]], None]


@contextlib.contextmanager
def checkpoint_writer(folder: str | os.PathLike[str]) -> Iterator[Save]:
    """Holds the folder for this run alone; yields `save(step, tree, notes)`, which returns once the arrays are copied.

    Each save waits for the one before; leaving the block waits for the last. What went wrong in the background is
    raised there. Raises UserError for a folder that another run holds, and for a full disk.
    """
    folder = Path(folder).absolute()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    pending: list[Future[Path]] = []
    alone = locked(folder / ".lock", wait=False) if leads() else contextlib.nullcontext()
    with alone, ThreadPoolExecutor(1, "checkpoint") as pool:

        def save(step: int, tree: Any, notes: dict[str, Any]) -> None:
            if jax.process_count() > 1:  # writing waits for the others, which no thread may do beside the step
                write_checkpoint(folder, step, tree, notes)
                return
            if pending:
                pending.pop().result()
            # Copies: the run goes on, with the memory of this state, while the file is being written.
            own = jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)
            pending.append(pool.submit(write_checkpoint, folder, step, own, copy.deepcopy(notes)))

        yield save
        if pending:
            pending.pop().result()


def write_checkpoint(folder: str | os.PathLike[str], step: int, tree: Any, notes: dict[str, Any]) -> Path:
    """Writes `folder/<step>`, whole or not at all, with JSON `notes`, and drops all but the newest two.

    All processes that hold the arrays must call it. Raises UserError on a full disk.
    """
    folder = Path(folder).absolute()
    target, partial = folder / str(step), folder / f"{step}.partial"
    with disk_errors(target):
        if leads():
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("*.partial*"):  # of this process or of one that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
        together(f"there is room for {target.name}")
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial, tree)
        except ValueError as error:  # tensorstore has words for what the disk refuses, and no errno
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        if leads():
            _finish(partial, target, notes)
        together(f"{target.name} is written")
    return target


def _finish(partial: Path, target: Path, notes: dict[str, Any]) -> None:
    """Makes a checkpoint of the written arrays, and drops those that are too old."""
    write_atomic(partial / "notes.json", json.dumps(notes))
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(partial)): sha256_file(path) for path in files}
    for path in [*files, *(path for path in partial.rglob("*") if path.is_dir())]:
        sync_folder(path)
    write_atomic(partial / "manifest.json", json.dumps(manifest, indent=1))
    partial.rename(target)
    sync_folder(target.parent)
    for old in steps(target.parent)[:-_KEEP]:
        shutil.rmtree(target.parent / str(old), ignore_errors=True)


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps that have a finished checkpoint, oldest first."""
    folder = Path(folder)
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def newest_checkpoint(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files match their manifest, and its notes; None where there is none.

    Says on stderr which damaged checkpoints it passed over. Of several processes the one that leads chooses.
    """
    folder = Path(folder).absolute()
    found = from_leader(_newest(folder) if leads() else None)
    return (folder / found[0], found[1]) if found else None


def _newest(folder: Path) -> tuple[str, dict[str, Any]] | None:
    for step in map(str, reversed(steps(folder))):
        damaged = damage(folder / step)
        if not damaged:
            return step, json.loads((folder / step / "notes.json").read_bytes())
        print(f"checkpoint {folder / step} is damaged ({damaged}): trying the one before", file=sys.stderr)
    return None


def read_checkpoint(checkpoint: Path, like: Any) -> Any:
    """The arrays of a checkpoint; `like`, a tree of arrays or of their shapes, gives shapes, dtypes and shardings.

    Where they lay when they were written does not count.
    """

    def lying(leaf: Any) -> jax.ShapeDtypeStruct:
        # Said of a single device, too: Orbax else looks for the devices of then.
        where = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where)

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(checkpoint, jax.tree.map(lying, like))


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, or an empty string."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_bytes())
        for name, sha in manifest.items():
            if sha256_file(checkpoint / name) != sha:
                return f"{name} has changed"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return ""
