"""The store under faults: a writer killed at any instant, a disk that is full or read-only.

Run as a program (`python test_store_faults.py FOLDER SEED`) this file is the writer that gets killed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.inference.store import PredictionStore


def row(i):
    return f"{i * 2654435761 % 2**32:064x}", f"query {i}", {"text": f"جواب {i}" * (1 + i % 50), "tokens": [i]}


def write_until_killed(folder, seed):
    """Puts chunks of rows, and now and then compacts or prunes; says on stdout what is acknowledged."""
    rng = random.Random(seed)
    with PredictionStore(folder / "p.db", manifest={"weights": "w"}) as store:
        store._db.execute("PRAGMA wal_autocheckpoint = 25")  # so that many a kill meets one
        done = store.count("predictions")
        os.write(1, b"open\n")
        while True:
            count = rng.randint(1, 40)
            store.put_many([row(i) for i in range(done, done + count)])
            done += count
            store.fail_many([(f"bad {done}", "bad", "too long")])
            os.write(1, b"%d\n" % done)
            if rng.random() < 0.05:
                store.prune(failures=True)
            if rng.random() < 0.1:
                store.compact(folder / "copy.db")


def kill_writers(folder, kills):
    """Kills so many writers of one store, each a moment after it began, and looks at what is there after each."""
    rng = random.Random(kills)
    acknowledged = 0
    for number in range(kills):
        command = [sys.executable, __file__, str(folder), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            assert child.stdout and child.stderr
            if number % 5:  # else it may die as it opens the file
                assert child.stdout.readline() == "open\n", child.stderr.read()
            time.sleep(rng.uniform(0, 0.15))
            child.kill()
            told = [line for line in child.stdout.read().split("\n")[:-1] if line != "open"]
        assert child.returncode == -signal.SIGKILL, child.returncode
        acknowledged = int(told[-1]) if told else acknowledged
        if not (folder / "p.db").exists():
            assert acknowledged == 0
            continue
        with PredictionStore(folder / "p.db", read_only=True) as store:
            store.check()
            count = store.count("predictions")
            assert acknowledged <= count <= acknowledged + 40  # a chunk may be there that nobody heard of: all of it
            for i in range(count):
                key, query, payload = row(i)
                assert store.find(query) == payload and key in store
            acknowledged = count
        if (folder / "copy.db").exists():
            with PredictionStore(folder / "copy.db", read_only=True) as copy:
                copy.check()
    return acknowledged


def check_kills(folder, kills):
    count = kill_writers(folder, kills)
    assert count > 10 * kills
    with PredictionStore(folder / "p.db") as store:
        store.prune(failures=True)
        store.compact(folder / "copy.db")
    with PredictionStore(folder / "whole.db", manifest={"weights": "w"}) as store:
        store.put_many([row(i) for i in range(count)])
        store.compact(folder / "whole.copy.db")
    assert (folder / "copy.db").read_bytes() == (folder / "whole.copy.db").read_bytes()
    assert not list(folder.glob(".*"))  # what killed writers left of their copies is gone


def test_a_writer_killed_at_any_instant_loses_nothing(tmp_path):
    check_kills(tmp_path, 10)


@pytest.mark.slow
def test_a_writer_killed_at_fifty_instants_loses_nothing(tmp_path):
    check_kills(tmp_path, 50)


ON_A_SMALL_DISK = """
import os, subprocess, sys
from pathlib import Path
import pytest
from limbeck.inference.shards import merge
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

disk = Path(sys.argv[1])
rows = [(f"{i:064x}", f"query {i}", {"text": "x" * 2000}) for i in range(2000)]


def mount(*words):
    subprocess.run(["mount", *words, str(disk)], check=True)


def names():
    return sorted(os.listdir(disk))


mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")
done = 0
with PredictionStore(disk / "p.db") as store:
    store.put_many(rows[:50])
    store.compact(disk / "copy.db")
    with pytest.raises(UserError, match="disk is full.*free some space") as told:
        for done in range(50, len(rows), 10):
            store.put_many(rows[done : done + 10])
    assert 50 < done < 500 and "\\n" not in str(told.value)
    assert list(store.rows()) == rows[:done]
    before, there = (disk / "copy.db").read_bytes(), names()
    for write in (store.compact, store.export):
        with pytest.raises(UserError, match="disk is full.*free some space"):
            write(disk / "copy.db" if write == store.compact else disk / "p.parquet")
    with pytest.raises(UserError, match="disk is full"):
        merge(disk / "m.db", [disk / "p.db"])
    assert (disk / "copy.db").read_bytes() == before and set(names()) - {"m.db", "m.db.lock"} >= set(there)
with PredictionStore(disk / "p.db", read_only=True) as store:
    store.check()
    assert list(store.rows()) == rows[:done]
mount("-o", "remount,size=50m")
with PredictionStore(disk / "p.db") as store:  # with space again, the same calls go through
    store.put_many(rows[done:])
    store.compact(disk / "copy.db")
    store.export(disk / "p.parquet")
merge(disk / "m.db", [disk / "p.db"])
assert not [name for name in names() if name.startswith(".")]

for ending in ("-wal", "-shm"):  # empty ones, which readers leave
    (disk / f"p.db{ending}").unlink()
mount("-o", "remount,ro")
for write in (
    lambda: PredictionStore(disk / "p.db"),
    lambda: PredictionStore(disk / "new.db"),
    lambda: PredictionStore(disk / "copy.db", read_only=True).compact(disk / "again.db"),
    lambda: PredictionStore(disk / "copy.db", read_only=True).export(disk / "again.parquet"),
):
    with pytest.raises(UserError, match="read-only; choose another folder"):
        write()
with PredictionStore(disk / "copy.db", read_only=True) as store:  # a copy needs no place for logs
    assert list(store.rows()) == rows and store.find("query 1999") == rows[1999][2]
with pytest.raises(UserError, match="check the permissions of it and its folder, or compact it"):
    PredictionStore(disk / "p.db", read_only=True)
print("all of it")
"""


def test_a_full_disk_and_a_read_only_one_are_clear_stops(tmp_path):
    own = ["unshare", "--mount", "--map-root-user"]
    try:
        subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody mount a disk of its own")
    command = [*own, sys.executable, "-c", ON_A_SMALL_DISK, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "all of it\n", done.stderr


if __name__ == "__main__":
    write_until_killed(Path(sys.argv[1]), int(sys.argv[2]))
