"""A bulk run that is killed at any instant: nothing is lost, nothing done twice, and the store ends the same.

Run as a program this file is the job that gets killed, once for every line "FOLDER EVENTS SECONDS POISON" on stdin.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fake_engine import FakeEngine, content, key_of, make_rows

from limbeck.inference.job import run_bulk
from limbeck.inference.store import PredictionStore


def job_that_is_killed(folder, events, seconds, poison):
    """Runs the job and dies by SIGKILL at the given event, or by a timer after so many seconds.

    Events are: a request being computed, an SQL statement being run, a commit having been acknowledged. What
    was acknowledged is written to `acknowledged`; returns the number of events if it survives.
    """
    log = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    count = 0

    def event(_=None):
        nonlocal count
        count += 1
        if count == events:
            os.kill(os.getpid(), signal.SIGKILL)

    signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends the process at once, too
    with PredictionStore(folder / "p.db") as store:
        put_many = store.put_many

        def acknowledged(rows, links=None):
            put_many(rows, links)
            os.write(log, "".join(f"{key}\n" for key, _, _ in rows).encode())
            event()

        store.put_many = acknowledged
        store._db.set_trace_callback(event)
        run_bulk(FakeEngine(event), make_rows(poison), store, chunk=16)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.close(log)
    return count


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """By poison: content, events, seconds and compacted bytes of a job that nobody kills."""
    results = {}
    for poison in (0, 1):
        folder = tmp_path_factory.mktemp("whole")
        start = time.monotonic()
        events = job_that_is_killed(folder, 0, 0, poison)
        seconds = time.monotonic() - start
        with PredictionStore(folder / "p.db") as store:
            store.compact(folder / "compact.db")
            compacted = (folder / "compact.db").read_bytes()
            results[poison] = content(store, make_rows(poison)), events, seconds, compacted
    return results


@pytest.fixture(scope="module")
def job():
    """A function that runs the job in a process of its own, and says what that process ended with."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, __file__], **pipes) as child:
        assert child.stdin and child.stdout
        into, out = child.stdin, child.stdout

        def run(*arguments):
            into.write(" ".join(map(str, arguments)) + "\n")
            into.flush()
            return int(out.readline())

        yield run
        into.close()


def check_kills(tmp_path, job, uninterrupted, number):
    """Kills a job twice, each time at another instant, and lets the third run end."""
    rng = random.Random(number)
    poison = number % 2
    expected, events, seconds, compacted = uninterrupted[poison]
    rows = make_rows(poison)
    acknowledged, deaths = [], 0
    for _ in range(2):
        at_event, after = (rng.randint(1, events), 0) if number % 4 else (0, rng.uniform(1e-4, seconds))
        status = job(tmp_path, at_event, after, poison)
        assert status in (0, -signal.SIGKILL, -signal.SIGALRM)
        deaths += status < 0
        acknowledged = (tmp_path / "acknowledged").read_text().splitlines()
        if (tmp_path / "p.db").exists():
            with PredictionStore(tmp_path / "p.db", read_only=True) as store:
                assert all(key in store for key in acknowledged)

    engine = FakeEngine()
    with PredictionStore(tmp_path / "p.db") as store:
        run_bulk(engine, rows, store, chunk=16)
        assert content(store, rows) == expected
        store.compact(tmp_path / "compact.db")
    computed = {key_of(request) for call in engine.calls for request in call}
    assert not computed & set(acknowledged)
    assert len(set(acknowledged)) == len(acknowledged)  # and the second run repeated none of the first
    if not poison:  # else the two differ in how often the poisoned rows were tried
        assert (tmp_path / "compact.db").read_bytes() == compacted
    return deaths


@pytest.fixture
def in_memory(tmp_path):
    """A folder that need not wait for a disk, where there is one: what a kill leaves is the same."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_killed_at_a_hundred_instants_nothing_is_lost_or_done_twice(in_memory, job, uninterrupted):
    deaths = 0
    for number in range(50):
        folder = in_memory / str(number)
        folder.mkdir()
        deaths += check_kills(folder, job, uninterrupted, number)
    assert deaths > 50  # a timer may come too late; an event cannot, in the first run


def serve_jobs():
    """One process that has imported everything, and a copy of it for each job: a job is killed in milliseconds."""
    for line in sys.stdin:
        folder, events, seconds, poison = line.split()
        child = os.fork()
        if not child:
            job_that_is_killed(Path(folder), int(events), float(seconds), int(poison))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve_jobs()
