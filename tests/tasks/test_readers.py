"""Files of every format: each bad row and each bad file is one line that names file and row."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from limbeck.model.errors import UserError
from limbeck.tasks.sources import load_task

FRUITS = [{"input": f"fruit {i}", "output": f"class {i}"} for i in range(10)]
ENDINGS = [".jsonl", ".csv", ".parquet"]


def write(path: Path, rows: list[dict]) -> Path:
    """The rows as Parquet or JSONL, whichever the path's ending names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path: Path | str, *parts: str) -> None:
    """Loading it is a UserError of one line with each of `parts` in it."""
    with pytest.raises(UserError) as error:
        load_task(path)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b'{"input": "a", "output": "b"', ["malformed JSON", "one object a line"]),
        (b"[" * 100_000, ["malformed JSON"]),
        (b'{"input": ' + b"9" * 5000 + b', "output": "b"}', ["malformed JSON"]),
        (b'["a", "b"]', ["no JSON object"]),
        (
            b'{"imput": "a", "output": "b"}',
            ["no field 'input' among 'imput', 'output'", "did you mean 'imput'"],
        ),
        (b'{"input": "a"}', ["no field 'output'"]),
        (b'{"input": "caf\xe9", "output": "b"}', ["not UTF-8"]),
        (b'{"input": "\\ud800", "output": "b"}', ["'input' is not UTF-8"]),
        (b'{"input": " ", "output": "b"}', ["'input' is empty"]),
        (b'{"input": "a", "output": ""}', ["'output' is empty"]),
        (b'{"input": null, "output": "b"}', ["'input' is None", "text or a number"]),
        (b'{"input": ["a"], "output": "b"}', ["'input' is ['a']"]),
        (b'{"input": NaN, "output": "b"}', ["'input' is nan"]),
        (b'{"input": 1e999, "output": "b"}', ["'input' is inf"]),
        (b"", ["is empty: remove it"]),
        (b'{"id": "train/1", "input": "a", "output": "b"}', ["id 'train/1'", "row 1 already"]),
        (b'{"id": [], "input": "a", "output": "b"}', ["'id' is []"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: bytes, parts: list[str]) -> None:
    good = json.dumps(FRUITS[0]).encode()
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([good, good, line, good]))
    write(tmp_path / "test.jsonl", FRUITS)
    refused(tmp_path, str(tmp_path / "train.jsonl"), "row 3", *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"input,output\na,b\nc\n", ["row 3 has 1 fields where the header names 2 (input, output)"]),
        (b"input,output\na,b\nc,d,e\n", ["row 3 has 3 fields"]),
        (b"input,output\n\na,b\n", ["row 2 is empty"]),
        (b'input,output\na,b\nc,"d', ["row 3", "malformed CSV"]),
        (b"input,input\na,b\n", ["row 1", "named twice"]),
        (b"input,output\na,\xff\n", ["row 2", "not UTF-8"]),
        (b"input,output\n", ["is empty"]),
        ("input,output\na,b\n".encode("utf-16"), ["row 1", "not UTF-8"]),
        (b"input,output\na," + b"b" * 200_000, ["row 2", "field larger than field limit"]),
        (b"input;output\na;b\n", ["'input;output'", "which answers"]),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, text: bytes, parts: list[str]) -> None:
    (tmp_path / "train.csv").write_bytes(text)
    refused(tmp_path, str(tmp_path / "train.csv"), *parts)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1 and nothing more")
    refused(file, str(file), "is it a Parquet file?")
    whole = write(file, FRUITS).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, str(file), "is it a Parquet file?")
    broken = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"input": broken, "output": ["b", "c"]}), file)
    refused(file, str(file), "row 2", "not UTF-8")
    pq.write_table(pa.table({"input": pa.array([], pa.string()), "output": pa.array([], pa.string())}), file)
    refused(file, str(file), "is empty")


@pytest.mark.parametrize("ending", ENDINGS[:2])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_named(tmp_path: Path, ending: str, content: bytes) -> None:
    file = tmp_path / f"data{ending}"
    file.write_bytes(content)
    refused(file, str(file), "is empty")


# Anything at all


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ROWS = st.dictionaries(st.sampled_from(["input", "output", "id", "text", "label"]), JSON_VALUES).map(json.dumps)
LINES = st.lists(ROWS.map(str.encode) | st.binary(max_size=20), max_size=5).map(b"\n".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | LINES, st.sampled_from(ENDINGS))
@example(b"\x00\x0b\n,", ".csv")  # a header that is a line break to some
def test_any_bytes_are_a_task_or_one_line(tmp_path: Path, content: bytes, ending: str) -> None:
    file = tmp_path / f"data{ending}"
    file.write_bytes(content)
    try:
        task = load_task(file)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        task.digest()
        for record in task.splits["train"]:
            task.prompt(record, task.splits["test"]).encode()
