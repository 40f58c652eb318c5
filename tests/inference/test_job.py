"""The bulk run: each distinct request once, failures recorded, the order of work, what a dry run says."""

import json
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import BOMB, POISON, FakeEngine, content, generate, key_of, make_rows

from limbeck.inference.job import BulkRequest, Refused, plan_bulk, run_bulk
from limbeck.inference.requests import (
    EmbedRequest,
    GenerateRequest,
    Generation,
    HeadRequest,
    Sampling,
    ScoreRequest,
    Scores,
    Values,
)
from limbeck.inference.shards import shard_of
from limbeck.inference.sharing import LEAST
from limbeck.inference.store import PredictionStore
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError


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

        answer = FakeEngine().answer(rows[0].request)
        assert store.find("a") == store.find("alias of a") == store.get(key_of(rows[0].request))
        assert store.find("a") == {
            "text": answer.text,
            "tokens": list(answer.tokens),
            "logprob": answer.logprob,
            "stopped": answer.stopped,
        }
        scores = FakeEngine().answer(rows[-1].request)
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
        assert engine.calls == [] and len(engine.checked) == 1
        assert content(store, rows) == before
        assert {failure["attempts"] for failure in store.failures()} == {2}


def test_what_begins_alike_is_asked_together_the_longest_first(tmp_path):
    starts = [tuple(range(20, 20 + LEAST)), tuple(range(30, 30 + LEAST))]
    rows = [generate(f"{i} {j}", starts[j] + (40,) * i) for i in range(1, 9) for j in range(2)]
    rows += [generate(f"short {i}", [50 + i] * i) for i in range(1, 5)]
    rows += [BulkRequest(f"choice {i}", ScoreRequest((60,) * i, ((1,),))) for i in (1, 3, 2)]
    rows += [generate("adapted", starts[0] + (41,), adapter="a")]
    random.Random(0).shuffle(rows)
    engine = FakeEngine()
    with PredictionStore(tmp_path / "p.db") as store:
        run_bulk(engine, rows, store)
    [call] = engine.calls
    kinds = [(type(request).__name__, request.adapter) for request in call]
    assert [kind for i, kind in enumerate(kinds) if kind != kinds[i - 1]] == [
        ("GenerateRequest", ""),
        ("GenerateRequest", "a"),
        ("ScoreRequest", ""),
    ]
    plain = [request.prompt for request in call if kinds[call.index(request)] == ("GenerateRequest", "")]
    groups = [prompt[:LEAST] if len(prompt) > LEAST else () for prompt in plain]
    assert sum(group != groups[i - 1] for i, group in enumerate(groups)) == 3  # each in one piece
    for group in set(groups):
        lengths = [len(prompt) for prompt, own in zip(plain, groups, strict=True) if own == group]
        assert lengths == sorted(lengths, reverse=True)


def test_every_kind_of_answer_is_stored(tmp_path):
    rows = [BulkRequest("e", EmbedRequest((1, 2))), BulkRequest("h", HeadRequest((1, 2)))]
    with PredictionStore(tmp_path / "p.db") as store:
        assert run_bulk(FakeEngine(), rows, store).new == 2
        for row in rows:
            assert store.find(row.query) == {"values": list(FakeEngine().answer(row.request).values)}
        assert store.find("e") != store.find("h")


def test_finished_answers_are_committed_by_the_chunk_without_a_barrier(tmp_path):
    engine, commits = FakeEngine(), []
    with PredictionStore(tmp_path / "p.db") as store:
        put_many = store.put_many
        counted: Any = lambda rows, links=None: (commits.append(len(rows)), put_many(rows, links))  # noqa: E731
        store.put_many = counted
        run_bulk(engine, [generate(f"q{i}", [i + 20]) for i in range(50)], store, chunk=16)
    assert commits == [16, 16, 16, 2] and len(engine.calls) == 1


def test_the_chunk_size_does_not_change_the_content(tmp_path):
    rows = make_rows(poison=True)
    contents = []
    for chunk in (1, 7, 1000):
        with PredictionStore(tmp_path / f"{chunk}.db") as store:
            run_bulk(FakeEngine(), rows, store, chunk)
            contents.append(content(store, rows))
    assert contents[0] == contents[1] == contents[2]


