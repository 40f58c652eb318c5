"""The store looked after: what its status says, what pruning takes, what a check finds, who may have it open."""

import contextlib
import sqlite3
import subprocess
import sys
import threading

import pytest

from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

ROWS = [(f"{i:064x}", f"query {i}", {"text": f"answer {i}"}) for i in range(200)]

WRITER = """
import sys
from limbeck.inference.store import PredictionStore
with PredictionStore(sys.argv[1]) as store:
    store.put_many([(sys.argv[2] + str(i), sys.argv[2] + str(i), {"text": "x" * 200}) for i in range(1000)])
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "predictions.db"
    with PredictionStore(path, manifest={"weights": "w" * 64, "model": "here"}) as store:
        store.put_many(ROWS)
        store.fail_many([("f1", "too long 1", "too long"), ("f2", "too long 2", "too long"), ("f3", "odd", "odd")])
        store.fail_many([("f3", "odd", "odd")])
    return path


@pytest.mark.parametrize("compacted", [False, True])
def test_status(path, tmp_path, compacted):
    if compacted:
        with PredictionStore(path) as store:
            store.compact(tmp_path / "compact.db")
        path = tmp_path / "compact.db"
    with PredictionStore(path, read_only=True) as store:
        status = store.status()
        assert status.pop("bytes") >= path.stat().st_size
        assert list(status["reasons"]) == ["too long", "odd"]  # the most frequent first
        assert status == {
            "rows": 200,
            "queries": 200,
            "failures": 3,
            "reasons": {"too long": 2, "odd": 1},
            "asked": 203,
            "coverage": 200 / 203,
            "stale": None,
            "manifest": {"normalisation": "nfc", "weights": "w" * 64, "model": "here"},
        }


def test_coverage_of_queries_that_were_asked_counts_each_once(path):
    asked = ["query 1", " query  1", "query 2", "query 2000", "odd", "", "\udce9"]
    with PredictionStore(path, read_only=True) as store:
        status = store.status(asked=asked)
        assert (status["asked"], status["coverage"]) == (6, 2 / 6)
        assert store.status(asked=[])["coverage"] == 1.0


def test_staleness_is_by_the_digest_of_the_weights(path, tmp_path):
    with PredictionStore(path, read_only=True) as store:
        assert store.status(weights="w" * 64)["stale"] == 0
        assert store.status(weights="v" * 64)["stale"] == 200
    with PredictionStore(tmp_path / "empty.db") as store:
        assert store.status(weights="v" * 64)["stale"] == 0
        store.put_many(ROWS[:3])  # of weights that nobody named
        assert store.status(weights="v" * 64)["stale"] == 3


def test_where_the_model_was_is_a_hint_and_no_reason_to_refuse(path):
    with PredictionStore(path, read_only=True, manifest={"model": "elsewhere"}) as store:
        assert store.manifest["model"] == "here"
    with PredictionStore(path, manifest={"weights": "w" * 64, "model": "elsewhere"}):
        pass
    with PredictionStore(path, read_only=True) as store:
        assert store.manifest["model"] == "elsewhere"


def test_pruning_forgets_what_is_named_and_gives_room_back(path):
    with PredictionStore(path) as store:
        store.put_many([("s1", "query 1", {"text": "x" * 500_000})], links=[])  # a second sample, found by its key
        store.put_many([], links=[("query 2", ROWS[3][0])])  # and nothing leads to the third row any more
        before = store.status()["bytes"]
        assert store.prune() == {}
        assert store.prune(failures=True) == {"failures": 3}
        assert store.failures() == [] and store.get("s1") is not None
        assert store.prune(unfound=True) == {"unfound": 2}
        assert "s1" not in store and ROWS[2][0] not in store
        assert store.find("query 2") == ROWS[3][2] and store.count("predictions") == 199
        assert store.prune(failures=True, unfound=True) == {"failures": 0, "unfound": 0}
        assert store.status()["bytes"] < before - 400_000
        store.check()
    with PredictionStore(path) as store:  # what is asked for again is predicted again
        store.put_many([ROWS[2]])
        assert store.find("query 2") == ROWS[2][2]


def test_a_reader_lives_through_pruning(path):
    with PredictionStore(path, read_only=True) as reader:
        rows = reader.rows()
        first = next(rows)
        with PredictionStore(path) as store:
            store.put_many([], links=[(query, ROWS[0][0]) for _, query, _ in ROWS])
            assert store.prune(unfound=True) == {"unfound": 199}
        assert [first, *rows] == ROWS  # as it was when the reading began
        assert reader.count("predictions") == 1


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE queries SET checksum = 5 WHERE query = 'query 7'",
        "UPDATE predictions SET payload = '{}' WHERE query = 'query 7'",
        # An index of another column than it says: only SQLite's own check sees it.
        """CREATE INDEX extra ON predictions (query);
        PRAGMA writable_schema = ON;
        UPDATE sqlite_schema SET sql = 'CREATE INDEX extra ON predictions (payload)' WHERE name = 'extra'""",
    ],
)
def test_a_check_reads_all(path, damage):
    with PredictionStore(path) as store:
        store.check()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(damage)
    with PredictionStore(path, read_only=True) as store, pytest.raises(UserError, match="checksum|damaged"):
        store.check()


@pytest.mark.parametrize("compacted", [False, True])
def test_threads_share_one_that_only_reads(path, tmp_path, compacted):
    if compacted:
        with PredictionStore(path) as store:
            store.compact(tmp_path / "compact.db")
        path = tmp_path / "compact.db"
    wrong = []

    def look_up(store, offset):
        for i in range(400):
            _, query, payload = ROWS[(i * 7 + offset) % len(ROWS)]
            if store.find(query) != payload or store.find(query + "?") is not None:
                wrong.append(query)

    with PredictionStore(path, read_only=True) as store:
        threads = [threading.Thread(target=look_up, args=(store, offset)) for offset in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_opening_it_twice_in_one_process_takes_no_locks_away(path):
    """POSIX drops a process's locks on a file when any descriptor of it is closed; the writer would then take the log
    from under the first reader."""
    with PredictionStore(path, read_only=True) as reader:
        assert reader.find("query 1") == ROWS[1][2]
        PredictionStore(path, read_only=True).close()
        for name in ("a", "b", "c"):
            subprocess.run([sys.executable, "-c", WRITER, path, name], check=True)
            assert reader.find(f"{name}999") == {"text": "x" * 200}
        reader.check()
        assert reader.count("predictions") == 3200
