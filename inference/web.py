"""HTTP around the look-up: what is refused and how that is said, headers, bodies, addresses."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limbeck.inference.traffic import Rate, Traffic
from limbeck.model.errors import nearest

_BODY_SECONDS = 10.0  # that a client has to send its body
_ASKED = ("query", "queries")
_SAFE = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
_DATA = _SAFE | {
    "content-type": "application/json",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
_PAGE = _SAFE | {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Refusal(Exception):
    """An answer that says in one line what is wrong with a request."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}


class Data:
    """An answer in JSON: what Starlette's own is, in a fifth of its time, which is most of a look-up's here."""

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._body, self._status = _encode(content).encode("utf-8", "backslashreplace"), status
        named = _DATA_LINES if headers is None else _lines({**_DATA, **headers})
        self._headers = [*named, (b"content-length", b"%d" % len(self._body))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body})


def _lines(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


_DATA_LINES = _lines(_DATA)


def error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Data:
    """What went wrong, in JSON: `code` for programs, `message` for people."""
    return Data(said(code, message), status, headers)


def said(code: str, message: str) -> dict[str, Any]:
    """The form of an error."""
    return {"error": {"code": code, "message": message}}


def page(content: bytes, kind: str) -> Response:
    """A file of the page."""
    return Response(content, headers=_PAGE | {"content-type": f"{kind}; charset=utf-8"})


class Answers:
    """What answers each method at a path; HEAD is answered like GET, and OPTIONS says what there is."""

    def __init__(self, **answers: Callable[[Request], Awaitable[ASGIApp]]) -> None:
        self.methods = [*answers, *(["HEAD"] if "GET" in answers else []), "OPTIONS"]
        self._answers = answers | ({"HEAD": answers["GET"]} if "GET" in answers else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS":
            answer = Response(status_code=204, headers=_SAFE | {"allow": ", ".join(self.methods)})
        else:
            try:
                answer = await self._answers[scope["method"]](Request(scope, receive))
            except Refusal as refusal:
                answer = error(refusal.status, refusal.code, str(refusal), refusal.headers)
        await answer(scope, receive, send)


def route(path: str, **answers: Callable[[Request], Awaitable[ASGIApp]]) -> Route:
    """A path with what answers its methods."""
    answer = Answers(**answers)
    return Route(path, answer, methods=answer.methods)


def query_of(address: bytes) -> str:
    """The q of an address's query string. Raises Refusal unless there is just that, in UTF-8."""
    name, _, value = address.partition(b"=")
    if name == b"q" and b"&" not in value:
        with contextlib.suppress(UnicodeDecodeError):
            return unquote_to_bytes(value.replace(b"+", b" ")).decode()
    raise Refusal(400, "bad_request", "give one query, percent-encoded in UTF-8: /lookup?q=...")


async def asked_in(request: Request, most_bytes: int, most_queries: int) -> str | list[str]:
    """The query of a request's body, or its queries. Raises Refusal."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # Also so that pages of other sites cannot post here: without their asking first, they may not send this type.
        raise Refusal(415, "bad_type", "send JSON with the header Content-Type: application/json")
    try:
        asked = json.loads(await _body(request, most_bytes))
    except (ValueError, RecursionError):
        raise Refusal(400, "bad_json", "the body is not JSON in UTF-8") from None
    if not isinstance(asked, dict) or len(asked) != 1 or not asked.keys() <= set(_ASKED):
        wrong = [name for name in asked if name not in _ASKED] if isinstance(asked, dict) else []
        hint = nearest(wrong[0], _ASKED) if wrong else ""
        raise Refusal(400, "bad_request", f'send {{"query": "..."}} or {{"queries": ["...", ...]}}{hint}')
    [(name, value)] = asked.items()
    if name == "query" and isinstance(value, str):
        return value
    if name == "query" or not isinstance(value, list) or not all(isinstance(query, str) for query in value):
        raise Refusal(400, "bad_request", f"{name} must be {'a text' if name == 'query' else 'a list of texts'}")
    if len(value) > most_queries:
        raise Refusal(413, "too_many_queries", f"{len(value)} queries in one request: send at most {most_queries}")
    return value


async def _body(request: Request, most: int) -> str:
    def too_long(**headers: str) -> NoReturn:
        raise Refusal(413, "body_too_long", f"the body is longer than {most} bytes: send fewer queries", **headers)

    if int(request.headers.get("content-length", 0)) > most:
        too_long()
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    too_long(connection="close")
    except TimeoutError:
        words = f"the body did not arrive in {_BODY_SECONDS:g} seconds"
        raise Refusal(408, "too_slow", words, connection="close") from None
    return body.decode()


class Gate:
    """Refuses who asks too often or by a name that is not this server's, and counts every request.

    `hosts` are the names without the port, None for any; `paths` those that are counted by name.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic, rate: Rate, hosts: set[str] | None, paths: set[str]) -> None:
        self._app, self._traffic, self._rate, self._hosts, self._paths = app, traffic, rate, hosts, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await (self._refusal(scope, start) or self._app)(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._traffic.request(path, status, time.perf_counter() - start)

    def _refusal(self, scope: Scope, now: float) -> Data | None:
        if self._hosts is not None:
            host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
            if host not in self._hosts and host.rpartition(":")[0] not in self._hosts:
                legal = ", ".join(sorted(self._hosts))
                return error(421, "wrong_host", f"this server is not {host[:80]!a}: call it by {legal}")
        wait = self._rate.wait(scope["client"][0] if scope["client"] else "", now)
        if wait:
            words = "too many requests from this address: ask again later, or several queries in one request"
            return error(429, "too_many_requests", words, {"retry-after": str(math.ceil(wait))})
        return None


async def refused(_: Request, problem: Exception) -> Any:
    """Starlette's own refusals in the form of ours."""
    assert isinstance(problem, HTTPException)
    words = {404: "there is nothing here: / is the page, /lookup?q=... looks up", 405: "this takes another method"}
    code = {404: "not_found", 405: "method_not_allowed"}.get(problem.status_code, "refused")
    return error(problem.status_code, code, words.get(problem.status_code, problem.detail), problem.headers)


async def failed(_: Request, problem: Exception) -> Any:
    """What is said of an error that nobody expected; the server's log has it whole."""
    return error(500, "internal_error", "the server failed to answer; its log says why")