def test_a_row_that_fails_although_it_was_taken_costs_few_calls_and_no_other_row(tmp_path):
    rows = [generate(f"q{i}", [i + 20]) for i in range(64)]
    rows[37] = generate("bad", [BOMB])
    seen = []
    engine = FakeEngine(seen.append)
    with PredictionStore(tmp_path / "p.db") as store:
        report = run_bulk(engine, rows, store, chunk=64)
        assert (report.new, report.failed) == (63, 1) and report.failures == (("bad", "it blew up"),)
        run_bulk(engine, rows, store)
        assert [(each["reason"], each["attempts"]) for each in store.failures()] == [("it blew up", 2)]
    assert len(engine.calls) <= 2 * math.log2(64) + 2
    assert len([each for each in seen if BOMB not in each.prompt]) == 63  # what was finished is not asked again


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, TypeError])
def test_other_errors_end_the_run_and_are_no_failures(tmp_path, error):
    rows = [generate(f"q{i}", [i + 20]) for i in range(8)]

    def watch(request):
        if request.prompt == (24,):
            raise error

    with PredictionStore(tmp_path / "p.db") as store:
        with pytest.raises(error):
            run_bulk(FakeEngine(watch), rows, store, chunk=100)
        assert store.failures() == [] and store.status()["rows"] == 7  # what was finished is kept
        report = run_bulk(FakeEngine(), rows, store)
        assert (report.new, report.resumed) == (1, 7)
        assert run_bulk(FakeEngine(), rows, store).resumed == 0  # that one came to its end


def test_what_an_interrupted_run_did_is_told_from_what_was_there(tmp_path):
    first, second = ([generate(f"{name}{i}", [i + 20, last]) for i in range(6)] for name, last in (("a", 1), ("b", 2)))

    def watch(request):
        if request.prompt == (22, 2):
            raise KeyboardInterrupt

    with PredictionStore(tmp_path / "p.db") as store:
        run_bulk(FakeEngine(), first, store)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_bulk(FakeEngine(watch), first + second, store)
        there = store.count("predictions") - 6
        report = run_bulk(FakeEngine(), first + second, store)
        assert (report.cached, report.resumed, report.new) == (6 + there, there, 6 - there) and 0 < there < 6


@pytest.mark.parametrize(
    "request_, result",
    [
        (ScoreRequest((2,), ((1,), (2,))), Scores((-1.0, math.nan), (1, 1))),
        (GenerateRequest((2,)), Generation("a", (1,), -math.inf, True)),
        (EmbedRequest((2,)), Values((0.5, math.nan))),
        (HeadRequest((2,)), Values((math.inf,))),
    ],
)
def test_a_number_that_is_not_finite_is_a_failure(tmp_path, request_, result):
    class Broken(FakeEngine):
        def answer(self, request):
            return result if request == request_ else super().answer(request)

    rows = [BulkRequest("good", GenerateRequest((3,))), BulkRequest("bad", request_)]
    with PredictionStore(tmp_path / "p.db") as store:
        report = run_bulk(Broken(), rows, store)
        assert (report.new, report.failed) == (1, 1)
        [failure] = store.failures()
        assert failure["query"] == "bad" and "not a finite number" in failure["reason"]


def test_an_engine_that_loses_an_answer_is_not_believed(tmp_path):
    class Broken(FakeEngine):
        def answers(self, requests, only=None):
            return (each for each in super().answers(requests, only) if each[0] != 5)

    rows = make_rows(poison=False)
    with PredictionStore(tmp_path / "p.db") as store:
        with pytest.raises(RuntimeError, match="no answer for 1 of"):
            run_bulk(Broken(), rows, store)
        assert run_bulk(FakeEngine(), rows, store).new == 1


def test_poisoned_rows_are_recorded_and_the_others_answered(tmp_path):
    long = "x" * 10_000_000
    rows = [
        generate("good", [1]),
        generate(long, [POISON] * 10),
        generate("", [1]),
        generate("\udce9", [1]),
        Refused("q.csv, row 4", "not UTF-8"),
        Refused("q.csv, row 5", "not UTF-8"),
        generate("a\0b", [2]),
    ]
    with PredictionStore(tmp_path / "p.db") as store:
        for attempts in (1, 2):
            report = run_bulk(FakeEngine(), rows, store)
            assert (report.new + report.cached, report.failed, report.total) == (2, 5, 7)
            assert {each["attempts"] for each in store.failures()} == {attempts}
        queries = {each["query"] for each in store.failures()}
        assert {"q.csv, row 4", "q.csv, row 5", "", "\\udce9"} < queries
        assert max(map(len, queries)) < 2000 and f"{'x' * 9}... (10000000 characters)" in max(queries, key=len)
        assert store.find("good") and store.find("a\0b")


