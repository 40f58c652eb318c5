"""Training checkpoints: Orbax for the arrays, a SHA-256 manifest beside them, the newest undamaged one on the way back.

A bit that flips in stored array data is restored silently wrong by Orbax, hence the manifest. A checkpoint is a tree
of arrays and JSON notes; it is written in the background, by the one run that holds the folder's lock.
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

from limbeck.model.files import disk_errors, locked, sha256_file, sync_folder, write_atomic

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
    with locked(folder / ".lock", wait=False), ThreadPoolExecutor(1, "checkpoint") as pool:

        def save(step: int, tree: Any, notes: dict[str, Any]) -> None:
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

    Raises UserError on a full disk.
    """
    folder = Path(folder).absolute()
    target, partial = folder / str(step), folder / f"{step}.partial"
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.partial*"):  # of this process or of one that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial, tree)
        except ValueError as error:  # tensorstore has words for what the disk refuses, and no errno
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        write_atomic(partial / "notes.json", json.dumps(notes))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(partial)): sha256_file(path) for path in files}
        for path in [*files, *(path for path in partial.rglob("*") if path.is_dir())]:
            sync_folder(path)
        write_atomic(partial / "manifest.json", json.dumps(manifest, indent=1))
        partial.rename(target)
        sync_folder(folder)
        for old in steps(folder)[:-_KEEP]:
            shutil.rmtree(folder / str(old), ignore_errors=True)
    return target


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps that have a finished checkpoint, oldest first."""
    folder = Path(folder)
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def newest_checkpoint(folder: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files match their manifest, and its notes; None where there is none.

    Says on stderr which damaged checkpoints it passed over.
    """
    folder = Path(folder).absolute()
    for step in reversed(steps(folder)):
        damaged = damage(folder / str(step))
        if not damaged:
            return folder / str(step), json.loads((folder / str(step) / "notes.json").read_bytes())
        print(f"checkpoint {folder / str(step)} is damaged ({damaged}): trying the one before", file=sys.stderr)
    return None


def read_checkpoint(checkpoint: Path, like: Any) -> Any:
    """The arrays of a checkpoint; `like`, a tree of arrays, gives their shapes, dtypes and shardings."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(checkpoint, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


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
