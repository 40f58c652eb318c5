"""The splits of a folder: one file each, shards of one, folders of files, or a data set that Hugging Face saved."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from limbeck.model.errors import UserError, nearest
from limbeck.tasks.huggingface import parquet_classes, readme_classes, saved_tables
from limbeck.tasks.readers import READERS, reader_of, rows_of
from limbeck.tasks.tables import Table
from limbeck.tasks.task import SPLITS

_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?")

Files = dict[str, dict[str, list[Path]]]  # split -> what holds it ("train.csv", "train/") -> its files in order


def folder_tables(folder: Path, splits: Mapping[str, str]) -> dict[str, Table]:
    """The tables of a folder's splits, by our names; `splits` (ours -> a split or a file of it) if they differ.

    Train, validation and test are found as train.jsonl (.csv, .parquet), as train-00000-of-00003.jsonl and so on, as
    the files of a folder train, and each of these in the folder "data" as well, which is how Hugging Face repositories
    lie. Raises UserError: no such file, a split in two places, a missing shard, no train at all.
    """
    saved = saved_tables(folder)
    if saved is not None:
        ours = splits or {split: split for split in SPLITS if split in saved}
        for split in ours.values():
            if split not in saved:
                raise UserError(f"no split {split!r} in {folder}: one of {', '.join(saved)}{nearest(split, saved)}")
        tables = {split: saved[theirs] for split, theirs in ours.items()}
        there: Sequence[str] = list(saved)
    else:
        found = split_files(folder, tuple(READERS))
        ours = splits or {split: split for split in SPLITS if split in found}
        tables = {split: file_table(*chosen(folder, found, theirs)) for split, theirs in ours.items()}
        there = sorted(entry.name for entry in folder.iterdir())
    if "train" not in tables:
        shown = ", ".join(there[:10]) + (", ..." if len(there) > 10 else "") if there else "nothing"
        raise UserError(
            f"{folder} has no train split among {shown}: name a file train{', train'.join(READERS)},"
            ' set "splits" in task.json, or give the path of one file'
        )
    return tables


def file_table(*files: Path) -> Table:
    """The table of one file, or of the shards of one, with the class names that Parquet files or a README tell."""
    for file in files:
        reader_of(file)
    place = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    classes = {}
    if files[0].suffix.lower() == ".parquet":
        classes = parquet_classes(files[0]) or readme_classes(files[0].parent)
    return Table(place, rows_of(files), classes)


def split_files(folder: Path, endings: Sequence[str]) -> Files:
    """Every candidate for a split in a folder and in its folder "data", and every file by its own name."""
    found: Files = {}
    for place in (folder, folder / "data"):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            if entry.is_dir():
                inner = [file for file in sorted(entry.iterdir()) if file.suffix.lower() in endings]
                if inner and entry != folder / "data":
                    found.setdefault(entry.name, {})[f"{entry.name}/"] = inner
            elif entry.suffix.lower() in endings:
                shard = _SHARD.fullmatch(entry.stem)
                split = shard["split"] if shard else entry.stem
                holder = f"{split}-...-of-{shard['total']}{entry.suffix}" if shard else entry.name
                found.setdefault(split, {}).setdefault(holder, []).append(entry)
                found.setdefault(entry.name, {}).setdefault(entry.name, [entry])
    return found


def chosen(folder: Path, found: Files, split: str) -> list[Path]:
    """The files of one split, or the one file of that name. Raises UserError: none, two candidates, a missing shard."""
    if split not in found:  # also keeps every path inside the folder
        raise UserError(f"no file {split!r} in {folder}: name one that is there{nearest(split, found)}")
    first, *others = found[split].items()
    if others:
        raise UserError(f"{folder / first[0]} and {others[0][0]} both are the {split} split: keep one")
    holder, files = first
    if "-...-of-" in holder:
        numbers = [int(shard["number"]) for file in files if (shard := _SHARD.fullmatch(file.stem))]
        total = int(holder.split("-...-of-")[1][:5])
        if numbers != list(range(total)):
            raise UserError(
                f"{folder / holder}: there must be {total} files numbered from 00000, each once, and there are"
                f" {', '.join(f'{number:05}' for number in numbers)}: fetch or write the data again"
            )
    return files
