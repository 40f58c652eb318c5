"""Training checkpoints: Orbax for the arrays, a SHA-256 manifest beside them, the newest undamaged one on the way back.

A bit that flips in stored array data is restored silently wrong by Orbax, hence the manifest.
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from limbeck.model.files import disk_errors, sha256_file, sync_folder, write_atomic
from limbeck.train.step import State

_KEEP = 2


def save_state(folder: str | os.PathLike[str], state: State, notes: dict[str, Any]) -> Path:
    """Writes `folder/<step>`, whole or not at all, with JSON `notes`, and drops all but the newest two.

    Raises UserError on a full disk.
    """
    folder = Path(folder).absolute()
    step = int(state.step)
    target, partial = folder / str(step), folder / f"{step}.partial"
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.partial*"):  # of this process or of one that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial, _as_tree(state))
        except ValueError as error:  # tensorstore has words for what the disk refuses, and no errno
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        write_atomic(partial / "notes.json", json.dumps(notes))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(partial)): sha256_file(path) for path in files}
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


def restore_state(folder: str | os.PathLike[str], like: State) -> tuple[State, dict[str, Any]] | None:
    """The newest checkpoint whose files match their manifest, with its notes; None where there is none.

    `like` gives the shapes and dtypes. Says on stderr which damaged checkpoints it passed over.
    """
    folder = Path(folder).absolute()
    for step in reversed(steps(folder)):
        damaged = damage(folder / str(step))
        if damaged:
            print(f"checkpoint {folder / str(step)} is damaged ({damaged}): trying the one before", file=sys.stderr)
            continue
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_tree(like))
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder / str(step), target)
        opt = jax.tree.unflatten(jax.tree.structure(like.opt), restored["opt"])
        notes = json.loads((folder / str(step) / "notes.json").read_bytes())
        return State(restored["step"], restored["trainable"], opt), notes
    return None


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


def _as_tree(state: State) -> dict:
    """The state as Orbax stores it: the optimiser's leaves in a list, since its own classes are optax's affair."""
    return {"step": state.step, "trainable": state.trainable, "opt": jax.tree.leaves(state.opt)}
