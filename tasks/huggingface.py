"""Data sets as the Hugging Face library `datasets` leaves them on disk, read without it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.model.errors import UserError
from limbeck.tasks.readers import Rows, arrow_rows, rows_of
from limbeck.tasks.tables import Table

Classes = dict[str, tuple[str, ...]]


def saved_tables(folder: Path) -> dict[str, Table] | None:
    """The splits of what `save_to_disk` wrote, by its names; a Dataset without splits is "train". None: it is no such.

    Raises UserError for a listed file that is not there or not in the folder, and for files of an old version that
    hold a selection of rows, which they leave to be applied.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits:
            raise UserError(f'{folder / "dataset_dict.json"} lists no "splits": save the data set again')
        return {split: _saved(_inside(folder, split)) for split in splits}
    if (folder / "state.json").is_file():
        return {"train": _saved(folder)}
    return None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def class_names(features: object) -> Classes:
    """Names of the classes of every field that has them, alone or in a list; as `datasets` describes its features."""
    found: Classes = {}
    for name, feature in features.items() if isinstance(features, Mapping) else ():
        if isinstance(feature, list) and feature:  # how a list was written before it was a feature of its own
            feature = feature[0]
        if isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, Mapping) else None
        if isinstance(names, list) and all(isinstance(part, str) for part in names):
            found[str(name)] = tuple(names)
    return found


def parquet_classes(path: Path) -> Classes:
    """Names of classes from what `datasets` wrote into the file's own metadata; none where it did not write it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError, OSError, pa.ArrowException):
        return {}  # a file that cannot be read says so when its rows are asked for
    return class_names(features)


_FIELD = re.compile(r"^( *)- name: *(.+)$")
_CLASS = re.compile(r"^ *(['\"]?)(\d+)\1 *: *(.*)$")


def readme_classes(folder: Path) -> Classes:
    """Names of classes from the header of a README.md in the folder or the one above it, as `datasets` writes it.

    Not all of YAML is read: a field in another form has no names here, and its numbers stay numbers. So has a field
    that two configurations of the data set give different names.
    """
    for place in (folder, folder.parent):
        if (place / "README.md").is_file():
            text = (place / "README.md").read_text(encoding="utf-8-sig", errors="replace")
            header = text.split("\n---", 1)[0] if text.startswith("---") else ""
            return _header_classes(header.splitlines())
    return {}


def _header_classes(lines: list[str]) -> Classes:
    met: dict[str, set[tuple[str, ...]]] = {}
    field, names, listed = None, [], False
    for line in [*lines, "- name: end"]:
        start, entry = _FIELD.match(line), _CLASS.match(line)
        if listed and entry and int(entry[2]) == len(names):
            names.append(_unquoted(entry[3].strip()))
            continue
        if listed and field and names:
            met.setdefault(field, set()).add(tuple(names))
            names = []
        if start:
            field = _unquoted(start[2].strip())
        listed = line.strip() == "names:" or (listed and not line.strip())
    return {field: known.pop() for field, known in met.items() if len(known) == 1}


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return json.loads(text)
        except ValueError:
            return text[1:-1]
    return text


def _saved(folder: Path) -> Table:
    state = _json(folder / "state.json")
    kept = state.get("_indices_data_files") or state.get("_indices_files")
    if kept:
        raise UserError(
            f"{folder / 'state.json'} keeps a selection of rows in {json.dumps(kept):.80}, as old versions of"
            " `datasets` did: load it there, call flatten_indices(), and save it again"
        )
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not listed:
        raise UserError(f'{folder / "state.json"} lists no "_data_files": save the data set again')
    files = [_inside(folder, entry.get("filename") if isinstance(entry, Mapping) else entry) for entry in listed]
    info = folder / "dataset_info.json"
    classes = class_names(_json(info).get("features")) if info.is_file() else {}
    place = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return Table(place, rows_of(files, _arrow), classes)


def _inside(folder: Path, name: object) -> Path:
    """The file or folder of that name right in the folder. Raises UserError for any other name, such as '../x'."""
    if not isinstance(name, str) or name not in {entry.name for entry in folder.iterdir()}:
        raise UserError(f"no {name!r:.80} in {folder}, which lists it: save or fetch the data set again")
    return folder / name


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; it must be one JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must be one JSON object: save the data set again")
    return value


def _arrow(path: Path) -> Rows:
    """Rows of a file in Arrow's streaming format, one batch in memory at a time."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
            yield from arrow_rows(path, batches)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError) as error:  # damage has many faces
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; save the data set again") from error
