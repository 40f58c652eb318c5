"""The store: what it acknowledged is there, what is damaged is an error, and there is one writer."""

import errno
import os
import sqlite3
import subprocess
import sys

import pytest

from limbeck.inference import store_file
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

ROWS = [(f"key{i:03}", f"query {i}", {"text": f"answer {i} é سیب", "logprob": -i / 3}) for i in range(300)]


@pytest.fixture
def path(tmp_path):
    """A closed store with ROWS, two failures and a manifest."""
    path = tmp_path / "predictions.db"
    with PredictionStore(path, manifest={"weights": "w" * 64, "task": "t1"}) as store:
        store.put_many(ROWS)
        store.fail_many([("bad1", "x", "too long"), ("bad2", "y\ud800", "odd"), ("bad1", "x", "longer")])
    return path


def test_round_trip(path):
    with PredictionStore(path) as store:
        assert list(store.rows()) == ROWS
        assert all(store.get(key) == store.find(query) == payload for key, query, payload in ROWS)
        assert "key000" in store and "key" not in store and store.get("key") is None
        assert store.failures() == [
            {"key": "bad1", "query": "x", "reason": "longer", "attempts": 2},
            {"key": "bad2", "query": "y\\ud800", "reason": "odd", "attempts": 1},
        ]
        assert store.manifest == {"normalisation": "nfc", "weights": "w" * 64, "task": "t1"}


def test_odd_texts_come_back(tmp_path):
    texts = ["\0", "a\0b", "\x7f\x01", "🍎" * 1000, "x" * 10_000_000, '"; DROP TABLE predictions; --']
    with PredictionStore(tmp_path / "p.db") as store:
        store.put_many([(f"k{i}", text, {"text": text}) for i, text in enumerate(texts)])
        assert [store.find(text) for text in texts] == [{"text": text} for text in texts]


def test_an_acknowledged_row_is_never_overwritten_and_forgets_its_failures(path):
    with PredictionStore(path) as store:
        store.put_many([("key000", "query 0", {"text": "other"}), ("bad1", "x", {"text": "at last"})])
        assert store.get("key000") == ROWS[0][2]
        assert [failure["key"] for failure in store.failures()] == ["bad2"]


def test_links(path):
    with PredictionStore(path) as store:
        store.put_many([("new", "query 0", {"text": "new"})], links=[("query 1", "new"), ("alias", "key002")])
        assert store.find("query 0") == ROWS[0][2]
        assert store.find("query 1") == {"text": "new"}
        assert store.find("alias") == ROWS[2][2]


