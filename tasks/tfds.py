"""Data sets by their TFDS names, prepared as ArrayRecord files and read without TensorFlow."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from limbeck.model.errors import UserError, nearest, one_of
from limbeck.model.files import locked
from limbeck.tasks.tables import Row, Table


def read_tfds(name: str, splits: Mapping[str, str]) -> dict[str, Table]:
    """Tables of a TFDS data set ("NAME", "NAME/config" or "NAME:version"), class numbers by their names.

    `splits` says which of its splits serves as which of ours; empty: those of the same name. The first call
    downloads and prepares it under $TFDS_DATA_DIR (or ~/tensorflow_datasets). Raises UserError: an unknown
    name, configuration or split, one that TensorFlow alone can prepare, no network.
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
        with locked(folder / f".{base}.lock", wait=True):  # two at once write over each other's files
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
    classes = {}
    for field, feature in builder.info.features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)  # a ClassLabel, or a sequence of them
        if names:
            classes[field] = tuple(names)
    return Table(place, _rows(builder, place, split), classes)


def _rows(builder: Any, place: str, split: str) -> Iterator[Row]:
    for row, fields in enumerate(builder.as_data_source(split), 1):
        yield Row(place, row, row, dict(fields))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
