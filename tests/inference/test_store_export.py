"""The export: a Parquet file that says what the store holds, and says it in the same bytes."""

import hashlib
import json
import random
import sqlite3
import tracemalloc

import pyarrow.parquet as pq
import pytest

from limbeck.inference import store as store_module
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError


def key_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


ROWS = [(key_of(str(i)), f" Query  {i} سیب\u200cها", {"text": f" answer {i}\n", "tokens": [i]}) for i in range(300)]


def exported(path, rows, manifest=None, links=None):
    with PredictionStore(path, manifest=manifest) as store:
        store.put_many(rows)
        store.put_many([], links=links or ())
        assert store.export(path.with_suffix(".parquet")) == len(rows)
    return pq.read_table(path.with_suffix(".parquet"))


def test_every_row_by_key(tmp_path):
    links = [("another spelling", ROWS[7][0]), ("Query 8 سیب\u200cها", ROWS[9][0])]
    table = exported(tmp_path / "p.db", ROWS, {"weights": "w", "model": "here"}, links)
    assert json.loads(table.schema.metadata[b"limbeck"]) == {"normalisation": "nfc", "weights": "w"}
    rows = {row["key"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(key for key, _, _ in ROWS)
    for key, query, payload in ROWS:
        row = rows[key]
        assert (row["query"], row["kind"], row["text"]) == (query, "generate", payload["text"])
        assert row["answer"] == payload["text"].strip() and json.loads(row["payload"]) == payload
    assert rows[ROWS[0][0]]["queries"] == ["Query 0 سیب\u200cها"]
    assert rows[ROWS[7][0]]["queries"] == ["Query 7 سیب\u200cها", "another spelling"]
    assert rows[ROWS[8][0]]["queries"] == []
    assert rows[ROWS[9][0]]["queries"] == ["Query 8 سیب\u200cها", "Query 9 سیب\u200cها"]


@pytest.mark.parametrize(
    ("payload", "manifest", "kind", "answer"),
    [
        ({"logprobs": [-3.0, -1.0], "lengths": [1, 1]}, {"options": '["ham", "سیب"]'}, "score", "سیب"),
        ({"values": [0.5, 2.0]}, {"options": '["ham", "spam"]', "job": '{"kind": "classify"}'}, "classify", "spam"),
        ({"values": [0.25]}, {"job": '{"kind": "regress"}'}, "regress", "0.25"),
        ({"values": [0.5, 2.0]}, {"job": '{"kind": "embed"}'}, "embed", None),
        ({"values": [0.25]}, {}, "values", "0.25"),
        ({"other": 1}, {}, None, None),
    ],
)
def test_kinds_and_answers(tmp_path, payload, manifest, kind, answer):
    [row] = exported(tmp_path / "p.db", [("k", "q", payload)], manifest).to_pylist()
    assert (row["kind"], row["answer"], row["text"]) == (kind, answer, None)
    assert json.loads(row["payload"]) == payload


def test_the_same_content_is_the_same_bytes_whatever_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_LIST_ROWS", 64)
    files = []
    for number in range(3):
        rows = random.Random(number).sample(ROWS, len(ROWS))
        with PredictionStore(tmp_path / f"{number}.db", manifest={"model": str(number)}) as store:
            for first in range(0, len(rows), 10 + number):
                store.put_many(rows[first : first + 10 + number])
            store.fail_many([("f", "q", "number")] * number)
            store.export(tmp_path / f"{number}.parquet")
            if number == 2:
                store.compact(tmp_path / "copy.db")
        files.append((tmp_path / f"{number}.parquet").read_bytes())
    with PredictionStore(tmp_path / "copy.db", read_only=True) as copy:
        copy.export(tmp_path / "copy.parquet")
    assert files[0] == files[1] == files[2] == (tmp_path / "copy.parquet").read_bytes()
    assert pq.read_metadata(tmp_path / "0.parquet").num_row_groups == 5


def test_an_empty_store(tmp_path):
    assert exported(tmp_path / "p.db", []).num_rows == 0


def test_memory_does_not_grow_with_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_LIST_CHARACTERS", 100_000)
    peaks = []
    for count in (50, 500):
        with PredictionStore(tmp_path / f"{count}.db") as store:
            store.put_many((f"{i:064x}", str(i), {"text": "x" * 10_000}) for i in range(count))
            store.export(tmp_path / "warm.parquet")
            tracemalloc.start()
            store.export(tmp_path / f"{count}.parquet")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_an_export_replaces_an_export_and_nothing_else(tmp_path):
    path = tmp_path / "p.db"
    exported(path, ROWS[:2])
    assert exported(path, ROWS[:2]).num_rows == 2  # over the first
    (tmp_path / "thesis.txt").write_text("years of work " * 20)
    pq.write_table(pq.read_table(path.with_suffix(".parquet")).replace_schema_metadata(), tmp_path / "own.parquet")
    with PredictionStore(path, read_only=True) as store:
        for name in ("thesis.txt", "own.parquet", "p.db"):
            before = (tmp_path / name).read_bytes()
            with pytest.raises(UserError, match="is (no export of a store|the store itself): name another file"):
                store.export(tmp_path / name)
            assert (tmp_path / name).read_bytes() == before
        with pytest.raises(UserError, match="a part of that path is a file"):
            store.export(tmp_path / "thesis.txt" / "p.parquet")
        assert store.export(tmp_path / "new" / "p.parquet") == 2


@pytest.mark.parametrize("table", ["predictions", "queries"])
def test_damage_leaves_the_older_export(tmp_path, table):
    path = tmp_path / "p.db"
    exported(path, ROWS)
    before = path.with_suffix(".parquet").read_bytes()
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE {table} SET checksum = checksum + 1 WHERE key = ?", (ROWS[5][0],))
    db.close()
    with PredictionStore(path, read_only=True) as store, pytest.raises(UserError, match="fails its checksum"):
        store.export(path.with_suffix(".parquet"))
    assert path.with_suffix(".parquet").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
