"""Shards: parts that were made apart merge into the store that one process would have made."""

import hashlib
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.inference import store as store_module
from limbeck.inference.shards import merge, shard_of
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

MANIFEST = {"weights": "w" * 64, "tokenizer": "t" * 64, "dtype": "float32", "job": "{}"}


def key_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


ROWS = [(key_of(str(i)), f"سؤال {i}", {"text": f" جواب\u200c {i}", "logprob": -i / 7}) for i in range(500)]
FAILURES = [(key_of(f"f{i}"), f"f{i}", "too long") for i in range(20)]


def made(path, rows=(), failures=(), manifest=MANIFEST, links=None):
    with PredictionStore(path, manifest=manifest) as store:
        store.put_many(rows, links)
        store.fail_many(failures)
    return path


def compacted(path):
    with PredictionStore(path, read_only=True) as store:
        store.compact(f"{path}.compact")
    with open(f"{path}.compact", "rb") as file:
        return file.read()


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(1, 1000))
def test_every_key_has_one_shard_and_they_are_ranges(key, count):
    shard = shard_of(key, count)
    assert 0 <= shard < count
    assert shard_of("0" * 64, count) == 0 and shard_of("f" * 64, count) == count - 1
    assert shard_of(f"{int(key, 16) // 2:064x}", count) <= shard


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_shards_are_about_equal(count):
    sizes = [0] * count
    for i in range(20_000):
        sizes[shard_of(key_of(str(i)), count)] += 1
    mean = 20_000 / count
    assert all(abs(size - mean) < 5 * mean**0.5 for size in sizes)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merged_parts_are_the_store_of_one_process_byte_for_byte(tmp_path, order):
    whole = made(tmp_path / "whole.db", ROWS, FAILURES)
    parts = [
        made(
            tmp_path / f"part{shard}.db",
            [row for row in ROWS if shard_of(row[0], 3) == shard],
            [failure for failure in FAILURES if shard_of(failure[0], 3) == shard],
        )
        for shard in range(3)
    ]
    done = merge(tmp_path / "target.db", [parts[shard] for shard in order])
    assert done == (len(ROWS), 0, len(FAILURES))
    assert compacted(tmp_path / "target.db") == compacted(whole)
    assert merge(tmp_path / "target.db", parts) == (0, len(ROWS), len(FAILURES))  # and once more changes nothing
    assert compacted(tmp_path / "target.db") == compacted(whole)


def test_the_first_wins(tmp_path):
    key, other = ROWS[0][0], ROWS[1][0]
    target = made(tmp_path / "target.db", [(key, "q", {"text": "target"})])
    first = made(tmp_path / "a.db", [(key, "q", {"text": "a"}), (other, "Q", {"text": "a"})])
    second = made(tmp_path / "b.db", [(other, "r", {"text": "b"})], links=[("q", other), ("r", other)])
    assert merge(target, [first, second]) == (1, 2, 0)
    with PredictionStore(target, read_only=True) as store:
        assert store.find("q") == {"text": "target"}
        assert store.find("Q") == store.find("r") == store.get(other) == {"text": "a"}


def test_failures_give_way_to_predictions_and_keep_the_most_attempts(tmp_path):
    key, other = ROWS[0][0], ROWS[1][0]
    target = made(tmp_path / "target.db", [ROWS[1]], [(key, "q", "once")])
    part = made(tmp_path / "a.db", [], [(other, "x", "no more"), (key, "q", "once"), (key, "q", "twice")])
    older = made(tmp_path / "older.db", [], [(key, "q", "once")])
    for parts in ([part], [part, older], [part]):
        assert merge(target, parts) == (0, 0, 1)
    with PredictionStore(target, read_only=True) as store:
        assert store.failures() == [{"key": key, "query": "q", "reason": "twice", "attempts": 2}]
    merge(target, [made(tmp_path / "b.db", [ROWS[0]])])
    with PredictionStore(target, read_only=True) as store:
        assert store.failures() == []


@pytest.mark.parametrize("name", [*MANIFEST, "normalisation", "task"])
def test_a_part_of_other_digests_is_refused_before_anything_is_written(tmp_path, name):
    good = made(tmp_path / "good.db", ROWS[:3])
    value = "nfc_casefold" if name == "normalisation" else "other"
    bad = made(tmp_path / "bad.db", ROWS[3:6], manifest=MANIFEST | {name: value})
    with pytest.raises(UserError, match=f"different {name} .*merge parts of one job"):
        merge(tmp_path / "target.db", [good, bad])
    assert not (tmp_path / "target.db").exists()
    target = made(tmp_path / "target.db", ROWS[6:9])
    for parts in ([bad], [good, bad]):
        with pytest.raises(UserError, match=f"different {name}"):
            merge(target, parts)
    with PredictionStore(target, read_only=True) as store:
        assert list(store.rows()) == sorted(ROWS[6:9])


