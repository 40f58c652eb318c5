"""Tasks by name or path: the built-in world, the user's own files and folders, Hugging Face folders, and TFDS."""

import os
from collections.abc import Mapping
from pathlib import Path

from limbeck.model.errors import UserError, nearest
from limbeck.tasks.description import Description, checked, described
from limbeck.tasks.folders import file_table, folder_tables
from limbeck.tasks.readers import READERS
from limbeck.tasks.records import task_of
from limbeck.tasks.tables import OnBadRow, Table, readable
from limbeck.tasks.task import Task


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    description: Description | None = None,
    on_bad_row: OnBadRow = "error",
) -> Task:
    """The task "world", one of TFDS ("tfds:NAME" or "tfds:NAME/config"), a folder, or one file.

    A folder holds train, test and perhaps validation, each as .jsonl, .csv or .parquet, in one file or in shards; or
    it is a Hugging Face data set: what `save_to_disk` wrote, or a repository of Parquet files as it was downloaded.
    Without a test, a fifth of train, chosen by its content, becomes one. Fields named input and output, text and
    label, or text (or sentence1 and sentence2) and score, a number, need no description; others are told by a
    task.json beside the data: {"input": "question", "output": "answer", "options": "from_train"}. `description`
    has the same keys and goes before those of a task.json. Every record's "id" is the row's own, or "<split>/<row>".

    "kind" is "generation", "classification", "multi_label" (the field is a list of options, or text in which ", "
    stands between them, "none" for no option) or "regression" (a finite number).

    Raises UserError, naming file and row, for whatever of this is missing or malformed. With on_bad_row="skip" bad
    rows are left out and listed in `Task.skipped`; a split of which nothing is left, or less than half, is an error.
    """
    name = os.fspath(name_or_path)
    given = checked(description or {}, "description")
    with readable(name):
        if name == "world":
            if given:
                raise UserError(f"the task 'world' describes itself: leave {', '.join(given)} out")
            from limbeck.tasks.world import world_task

            return world_task()
        path = Path(name)
        if path.name == "task.json":
            path = path.parent
        place = name if name.startswith("tfds:") else os.fspath(path)
        if path.is_dir():
            description, name = {**described(path), **given}, path.resolve().name
            place = f"tfds:{description['tfds']}" if "tfds" in description else place
        elif path.is_file():
            description, name = {**described(path.parent), **given}, path.stem
        else:
            description = given
        for key in ("splits", "tfds"):
            if key in given and (path.is_file() or key == "tfds" and not path.is_dir()):
                raise UserError(f"description: {key!r} goes with a folder, and {place} is none: leave it out")
        return task_of(name, open_tables(place, description.get("splits", {})), description, on_bad_row)


def open_tables(name: str, splits: Mapping[str, str]) -> dict[str, Table]:
    """The splits of a data set by TFDS name or path; `splits` says which of its own serves as which of ours.

    Raises UserError for an unknown name and for what is missing; rows are read when they are asked for.
    """
    if name.startswith("tfds:"):
        from limbeck.tasks.tfds import read_tfds

        return read_tfds(name.removeprefix("tfds:"), splits)
    path = Path(name)
    if path.is_dir():
        return folder_tables(path, splits)
    if path.is_file():
        return {"train": file_table(path)}
    near = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(
        f"unknown task {name!r}: 'world', 'tfds:NAME', a folder with a train file, or a file ending in"
        f" {', '.join(READERS)}{nearest(name, ['world', *near])}"
    )
