"""Rows of queries from every source, and what is said of one that cannot be asked."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.inference.agenda import BulkRequest, Refused
from limbeck.inference.inputs import Line, check_text, identities, open_input, row_count, texts_of
from limbeck.inference.requests import GenerateRequest
from limbeck.model.errors import UserError
from limbeck.tasks.tables import Row

ROWS = [{"prompt": "سیب", "n": 1}, {"prompt": "می‌روم\nخانه", "n": 2.5}, {"prompt": "c, d", "n": 3}]


def write(path: Path) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".csv":
        lines = [f'"{row["prompt"]}",{row["n"]}\n' for row in ROWS]
        path.write_text("prompt,n\n" + "".join(lines), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_gives_its_texts(tmp_path: Path, ending: str) -> None:
    name = write(tmp_path / f"q.{ending}")
    table = open_input(name, "test")
    found = [texts_of(table, row, ("prompt", "n")) for row in table.rows]
    assert [each["prompt"] for each in found] == [row["prompt"] for row in ROWS]
    assert [float(each["n"]) for each in found] == [1, 2.5, 3]
    assert row_count(name) == (5 if ending == "csv" else 3)  # about: a line break in a field counts


def test_a_tfds_split_gives_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    class TinyQueries(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            names = tfds.features.ClassLabel(names=["good", "bad"])
            features = {"text": tfds.features.Text(), "label": names, "stars": tfds.features.Scalar(np.float32)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"live": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield i, {"text": f"پرسش {i}", "label": i % 2, "stars": 0.5}

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    table = open_input("tfds:tiny_queries", "live")
    found = [texts_of(table, row, ("text", "label")) for row in table.rows]
    assert sorted(each["text"] for each in found) == [f"پرسش {i}" for i in range(4)]
    assert {each["label"] for each in found} == {"good", "bad"}
    assert row_count("tfds:tiny_queries") is None
    with pytest.raises(UserError, match="unknown split of tfds:tiny_queries 'test': one of live"):
        open_input("tfds:tiny_queries", "test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("q.josnl", "no input 'q.josnl'; did you mean 'q.jsonl'?"),
        ("nowhere/q.jsonl", "no input 'nowhere/q.jsonl'; give a file ending in .jsonl, .csv, .parquet"),
        (".", "no input '.'"),
        ("q.txt", "'.txt' is none of"),
        ("a" * 300, "cannot read"),
    ],
)
def test_what_is_no_input_is_said(tmp_path: Path, monkeypatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "q.jsonl")
    (tmp_path / "q.txt").write_text("a")
    with pytest.raises(UserError) as error:
        open_input(name, "test")
    assert message in str(error.value)


def test_rows_have_their_own_ids_or_their_numbers() -> None:
    contents = [{"id": "a"}, {"id": None}, {"id": 7}, UserError("bad"), {"id": "a"}, {}, {"id": "7"}, {"id": "6"}]
    rows = [Row("q.jsonl", number, number, content) for number, content in enumerate(contents, 1)]
    found = [(identity, wrong) for identity, _, wrong in identities(rows)]
    assert [identity for identity, _ in found] == ["a", "2", "7", "4", "a", "6", "7", "6"]
    assert [number for number, (_, wrong) in enumerate(found, 1) if wrong] == [5, 7]
    assert found[4][1] == "q.jsonl, row 5: the id 'a' is that of q.jsonl, row 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\u3000", "is empty"),
        ("x" * 1_000_001, "has 1,000,001 characters"),
        ("a\0", "control character '\\x00', number 1"),
        ("\x1b[31mred", "control character '\\x1b', number 0"),
        ("a\x9fb", "control character '\\x9f'"),
        ("a\udce9", "not valid Unicode"),
    ],
)
def test_text_that_cannot_be_asked(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_text(text, "row 1: 'prompt'")
    assert message in str(error.value) and str(error.value).startswith("row 1: 'prompt'")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["a\tb\r\nc", "می‌روم", "👩‍👩‍👧", "\u202bمتن\u202c", "a\u2028b\u0085c", "\ufeffa", "𝒳"])
def test_text_of_any_script_can(text: str) -> None:
    check_text(text, "row 1")


def test_a_line_is_its_requests_or_why_there_are_none() -> None:
    asked = BulkRequest("q", GenerateRequest((1,)))
    assert list(Line("a", "p", (asked, asked)).rows()) == [asked, asked]
    assert list(Line("a", "p", reason="no").rows()) == [Refused("p", "no")]
    assert Refused("p", "no").key != Refused("q", "no").key == Refused("q", "another").key