def test_a_plan_counts_what_a_run_would_do_and_does_nothing(tmp_path):
    rows = make_rows(poison=True) + [generate("again", [20, 1])] * 2

    class Shaped(FakeEngine):
        config = ModelConfig(
            vocab_size=90, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, max_len=64
        )
        params = {"blocks/mlp/up/kernel": SimpleNamespace(shape=(1, 16, 32))}

    engine = Shaped()
    fresh = plan_bulk(engine, rows, None)
    with PredictionStore(tmp_path / "p.db") as store:
        assert plan_bulk(engine, rows, store) == fresh and store.status()["rows"] == 0
        run_bulk(engine, rows[:40], store)
        asked = len(engine.calls)
        plan = plan_bulk(engine, rows, store)
        assert len(engine.calls) == asked
        report = run_bulk(engine, rows, store)
        assert (plan.total, plan.new, plan.cached, plan.duplicate, plan.refused) == (
            report.total,
            report.new,
            report.cached,
            report.duplicate,
            report.failed,
        )
        assert plan.refusals == report.failures and plan.new and plan.cached and plan.duplicate == 1
        done = [each for each in engine.calls[-1]]
        assert plan.prompt_tokens == sum(len(request.prompt) for request in done)
        assert plan.new_tokens_at_most == sum(
            request.sampling.max_new_tokens if isinstance(request, GenerateRequest) else 3 for request in done
        )
        assert plan_bulk(engine, rows, store).seconds == 0
    assert fresh.seconds and "FLOPs" in fresh.source and "last run" in plan.source
    with PredictionStore(tmp_path / "p.db", read_only=True) as store:
        more = [generate("more", [1] * 7, sampling=Sampling(13)), generate("more", [2] * 7, sampling=Sampling(13))]
        one, two = plan_bulk(engine, more[:1], store), plan_bulk(engine, more, store)
        log = json.loads((tmp_path / "p.db.runs.json").read_text())
        assert one.seconds == pytest.approx(20 * log["seconds"] / log["tokens"])
        assert one.seconds and two.seconds == pytest.approx(2 * one.seconds)
        engine.weights_digest = "w2"
        with pytest.raises(UserError, match="made with weights w1"):
            plan_bulk(engine, rows, store)


def test_a_request_is_always_asked_in_the_same_company(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.inference.job._AT_ONCE", 32)
    rows, whole, again, shards = make_rows(poison=True), FakeEngine(), FakeEngine(), FakeEngine()
    with PredictionStore(tmp_path / "whole.db") as store:
        run_bulk(whole, rows, store)
    with PredictionStore(tmp_path / "again.db") as store:
        run_bulk(FakeEngine(), rows[:50], store)
        run_bulk(again, rows, store)
    for shard in range(2):
        with PredictionStore(tmp_path / f"{shard}.db") as store:
            run_bulk(shards, rows, store, mine=lambda key, shard=shard: shard_of(key, 2) == shard)
    assert again.company == whole.company and sum(map(len, again.calls)) < sum(map(len, whole.calls))
    assert shards.company == 2 * whole.company
    assert sorted(map(repr, sum(shards.calls, []))) == sorted(map(repr, sum(whole.calls, [])))


def test_shards_answer_their_own_rows_and_their_links_are_those_of_one_run(tmp_path):
    rows = make_rows(poison=True)
    with PredictionStore(tmp_path / "whole.db") as store:
        whole = run_bulk(FakeEngine(), rows, store)
        found = {row.query: store.find(row.query) for row in rows if isinstance(row, BulkRequest) and row.query.strip()}
    reports, answered = [], set()
    for shard in range(3):
        with PredictionStore(tmp_path / f"{shard}.db") as store:
            reports.append(run_bulk(FakeEngine(), rows, store, mine=lambda key, shard=shard: shard_of(key, 3) == shard))
            keys = [key for key, _, _ in store.rows()]
            assert keys and all(shard_of(key, 3) == shard for key in keys)
            own = {query for query in found if store.find(query)}
            assert own.isdisjoint(answered) and all(store.find(query) == found[query] for query in own)
            answered |= own
    assert answered == {query for query, payload in found.items() if payload}
    for name in ("total", "new", "duplicate", "failed"):
        assert sum(getattr(report, name) for report in reports) == getattr(whole, name)


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