def test_a_failed_commit_keeps_nothing_of_it_and_everything_before(path):
    with PredictionStore(path) as store:
        with pytest.raises(ValueError):
            store.put_many([("k", "q", {"text": "fine"}), ("l", "r", {"logprob": float("nan")})])
        assert "k" not in store and list(store.rows()) == ROWS


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"weights": "v" * 64}, "made with weights wwwwwwwwwwww..., not vvvvvvvvvvvv..."),
        ({"tokenizer": "k"}, r"made with tokenizer \(none\), not k: name another store"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_another_manifest_is_refused(path, manifest, words, read_only):
    with pytest.raises(UserError, match=words):
        PredictionStore(path, read_only, manifest=manifest)
    PredictionStore(path, manifest={"task": "t1"}).close()  # and the lock is free again


def test_an_empty_store_takes_new_names_on(tmp_path):
    with PredictionStore(tmp_path / "p.db") as store:
        store.require({"weights": "w"})
    with pytest.raises(UserError, match="made with weights w, not v"):
        PredictionStore(tmp_path / "p.db", manifest={"weights": "v"})


def test_the_second_writer_is_told_so(path, tmp_path):
    link = tmp_path / "link.db"
    link.symlink_to(path)
    code = "import sys; from limbeck.inference.store import PredictionStore; PredictionStore(sys.argv[1])"
    with PredictionStore(path):
        for name in (path, link):
            with pytest.raises(UserError, match="being written by another process"):
                PredictionStore(name)
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert "being written by another process" in other.stderr
        with PredictionStore(path, read_only=True) as reader:
            assert reader.get("key001") == ROWS[1][2]
    PredictionStore(path).close()


def test_a_reader_sees_what_was_committed_meanwhile_and_cannot_write(path):
    with PredictionStore(path) as store, PredictionStore(path, read_only=True) as reader:
        store.put_many([("late", "late", {"text": "here"})])
        assert reader.find("late") == {"text": "here"}
        with pytest.raises(UserError, match="open it for writing"):
            reader.put_many([("no", "no", {})])


def test_a_missing_store_is_never_made_by_accident(tmp_path):
    with pytest.raises(UserError, match="no prediction store at .*limbeck predict"):
        PredictionStore(tmp_path / "none.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_its_store_is_not_replayed_into_a_new_one(tmp_path):
    (tmp_path / "p.db-wal").write_bytes(b"left over")
    with pytest.raises(UserError, match="p.db-wal is there"):
        PredictionStore(tmp_path / "p.db")
    assert (tmp_path / "p.db-wal").exists() and not (tmp_path / "p.db").exists()
    (tmp_path / "p.db-wal").write_bytes(b"")  # as a reader leaves it, and nothing to replay
    PredictionStore(tmp_path / "p.db").close()


def test_a_new_store_has_its_log_from_the_first_instant(tmp_path):
    """A kill amid a rollback journal leaves a file that only a writer can open; a log, any reader can."""
    path = tmp_path / "p.db"
    store_file.create(path, {"normalisation": "nfc"})
    new = path.read_bytes()
    PredictionStore(path).close()
    assert path.read_bytes() == new
    with PredictionStore(path, read_only=True) as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_folders_are_made_and_a_file_in_the_way_is_named(tmp_path):
    PredictionStore(tmp_path / "new" / "er" / "p.db").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/p.db: a part of that path is a file"):
        PredictionStore(tmp_path / "file" / "p.db")
    with pytest.raises(UserError, match="cannot read .* check its permissions"):
        PredictionStore(tmp_path, read_only=True)


def test_no_permission_to_write(tmp_path, monkeypatch):
    def refuse(path, flags, *rest, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="p.db: no permission to write there"):
        PredictionStore(tmp_path / "p.db")


def test_a_full_disk_loses_nothing(path):
    with PredictionStore(path) as store:
        [pages] = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(UserError, match="disk is full.*free some space"):
            store.put_many([(f"k{i}", f"q{i}", {"text": "x" * 1000}) for i in range(100)])
        assert list(store.rows()) == ROWS
    with PredictionStore(path) as store:  # with space again, the same call goes through
        store.put_many([(f"k{i}", f"q{i}", {"text": "x" * 1000}) for i in range(100)])
        assert store.status()["rows"] == 400


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("predictions", "payload", '{"text": "answer 8"}'),
        ("predictions", "query", "query 8"),
        ("predictions", "checksum", 5),
        ("queries", "key", "key008"),
        ("queries", "checksum", 5),
    ],
)
def test_a_damaged_row_is_an_error_and_the_others_stay(path, table, column, value):
    with sqlite3.connect(path) as db:
        where = "query = 'query 7'" if table == "queries" else "key = 'key007'"
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value,))
    db.close()
    with PredictionStore(path, read_only=True) as store:
        with pytest.raises(UserError, match="predictions.db: the row key00. fails its checksum; restore it"):
            store.find("query 7")
        if table == "predictions":
            with pytest.raises(UserError, match="checksum"):
                store.get("key007")
            with pytest.raises(UserError, match="checksum"):
                list(store.rows())
        assert store.find("query 9") == ROWS[9][2]


def test_a_text_that_is_not_utf8_is_damage(path):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE predictions SET payload = CAST(x'ff80' AS TEXT) WHERE key = 'key007'")
    db.close()
    with PredictionStore(path, read_only=True) as store, pytest.raises(UserError, match="damaged; restore"):
        store.get("key007")


