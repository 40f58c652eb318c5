"""Splits in a folder: one file each, in shards, in folders; and every way in which they are not whole."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.model.errors import UserError
from limbeck.tasks.sources import load_task
from limbeck.tasks.task import Task

ROWS = [{"input": f"fruit {i}", "output": f"class {i}"} for i in range(10)]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path: Path, *parts: str, **options) -> None:
    with pytest.raises(UserError) as error:
        load_task(path, **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def asked(task: Task, split: str) -> list[str]:
    return [record["input"] for record in task.splits[split]]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"],
        ["data/train-00000-of-00003-0a1b2c", "data/train-00001-of-00003-99", "data/train-00002-of-00003-ff"],
        ["train/0000", "train/0001", "train/0002"],
        ["data/train/a", "data/train/b", "data/train/c"],
    ],
)
def test_shards_are_read_in_order(tmp_path: Path, names: list[str], ending: str) -> None:
    parts = [ROWS[:4], ROWS[4:5], ROWS[5:]]
    files = [write(tmp_path / f"{name}{ending}", rows) for name, rows in zip(names, parts, strict=True)]
    write(tmp_path / f"test{ending}", ROWS[:2])
    task = load_task(tmp_path)
    assert asked(task, "train") == [row["input"] for row in ROWS]
    assert [record["id"] for record in task.splits["train"]] == [f"train/{i}" for i in range(1, 11)]
    assert [task.place(task.splits["train"][i]) for i in (3, 4, 5)] == [
        f"{files[0]}, row 4",
        f"{files[1]}, row 1",
        f"{files[2]}, row 1",
    ]


def test_a_row_left_out_changes_no_other_id(tmp_path: Path) -> None:
    for shard in range(2):
        write(tmp_path / f"train-0000{shard}-of-00002.jsonl", [*ROWS[shard * 4 :][:4], {"input": "no output"}])
    write(tmp_path / "test.jsonl", ROWS)
    task = load_task(tmp_path, on_bad_row="skip")
    assert [record["id"] for record in task.splits["train"]] == [f"train/{i}" for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert len(task.skipped) == 2 and "00001-of-00002.jsonl, row 5" in task.skipped[1]


def test_shards_that_are_not_whole(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00003.jsonl", ROWS)
    write(tmp_path / "train-00002-of-00003.jsonl", ROWS)
    refused(tmp_path, "train-...-of-00003.jsonl", "3 files", "00000, 00002:")
    write(tmp_path / "train-00001-of-00003.jsonl", ROWS)
    load_task(tmp_path)
    write(tmp_path / "train-00001-of-00003-0b.jsonl", ROWS)
    refused(tmp_path, "00000, 00001, 00001, 00002")


@pytest.mark.parametrize(
    "other", ["train.csv", "train/0.jsonl", "data/train-00000-of-00001.jsonl", "train-00000-of-00001.jsonl"]
)
def test_a_split_in_two_places(tmp_path: Path, other: str) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / other, ROWS)
    refused(tmp_path, "train.jsonl", "both are the train split: keep one")


def test_described_splits_may_be_shards(tmp_path: Path) -> None:
    write(tmp_path / "data" / "fit-00000-of-00001.jsonl", ROWS)
    write(tmp_path / "data" / "dev.jsonl", ROWS[:3])
    write(tmp_path / "eval" / "x.jsonl", ROWS[:2])
    splits = {"train": "fit", "validation": "dev.jsonl", "test": "eval"}
    task = load_task(tmp_path, description={"splits": splits})
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 10, "validation": 3, "test": 2}
    refused(tmp_path, "no file 'evil'", "did you mean 'eval'", description={"splits": {"train": "evil"}})
    for outside in ("../data/dev.jsonl", "/etc/passwd", ".."):
        refused(tmp_path, f"no file {outside!r}", description={"splits": {"train": outside}})
