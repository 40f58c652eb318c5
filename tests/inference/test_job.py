"""The bulk run: each distinct request once, failures recorded, and a kill at any instant loses nothing.

Run as a program (`python test_job.py FOLDER EVENTS SECONDS POISON`) this file is the job that gets killed.
"""

import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limbeck.inference.job import BulkRequest, run_bulk
from limbeck.inference.key import prediction_key
from limbeck.inference.requests import GenerateRequest, Generation, ScoreRequest, Scores
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

POISON = 13  # a token that the fake engine refuses


class FakeEngine:
    """Answers are a digest of the request; refuses POISON; tells `watch` each request that it works on."""

    weights_digest, tokenizer_digest, dtype = "w1", "t1", "float32"

    def __init__(self, watch=lambda request: None):
        self.watch, self.calls = watch, []

    def _digests(self, requests):
        self.calls.append(requests)
        for request in requests:
            self.watch(request)
            if POISON in request.prompt:
                raise UserError(f"a prompt of {len(request.prompt)} tokens is too long")
        return [hashlib.sha256(repr(request).encode()).digest() for request in requests]

    def generate(self, requests):
        assert all(isinstance(request, GenerateRequest) for request in requests)
        return [
            Generation(f"سیب {data.hex()[:8]}", tuple(data[:4]), -data[4] / 7, data[5] > 99)
            for data in self._digests(requests)
        ]

    def score(self, requests):
        return [
            Scores(tuple(-data[i] / 9 for i in range(len(request.options))), tuple(map(len, request.options)))
            for request, data in zip(requests, self._digests(requests), strict=True)
        ]


def key_of(request):
    return prediction_key(request, weights="w1", tokenizer="t1", dtype="float32")


def generate(query, prompt, **fields):
    return BulkRequest(query, GenerateRequest(tuple(prompt), **fields))


def make_rows(poison):
    rng = random.Random(0)
    rows = []
    for i in range(60):
        prompt = [20 + i, *rng.choices(range(20, 90), k=rng.randrange(9))]
        rows.append(generate(f"query {i}", prompt, sample=0))
        rows.append(generate(f"query {i}", prompt, sample=1))
        if i % 3 == 0:
            rows.append(BulkRequest(f"choice {i}", ScoreRequest(tuple(prompt), ((1,), (2, 3)))))
    if poison:
        rows[20:20] = [generate("poisoned", [POISON, 4]), generate(" ", [4])]
    return rows


def content(store, rows):
    """All that a user can see of a store, except how often a failing row was tried."""
    failures = [(failure["key"], failure["query"], failure["reason"]) for failure in store.failures()]
    found = [store.find(row.query) for row in rows if row.query.strip()]
    return list(store.rows()), failures, found, store.manifest


def test_every_kind_of_row_is_counted_once(tmp_path):
    rows = [
        generate("a", [1]),
        generate("b", [1, 2]),
        generate("a", [1]),  # again
        generate("alias of a", [1]),
        generate("a", [1], sample=1),
        generate("p", [POISON]),
        generate("\udce9", [9]),
        BulkRequest("s", ScoreRequest((1,), ((2,), (3, 4)))),
    ]
    engine = FakeEngine()
    with PredictionStore(tmp_path / "p.db") as store:
        report = run_bulk(engine, rows[:1], store)
        assert (report.total, report.new, report.new_tokens) == (1, 1, 4)
        report = run_bulk(engine, iter(rows), store)
        counts = (report.total, report.new, report.cached, report.duplicate, report.failed)
        assert counts == (8, 3, 1, 2, 2) and sum(counts[1:]) == report.total
        assert report.new_tokens == 8 and report.seconds > 0

        [answer] = FakeEngine().generate([rows[0].request])
        assert store.find("a") == store.find("alias of a") == store.get(key_of(rows[0].request))
        assert store.find("a") == {
            "text": answer.text,
            "tokens": list(answer.tokens),
            "logprob": answer.logprob,
            "stopped": answer.stopped,
        }
        [scores] = FakeEngine().score([rows[-1].request])
        assert store.find("s") == {"logprobs": list(scores.logprobs), "lengths": [1, 2], "greedy": []}
        assert store.find("p") is None
        reasons = {failure["query"]: failure["reason"] for failure in store.failures()}
        assert reasons["p"] == "a prompt of 1 tokens is too long"
        assert "not valid Unicode" in reasons["\\udce9"]


def test_a_second_run_computes_nothing_but_failures(tmp_path):
    rows = make_rows(poison=True)
    with PredictionStore(tmp_path / "p.db") as store:
        first = run_bulk(FakeEngine(), rows, store, chunk=16)
        before = content(store, rows)
        engine = FakeEngine()
        second = run_bulk(engine, rows, store, chunk=16)
        assert (second.new, second.cached, second.failed) == (0, first.new, first.failed)
        assert [len(call) for call in engine.calls] == [1]
        assert content(store, rows) == before
        assert {failure["attempts"] for failure in store.failures()} == {2}


def test_chunks_are_of_one_kind_and_sorted_by_length(tmp_path):
    engine = FakeEngine()
    with PredictionStore(tmp_path / "p.db") as store:
        run_bulk(engine, make_rows(poison=False), store, chunk=16)
    assert all(len(call) <= 16 and len({type(request) for request in call}) == 1 for call in engine.calls)
    lengths = [len(r.prompt) for call in engine.calls for r in call if isinstance(r, GenerateRequest)]
    assert lengths == sorted(lengths, reverse=True)


