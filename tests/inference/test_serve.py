"""The look-up over HTTP: what is found, what a model is asked, and what the numbers say afterwards."""

import asyncio
import json
import re
import sqlite3
import threading
import time
from urllib.parse import quote

import pytest

pytest.importorskip("starlette", reason="the look-up over HTTP needs the extra [serve]")

from asgi import ask, post, run

from limbeck.inference import fallback
from limbeck.inference.lookup import side_store
from limbeck.inference.serve import create_app
from limbeck.inference.served import ServedStore
from limbeck.inference.store import PredictionStore
from limbeck.model.errors import UserError

PERSIAN = "می‌خواهم به ایران بروم"
OPTIONS = ["iran", "<b>japan</b>"]
MANIFEST = {"normalisation": "nfc_casefold", "weights": "ab" * 32, "options": json.dumps(OPTIONS), "model": "m"}
IRAN, JAPAN = ({"logprobs": values, "lengths": [1, 1], "greedy": []} for values in ([-0.5, -2.0], [-2.0, -0.5]))
ROWS = [("k1", PERSIAN, IRAN), ("k2", "<script>alert(1)</script>", JAPAN), ("k3", "Café  noir", JAPAN)]


@pytest.fixture
def path(tmp_path):
    """A compacted store with ROWS and a failure."""
    with PredictionStore(tmp_path / "job.db", manifest=MANIFEST) as store:
        store.put_many(ROWS)
        store.fail_many([("bad", "x", "too long")])
        store.compact(tmp_path / "serving.db")
    return tmp_path / "serving.db"


def serve(path, script, **settings):
    return run(create_app(ServedStore(path), **settings), script)


def one(path, *request, **settings):
    named = {name: settings.pop(name) for name in ("headers", "client", "parts", "body") if name in settings}
    return serve(path, lambda app: ask(app, *request, **named), **settings)


def test_a_query_is_found_in_any_spelling(path):
    answer = one(path, "GET", f"/lookup?q={quote(' ' + PERSIAN + '  ')}")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json == {"found": True, "query": PERSIAN, "answer": "iran", "payload": IRAN}
    assert one(path, "GET", "/lookup?q=CAFE%CC%81+NOIR").json["answer"] == "<b>japan</b>"
    posted = serve(path, lambda app: post(app, {"query": "cafe\u0301 noir"}))
    assert posted.json["query"] == "café noir" and posted.json["payload"] == JAPAN


def test_a_miss_is_a_miss(path):
    for query in ("cafe noir", "Café noirs", "%", "k1", "میخواهم به ایران بروم"):
        answer = one(path, "GET", f"/lookup?q={quote(query)}")
        assert (answer.status, answer.json) == (200, {"found": False, "query": query.casefold()})


def test_a_batch_is_answered_in_its_order_and_a_bad_query_spoils_no_other(path):
    with sqlite3.connect(path.parent / "job.db") as db:
        db.execute("UPDATE predictions SET checksum = 1 WHERE key = 'k3'")
    db.close()
    served = ServedStore(path)
    served.store.close()
    served.store = PredictionStore(path.parent / "job.db", read_only=True)
    queries = ["nothing", PERSIAN, "", "\ud800", "CAFÉ noir", PERSIAN]
    answer = run(create_app(served), lambda app: post(app, {"queries": queries}))
    results = answer.json["results"]
    assert [result["found"] for result in results] == [False, True, False, False, False, True]
    assert [result.get("error", {}).get("code") for result in results] == [
        None, None, "bad_query", "bad_query", "damaged_row", None,
    ]  # fmt: skip
    assert "checksum" in results[4]["error"]["message"] and str(path.parent) not in answer.body.decode()


