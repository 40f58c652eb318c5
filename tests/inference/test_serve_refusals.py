"""What the look-up over HTTP refuses, and in which words: no request makes it fail, and no other site gets in."""

import asyncio
import json

import pytest

pytest.importorskip("starlette", reason="the look-up over HTTP needs the extra [serve]")

from asgi import ask, run

from limbeck.inference import web
from limbeck.inference.serve import Limits, create_app
from limbeck.inference.served import ServedStore
from limbeck.inference.store import PredictionStore


@pytest.fixture
def path(tmp_path):
    """A store with one row."""
    with PredictionStore(tmp_path / "p.db") as store:
        store.put_many([("k", "something", {"text": "an answer"})])
    return tmp_path / "p.db"


def serve(path, script, **settings):
    return run(create_app(ServedStore(path), **settings), script)


def one(path, *request, **settings):
    named = {name: settings.pop(name) for name in ("headers", "parts", "body") if name in settings}
    return serve(path, lambda app: ask(app, *request, **named), **settings)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/lookup", "give one query"),
        ("/lookup?query=a", "give one query"),
        ("/lookup?q=a&q=b", "give one query"),
        ("/lookup?q=%ff", "UTF-8"),
        ("/lookup?" + "&".join("q=a" for _ in range(100)), "give one query"),
        ("/lookup?q=+%20", "is empty"),
        ("/lookup?q=%ED%A0%80", "UTF-8"),  # a lone surrogate
    ],
)
def test_addresses_that_are_no_query(path, target, words):
    answer = one(path, "GET", target)
    assert answer.status == 400 and words in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "bad_json"),
        (b"\xff\xfe", 400, "bad_json"),
        (b"[" * 100_000, 400, "bad_json"),
        (b'{"query": ' + b"9" * 5000 + b"}", 400, "bad_json"),  # Python's limit to a number's digits
        (b"[]", 400, "bad_request"),
        (b"null", 400, "bad_request"),
        (b"{}", 400, "bad_request"),
        (b'{"query": "a", "queries": []}', 400, "bad_request"),
        (b'{"querys": ["a"]}', 400, "bad_request"),
        (b'{"query": ["a"]}', 400, "bad_request"),
        (b'{"query": null}', 400, "bad_request"),
        (b'{"queries": "a"}', 400, "bad_request"),
        (b'{"queries": ["a", 1]}', 400, "bad_request"),
        (b'{"query": " "}', 400, "bad_query"),
        (b'{"query": "\\ud800"}', 400, "bad_query"),
        (json.dumps({"queries": ["a"] * 9}).encode(), 413, "too_many_queries"),
        (json.dumps({"query": "a" * 2000}).encode(), 413, "body_too_long"),
    ],
)
def test_bodies_that_are_refused(path, body, status, code):
    limits = Limits(body=2000 if len(body) < 3000 else 1 << 20, queries=8)
    answer = one(path, "POST", "/lookup", body=body, limits=limits)
    assert (answer.status, answer.code) == (status, code)
    message = answer.json["error"]["message"]
    assert message and "\n" not in message
    assert "did you mean 'query'" in message or b"querys" not in body


def test_a_body_is_cut_off_where_it_gets_too_long_or_too_late(path, monkeypatch):
    monkeypatch.setattr(web, "_BODY_SECONDS", 0.05)
    endless = one(path, "POST", "/lookup", parts=[b"x" * 600] * 1000, limits=Limits(body=2000))
    assert (endless.status, endless.code, endless.headers["connection"]) == (413, "body_too_long", "close")
    slow = one(path, "POST", "/lookup", parts=[b'{"query":', 5.0, b'"a"}'])
    assert (slow.status, slow.code) == (408, "too_slow")


def test_only_json_may_be_posted(path):
    """A page of another site can post forms and plain text without asking, but not this type."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        answer = one(path, "POST", "/lookup", body=b'{"query": "a"}', headers={"content-type": kind})
        assert (answer.status, answer.code) == (415, "bad_type")
    kind = {"content-type": "Application/JSON; charset=utf-8"}
    assert one(path, "POST", "/lookup", body=b'{"query": "a"}', headers=kind).status == 200


def test_methods(path):
    async def script(app):
        got, head = await ask(app, "GET", "/lookup?q=a"), await ask(app, "HEAD", "/lookup?q=a")
        assert head.status == 200 and head.headers == got.headers
        options = await ask(app, "OPTIONS", "/lookup")
        assert (options.status, options.body) == (204, b"")
        assert set(options.headers["allow"].split(", ")) == {"GET", "HEAD", "POST", "OPTIONS"}
        for method, target in (("DELETE", "/lookup"), ("PUT", "/"), ("POST", "/health")):
            answer = await ask(app, method, target)
            assert (answer.status, answer.code) == (405, "method_not_allowed") and "GET" in answer.headers["allow"]
        for target in ("/lookup/", "/nothing", "/page.py", "/../setup.cfg", "//"):
            answer = await ask(app, "GET", target)
            assert (answer.status, answer.code) == (404, "not_found")

    serve(path, script)


def test_no_other_site_is_let_in(path):
    async def script(app):
        for target in ("/", "/page.js", "/lookup?q=a", "/status", "/nothing"):
            headers = (await ask(app, "GET", target, headers={"origin": "https://evil.example"})).headers
            assert not [name for name in headers if name.startswith("access-control")]
            assert headers["x-content-type-options"] == "nosniff"
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy and "*" not in policy and "data:" not in policy
        preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answer = await ask(app, "OPTIONS", "/lookup", headers=preflight)
        assert not [name for name in answer.headers if name.startswith("access-control")]

    serve(path, script)


def test_a_server_on_loopback_answers_to_its_own_names_alone(path):
    async def script(app):
        for host in ("localhost", "127.0.0.1:8000", "[::1]:9", "LOCALHOST:1"):
            assert (await ask(app, "GET", "/lookup?q=a", headers={"host": host})).status == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            answer = await ask(app, "GET", "/lookup?q=a", headers={"host": host})
            assert (answer.status, answer.code) == (421, "wrong_host")

    serve(path, script)
    assert one(path, "GET", "/", headers={"host": "any.example"}, hosts=None).status == 200


def test_who_asks_too_often_is_told_when_to_come_back(path):
    async def script(app):
        answers = [await ask(app, "GET", "/lookup?q=a", client="10.0.0.1") for _ in range(30)]
        statuses = [answer.status for answer in answers]
        assert statuses[:3] == [200] * 3 and 429 in statuses and statuses.count(200) < 10
        refused = answers[statuses.index(429)]
        assert refused.code == "too_many_requests" and refused.headers["retry-after"] == "1"
        assert (await ask(app, "GET", "/lookup?q=a", client="10.0.0.2")).status == 200  # another client
        await asyncio.sleep(1.1)
        assert (await ask(app, "GET", "/lookup?q=a", client="10.0.0.1")).status == 200

    serve(path, script, limits=Limits(rate=3))