def test_the_chunk_size_does_not_change_the_content(tmp_path):
    rows = make_rows(poison=True)
    contents = []
    for chunk in (1, 7, 1000):
        with PredictionStore(tmp_path / f"{chunk}.db") as store:
            run_bulk(FakeEngine(), rows, store, chunk)
            contents.append(content(store, rows))
    assert contents[0] == contents[1] == contents[2]


def test_one_refused_row_costs_few_calls_and_no_other_row(tmp_path):
    rows = [generate(f"q{i}", [i + 20]) for i in range(64)]
    rows[37] = generate("bad", [POISON])
    engine = FakeEngine()
    with PredictionStore(tmp_path / "p.db") as store:
        report = run_bulk(engine, rows, store, chunk=64)
        assert (report.new, report.failed) == (63, 1)
    assert len(engine.calls) <= 2 * math.log2(64) + 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, TypeError])
def test_other_errors_end_the_run_and_are_no_failures(tmp_path, error):
    rows = [generate(f"q{i}", [i + 20]) for i in range(8)]

    def watch(request):
        if request.prompt == (24,):
            raise error

    with PredictionStore(tmp_path / "p.db") as store:
        with pytest.raises(error):
            run_bulk(FakeEngine(watch), rows, store, chunk=2)
        assert store.failures() == [] and store.status()["rows"] == 4
        assert run_bulk(FakeEngine(), rows, store).new == 4


def test_a_number_that_is_not_finite_is_a_failure(tmp_path):
    class Broken(FakeEngine):
        def score(self, requests):
            return [Scores((-1.0, math.nan if r.prompt == (2,) else -2.0), (1, 1)) for r in requests]

    rows = [BulkRequest(f"q{i}", ScoreRequest((i,), ((1,), (2,)))) for i in range(4)]
    with PredictionStore(tmp_path / "p.db") as store:
        assert run_bulk(Broken(), rows, store).failed == 1
        assert [failure["query"] for failure in store.failures()] == ["q2"]


def test_an_engine_that_loses_an_answer_is_not_believed(tmp_path):
    class Broken(FakeEngine):
        def generate(self, requests):
            return super().generate(requests)[1:]

    with PredictionStore(tmp_path / "p.db") as store:
        with pytest.raises(ValueError, match="shorter"):
            run_bulk(Broken(), make_rows(poison=False), store)
        assert store.status()["rows"] == 0


def test_a_full_disk_stops_the_run_and_keeps_what_was_acknowledged(tmp_path):
    rows = make_rows(poison=False)
    with PredictionStore(tmp_path / "p.db") as store:
        store._db.execute("PRAGMA max_page_count = 10")
        with pytest.raises(UserError, match="disk is full"):
            run_bulk(FakeEngine(), rows, store, chunk=4)
        kept = {key for key, _, _ in store.rows()}
        assert 0 < len(kept) < len(rows) and store.failures() == []
    engine = FakeEngine()
    with PredictionStore(tmp_path / "p.db") as store:
        assert run_bulk(engine, rows, store).cached == len(kept)
    assert not kept & {key_of(request) for call in engine.calls for request in call}


@pytest.mark.parametrize("name", ["weights_digest", "tokenizer_digest", "dtype"])
def test_a_store_of_another_model_is_refused(tmp_path, name):
    engine = FakeEngine()
    setattr(engine, name, "other")
    with PredictionStore(tmp_path / "p.db") as store:
        run_bulk(FakeEngine(), make_rows(poison=False), store)
        with pytest.raises(UserError, match=f"made with {name.removesuffix('_digest')} .*, not other"):
            run_bulk(engine, make_rows(poison=False), store)
    assert engine.calls == []


def test_a_query_with_several_requests_finds_the_first_whatever_the_order_of_work(tmp_path):
    short, long = generate("q", [1]), generate(" q ", [1, 2, 3])
    for number, rows in enumerate([[short, long], [long, short]]):
        with PredictionStore(tmp_path / f"{number}.db") as store:
            run_bulk(FakeEngine(), rows, store, chunk=1)
            assert store.find("q") == store.get(key_of(rows[0].request))
            run_bulk(FakeEngine(), rows[::-1], store)  # asked for in another order, that order holds
            assert store.find("q") == store.get(key_of(rows[1].request))


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


def check_kills(tmp_path, uninterrupted, number):
    """Kills a job twice, each time at another instant, and lets the third run end."""
    rng = random.Random(number)
    poison = number % 2
    expected, events, seconds, compacted = uninterrupted[poison]
    rows = make_rows(poison)
    acknowledged, deaths = [], 0
    for _ in range(2):
        at_event, after = (rng.randint(1, events), 0) if number % 4 else (0, rng.uniform(1e-4, seconds))
        arguments = [str(argument) for argument in (tmp_path, at_event, after, poison)]
        child = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
        assert child.returncode in (0, -signal.SIGKILL, -signal.SIGALRM), child.stderr
        deaths += child.returncode < 0
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


@pytest.mark.parametrize("number", range(12))
def test_killed_at_any_instant_nothing_is_lost_or_done_twice(tmp_path, uninterrupted, number):
    deaths = check_kills(tmp_path, uninterrupted, number)
    assert deaths or number % 4 == 0  # a timer may come too late; an event cannot, in the first run


@pytest.mark.slow
def test_killed_at_a_hundred_instants(tmp_path, uninterrupted):
    deaths = 0
    for number in range(12, 62):
        folder = tmp_path / str(number)
        folder.mkdir()
        deaths += check_kills(folder, uninterrupted, number)
    assert deaths > 50


if __name__ == "__main__":
    job_that_is_killed(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