def test_the_numbers_add_up(path):
    async def script(app):
        await ask(app, "GET", f"/lookup?q={quote(PERSIAN)}")
        await post(app, {"queries": [PERSIAN, "nothing", " "]})
        await ask(app, "GET", "/nothing?q=<script>")
        return await ask(app, "GET", "/metrics"), await ask(app, "GET", "/status"), await ask(app, "GET", "/health")

    metrics, status, health = serve(path, script)
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = metrics.body.decode().splitlines()
    form = re.compile(r'(# (HELP|TYPE) limbeck_.+|limbeck_\w+({(\w+="[^"]*",?)+})? [\d.e-]+)')
    assert all(map(form.fullmatch, lines))
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['limbeck_queries_total{result="hit"}'] == "2"
    assert values['limbeck_queries_total{result="miss"}'] == values['limbeck_queries_total{result="invalid"}'] == "1"
    assert values['limbeck_requests_total{path="/lookup",status="200"}'] == "2"
    assert values['limbeck_requests_total{path="other",status="404"}'] == "1"
    buckets = [int(value) for name, value in values.items() if name.startswith("limbeck_lookup_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == int(values["limbeck_lookup_seconds_count"]) == 2
    assert 0 < float(values["limbeck_lookup_seconds_sum"]) < 10
    digest = health.json["digest"]
    assert len(digest) == 64 and values[f'limbeck_store_info{{digest="{digest}"}}'] == "1"
    assert values["limbeck_store_rows"] == "3" and values["limbeck_store_failures"] == "1"
    assert health.json["status"] == "ok" and health.json["problem"] is None and health.json["rows"] == 3
    assert status.json["asked"] == {"hit": 2, "miss": 1, "online": 0}
    assert set(status.json["examples"]) == {query for _, query, _ in ROWS} and status.json["options"] == OPTIONS
    assert status.json["reasons"] == {"too long": 1} and status.json["coverage"] == 0.75
    assert ["answers", "iran, <b>japan</b>"] in status.json["about"]


def test_others_than_this_machine_are_shown_no_examples_and_no_paths(path):
    here, there = (one(path, "GET", "/status", **named).json for named in ({}, {"hosts": None}))
    assert here["examples"] and ["model", "m"] in here["about"]
    assert there["examples"] == [] and there["about"] == [each for each in here["about"] if each[0] != "model"]


def test_an_error_that_nobody_expected_is_said_and_raised(path, monkeypatch):
    def crash(self, query):
        raise ZeroDivisionError("secret")

    got = []

    async def script(app):
        monkeypatch.setattr(PredictionStore, "find", crash)
        try:
            got.append(await ask(app, "GET", "/lookup?q=a"))
        except ZeroDivisionError:  # after the answer was sent: for the log
            got.append("raised")
        return await ask(app, "GET", "/metrics")

    metrics = serve(path, script)
    assert got == ["raised"]
    assert 'limbeck_requests_total{path="/lookup",status="500"} 1' in metrics.body.decode()


class Model:
    """Answers online; counts, and waits where it is told to."""

    def __init__(self):
        self.asked, self.go = [], threading.Event()
        self.go.set()

    def __call__(self, query):
        self.asked.append(query)
        assert self.go.wait(20)
        if query == "refuse":
            raise UserError("the query has 9999 tokens and the model 512 positions")
        return f"key of {query}", {"text": f"online {query}"}


def test_a_miss_is_asked_of_the_model_once_and_recorded(path):
    model = Model()

    async def script(app):
        assert (await ask(app, "GET", "/lookup?q=new")).json == {"found": False, "query": "new"}  # GET only looks up
        assert (await post(app, {"queries": ["new"]})).json["results"] == [{"found": False, "query": "new"}]
        assert model.asked == []
        first = await post(app, {"query": " NEW "})
        assert first.json == {
            "found": True, "query": "new", "answer": "online new", "payload": {"text": "online new"}, "online": True,
        }  # fmt: skip
        assert (await post(app, {"query": "new"})).json == first.json
        assert (await post(app, {"query": PERSIAN})).json["payload"] == IRAN
        assert model.asked == ["new"]
        refused = await post(app, {"query": "refuse"})
        assert (refused.status, refused.code) == (422, "not_answered")
        assert "9999 tokens" in refused.json["error"]["message"]
        return await ask(app, "GET", "/metrics")

    lines = serve(path, script, online=model).body.decode()
    for result, count in (("hit", 1), ("miss", 2), ("online", 2), ("failed", 1)):
        assert f'limbeck_queries_total{{result="{result}"}} {count}\n' in lines
    with PredictionStore(side_store(path), read_only=True) as side:
        assert list(side.rows()) == [("key of new", "new", {"text": "online new"})]
        assert side.manifest == MANIFEST


def test_look_ups_go_on_while_the_model_thinks_and_it_is_asked_once_for_all(path, monkeypatch):
    monkeypatch.setattr(fallback, "_WAITING", 2)
    model = Model()
    model.go.clear()

    async def script(app):
        waiting = [asyncio.create_task(post(app, {"query": query})) for query in ("a", "b", "a")]
        while not model.asked:
            await asyncio.sleep(0.01)
        start = time.monotonic()
        assert (await ask(app, "GET", f"/lookup?q={quote(PERSIAN)}")).json["found"]
        assert time.monotonic() - start < 5
        busy = await post(app, {"query": "c"})
        assert (busy.status, busy.code, busy.headers["retry-after"]) == (503, "busy", "1")
        waiting[0].cancel()  # who goes away takes no one's answer along
        model.go.set()
        answers = await asyncio.gather(*waiting[1:])
        assert [answer.json["answer"] for answer in answers] == ["online b", "online a"] and waiting[0].cancelled()

    serve(path, script, online=model)
    assert model.asked == ["a", "b"]


def test_a_store_of_another_model_is_not_completed_by_this_one(path):
    model = Model()

    async def script(app):
        with PredictionStore(path.parent / "other.db", manifest=MANIFEST | {"weights": "cd" * 32}) as store:
            store.put_many(ROWS)
            store.compact(path)
        while (await ask(app, "GET", "/status")).json["swaps"] == 0:
            await asyncio.sleep(0.02)
        assert (await post(app, {"query": "new"})).json == {"found": False, "query": "new"}
        return await ask(app, "GET", "/health")

    health = serve(path, script, online=model, every=0.02)
    assert health.json["status"] == "degraded" and "another model or job" in health.json["problem"]
    assert model.asked == []
