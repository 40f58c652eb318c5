"""Training rows on disk: tokenised and packed once, then memory-mapped by every run that needs the same.

An entry is a folder named by its key: the arrays as .npy files, `rows.json`, and `manifest.json` with the SHA-256 of
each. It is there whole or not at all.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.model.files import disk_errors, locked, sha256_file, sync_folder
from limbeck.model.tokenizer import Tokenizer
from limbeck.train.data import Rows

_SCHEMA = 1  # goes up with every change of what examples, packing or these files are


def rows_key(kind: str, tokenizer: Tokenizer, settings: dict[str, Any], texts: Iterable[str]) -> str:
    """The name of an entry: a digest of everything that its rows hang on.

    `kind` says how examples are made of the `texts`, `settings` (JSON) how they are laid into rows. The chat template
    is a part of the tokenizer.
    """
    digest = hashlib.sha256(json.dumps([_SCHEMA, kind, tokenizer.digest, settings], sort_keys=True).encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))  # so that no two lists of texts run together to the same bytes
        digest.update(data)
    return f"{kind}-{digest.hexdigest()[:32]}"


def cached(folder: str | os.PathLike[str], key: str, make: Callable[[], Rows]) -> Rows:
    """The rows of that key, memory-mapped: from `folder`, or made and kept there, once for all who ask at that time.

    An entry is verified as it is opened; one that is damaged is made again, which is said on stderr. Raises UserError
    where the rows cannot be written.
    """
    folder = Path(folder)
    entry, partial, old = folder / key, folder / f".{key}.partial", folder / f".{key}.old"
    rows, _ = _opened(entry)
    if rows is not None:
        return rows
    with locked(folder / f".{key}.lock", wait=True):
        rows, damage = _opened(entry)  # another process may have made it meanwhile
        if rows is not None:
            return rows
        if damage:
            print(f"note: the rows in {entry} are damaged ({damage}): they are made again", file=sys.stderr)
        with disk_errors(folder):
            for leftover in (partial, old):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        rows = make()
        with disk_errors(entry):
            try:
                _write(rows, partial)
                if entry.exists():
                    entry.rename(old)
                partial.rename(entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
            sync_folder(folder)
        rows, damage = _opened(entry)
        if rows is None:
            raise OSError(f"{entry} was written and does not read back: {damage or 'it is gone'}")
        return rows


def _write(rows: Rows, folder: Path) -> None:
    """The files of an entry, durable."""
    folder.mkdir()
    arrays = {f"{number}.{name}": array for number, group in enumerate(rows.groups) for name, array in group.items()}
    for name, array in {**arrays, "names_E": rows.names_E}.items():
        with open(folder / f"{name}.npy", "wb") as file:
            # Not np.save: on a disk that fills up its error does not say so.
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(np.ascontiguousarray(array).data)
    notes = {"groups": [list(group) for group in rows.groups], "skipped": rows.skipped}
    (folder / "rows.json").write_text(json.dumps(notes, ensure_ascii=False), encoding="utf-8")
    manifest = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        sync_folder(path)


def _opened(entry: Path) -> tuple[Rows | None, str]:
    """The rows of an entry, or None and what is wrong with it: nothing where there is none."""
    if not entry.is_dir():
        return None, ""
    try:
        manifest = json.loads((entry / "manifest.json").read_text(encoding="utf-8"))
        for name, digest in manifest.items():
            if sha256_file(entry / Path(name).name) != digest:
                return None, f"{name} is not what was written"
        notes = json.loads((entry / "rows.json").read_text(encoding="utf-8"))
        groups = tuple(
            {name: _mapped(entry / f"{number}.{name}.npy") for name in names}
            for number, names in enumerate(notes["groups"])
        )
        names_E = _mapped(entry / "names_E.npy")
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except (ValueError, AttributeError, TypeError, IsADirectoryError):  # no JSON, no UTF-8, no object, no file's name
        return None, "manifest.json is not what was written"
    return Rows(groups, names_E, tuple(notes["skipped"])), ""


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