def overwrite_page(data):
    page = 16384
    middle = len(data) // 2 // page * page
    return data[:middle] + b"\xa5" * page + data[middle + page :]


DAMAGE = {
    "page": overwrite_page,
    "truncated": lambda data: data[: len(data) // 2],
    "not_a_database": lambda data: b"these are not the bytes you are looking for" * 100,
    "another_database": lambda data: data[:68] + b"\0\0\0\0" + data[72:],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["live", "read_only", "compacted"])
def test_a_damaged_file_is_a_clear_stop(path, tmp_path, damage, kind):
    if kind == "compacted":
        with PredictionStore(path) as store:
            store.compact(tmp_path / "compact.db")
        path = tmp_path / "compact.db"
        path.chmod(0o644)
    before = DAMAGE[damage](path.read_bytes())
    path.write_bytes(before)
    with (
        pytest.raises(UserError, match="damaged.*restore it from a backup.*run the job again"),
        PredictionStore(path, read_only=kind != "live") as store,
    ):
        assert sum(store.get(key) == store.find(query) == payload for key, query, payload in ROWS) == len(ROWS)
        store.check()
    assert path.read_bytes() == before  # nothing made it worse


def test_another_layout_is_refused(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("PRAGMA wal_checkpoint")
    db.close()
    with pytest.raises(UserError, match="layout 99, not 1"):
        PredictionStore(path, read_only=True)


def test_a_compacted_copy_of_another_layout_is_refused_and_replaced(path, tmp_path):
    copy = tmp_path / "compact.db"
    with PredictionStore(path) as store:
        store.compact(copy)
        copy.chmod(0o644)
        with sqlite3.connect(copy) as db:
            db.execute("PRAGMA user_version = 1")
        db.close()
        with pytest.raises(UserError, match="layout 1, not 2: compact the store that it was made from again"):
            PredictionStore(copy, read_only=True)
        store.compact(copy)
    with PredictionStore(copy, read_only=True) as again:
        assert list(again.rows()) == ROWS


def test_compacted_copy(path, tmp_path):
    copy = tmp_path / "سیب #1?.db"
    with PredictionStore(path) as store:
        store.compact(copy)
        with PredictionStore(copy, read_only=True) as old:
            store.put_many([("late", "late", {"text": "here"})])
            store.compact(copy)  # swapped under the reader's feet
            assert old.get("late") is None and list(old.rows()) == ROWS
        with PredictionStore(copy, read_only=True) as new:
            assert new.find("late") == {"text": "here"}
            assert new.manifest == store.manifest and new.status()["failures"] == 2
            new.compact(tmp_path / "new" / "again.db")
    assert copy.stat().st_mode & 0o777 == 0o444
    with pytest.raises(UserError, match="compacted copy for look-ups"):
        PredictionStore(copy)
    names = {file.name for file in tmp_path.iterdir()} - {f"{copy.name}.lock"}
    assert names == {"predictions.db", "predictions.db.lock", copy.name, "new"}  # no logs, no left-overs


def test_compacting_replaces_nothing_but_a_compacted_copy(path, tmp_path):
    other = tmp_path / "thesis.txt"
    other.write_text("years of work " * 20)
    with PredictionStore(path) as store:
        with pytest.raises(UserError, match="not a compacted store"):
            store.compact(path)
        with pytest.raises(UserError, match="not a prediction store"):
            store.compact(other)
        with pytest.raises(UserError, match="a part of that path is a file"):
            store.compact(other / "c.db")
    assert other.read_text() == "years of work " * 20


def test_a_failed_compaction_leaves_the_old_copy(path, tmp_path, monkeypatch):
    copy = tmp_path / "compact.db"
    with PredictionStore(path) as store:
        store.compact(copy)
        before = copy.read_bytes()

        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            store.compact(copy)
    assert copy.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
