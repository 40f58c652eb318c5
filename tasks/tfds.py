"""Data sets by their TFDS names, prepared as ArrayRecord files and read without TensorFlow."""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.tasks.tables import Table


def read_tfds(name: str, splits: Mapping[str, str]) -> dict[str, Table]:
    """Tables of a TFDS data set ("NAME", "NAME/config" or "NAME:version"), class numbers by their names.

    `splits` says which of its splits serves as which of ours; empty: those of the same name. The first call
    downloads and prepares it under $TFDS_DATA_DIR (or ~/tensorflow_datasets). Raises UserError: an unknown
    name, configuration or split, one that TensorFlow alone can prepare, no network, a row without a class.
    """
    import tensorflow_datasets as tfds

    folder = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    if base not in known or "=" in name:  # after a "=" TFDS would read settings of its own, such as a folder
        raise UserError(
            f"unknown TFDS name {base!r}: one of the {len(known)} that"
            f" tensorflow_datasets.list_builders() lists{nearest(base, known)}"
        )
    try:
        with alone(folder, base):
            builder = tfds.builder(name, data_dir=folder, file_format="array_record")
            builder.download_and_prepare()
    except ImportError as error:
        raise UserError(
            f"tfds:{name} cannot be prepared without {error.name}: save it as JSONL where that is installed"
        ) from error
    except OSError as error:
        raise UserError(
            f"tfds:{name} cannot be downloaded or written: {_first_line(error)}; prepare it where there is"
            f" a network and room, then copy it to {folder}"
        ) from error
    except (ValueError, AssertionError) as error:
        raise UserError(f"tfds:{name} is not to be had: {_first_line(error)}") from error
    there = list(builder.info.splits)
    ours = splits or {split: split for split in ("train", "validation", "test") if split in there}
    for split in ours.values():
        one_of(f"split of tfds:{name}", split, there)
    return {split: _table(builder, f"tfds:{name} {theirs}", theirs) for split, theirs in ours.items()}


def _table(builder: Any, place: str, split: str) -> Table:
    classes = {
        field: tuple(feature.names)
        for field, feature in builder.info.features.items()
        if getattr(feature, "names", None)  # a ClassLabel
    }
    rows = []
    for row, fields in enumerate(builder.as_data_source(split), 1):
        fields = dict(fields)
        for field, names in classes.items():
            if not 0 <= fields[field] < len(names):
                raise UserError(
                    f"{place}, row {row}: {field!r} is {fields[field]}, which names no class: where a split"
                    ' is unlabelled, name others as "splits" in a task.json'
                )
            fields[field] = names[fields[field]]
        rows.append((row, fields))
    return Table(place, rows, classes)


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Lets one process at a time prepare `name`: two at once write over each other's files."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