def test_a_part_that_does_not_say_its_weights_is_refused(tmp_path):
    part = made(tmp_path / "part.db", ROWS[:3], manifest={})
    with pytest.raises(UserError, match=r"different dtype \(\(none\) and float32\)"):
        merge(made(tmp_path / "target.db", ROWS[3:6]), [part])


def test_workers_without_work_and_other_places_of_the_model_are_no_obstacle(tmp_path):
    idle = made(tmp_path / "idle.db", manifest={})
    parts = [made(tmp_path / f"{i}.db", [ROWS[i]], manifest=MANIFEST | {"model": f"/{i}"}) for i in range(2)]
    assert merge(tmp_path / "target.db", [idle, *parts]).new == 2
    with PredictionStore(tmp_path / "target.db", read_only=True) as store:
        assert store.manifest == MANIFEST | {"normalisation": "nfc", "model": "/0"}
    assert merge(made(tmp_path / "new.db", manifest={}), parts).new == 2  # made by a job that was killed at once
    assert merge(tmp_path / "still.db", [idle]) == (0, 0, 0)
    with pytest.raises(UserError, match="nothing to merge"):
        merge(tmp_path / "target.db", [])


@pytest.mark.parametrize("table", ["predictions", "queries"])
def test_a_damaged_part_stops_the_merge_and_what_was_whole_is_there(tmp_path, table, monkeypatch):
    monkeypatch.setattr(store_module, "_LIST_ROWS", 100)
    part = made(tmp_path / "part.db", ROWS)
    with sqlite3.connect(part) as db:
        key = sorted(key for key, _, _ in ROWS)[250]
        db.execute(f"UPDATE {table} SET checksum = checksum + 1 WHERE key = ?", (key,))
    db.close()
    with pytest.raises(UserError, match="part.db: the row .* fails its checksum"):
        merge(tmp_path / "target.db", [part])
    with PredictionStore(tmp_path / "target.db", read_only=True) as store:
        store.check()
        assert store.count("predictions") == (200 if table == "predictions" else 500)
        assert key not in store or table == "queries"
    part.unlink()
    merge(tmp_path / "target.db", [made(part, ROWS)])  # restored
    assert compacted(tmp_path / "target.db") == compacted(made(tmp_path / "whole.db", ROWS))


def test_a_missing_part_and_a_target_that_is_being_written(tmp_path):
    part = made(tmp_path / "part.db", ROWS[:3])
    with pytest.raises(UserError, match="no prediction store at .*none.db"):
        merge(tmp_path / "target.db", [part, tmp_path / "none.db"])
    assert not (tmp_path / "target.db").exists()
    with PredictionStore(tmp_path / "target.db"), pytest.raises(UserError, match="being written by another process"):
        merge(tmp_path / "target.db", [part])


def test_parts_may_be_compacted_copies_and_still_growing(tmp_path):
    part = made(tmp_path / "part.db", ROWS[:100])
    with PredictionStore(part) as store:
        store.compact(tmp_path / "copy.db")
        store.put_many(ROWS[100:200])
        assert merge(tmp_path / "target.db", [tmp_path / "copy.db"]).new == 100
        assert merge(tmp_path / "target.db", [part]) == (100, 100, 0)
        store.put_many(ROWS[200:])
    assert merge(tmp_path / "target.db", [part]).new == 300


MERGER = """
import sys
from limbeck.inference import shards, store
store._LIST_ROWS = shards._LINKS = 3  # a commit for three rows: the more instants there are
print("start", flush=True)
shards.merge(sys.argv[1], sys.argv[2:])
"""


def test_a_merge_that_is_killed_goes_on(tmp_path):
    rng = random.Random(0)
    parts = [made(tmp_path / f"{i}.db", ROWS[i::2], FAILURES[i::2]) for i in range(2)]
    target, deaths = tmp_path / "target.db", 0
    for attempt in range(40):
        if attempt > 7 and deaths:  # more only where a busy machine let every merge end before it was killed
            break
        command = [sys.executable, "-c", MERGER, target, *parts]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout and child.stdout.readline() == "start\n"
            time.sleep(rng.uniform(0, 0.2) if attempt else 0)
            child.kill()
        deaths += child.returncode == -signal.SIGKILL
        if target.exists():
            with PredictionStore(target, read_only=True) as store:
                store.check()
    assert deaths
    merge(target, parts)
    assert compacted(target) == compacted(made(tmp_path / "whole.db", ROWS, FAILURES))
