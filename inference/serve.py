"""Look-ups over HTTP: a Starlette application around one store, and the page to try it on.

    GET  /lookup?q=...     {"found", "query", "answer", "payload"}: `query` as it was looked up, `answer` in words
    POST /lookup           {"query": "..."} gives the same, {"queries": [...]} gives {"results": [...]} in their order
    GET  /health           whether what lies at the store's path is what is served
    GET  /status           what the store holds, for the page
    GET  /metrics          for Prometheus
    GET  /                 the page

GET only looks up; a model, if there is one, is asked by a POST of one query. Errors are {"error": {"code", "message"}}.
"""

import asyncio
import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from limbeck.inference.fallback import Busy, Fallback
from limbeck.inference.lookup import Online
from limbeck.inference.served import ServedStore
from limbeck.inference.store import compared
from limbeck.inference.traffic import Rate, Traffic, family
from limbeck.inference.web import Data, Gate, Refusal, asked_in, failed, page, query_of, refused, route, said
from limbeck.inference.words import about, options_of, reader
from limbeck.model.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # what a server on loopback is called

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}


@dataclass(frozen=True)
class Limits:
    """What a client may ask for: bytes of a body, queries of a request, requests a second (0 is no limit)."""

    body: int = 1 << 20
    queries: int = 256
    rate: float = 5000.0


def create_app(
    served: ServedStore,
    limits: Limits = Limits(),
    online: Online | None = None,
    hosts: Iterable[str] | None = LOOPBACK,
    every: float = 0.5,
    ready: Callable[[], None] = lambda: None,
) -> Starlette:
    """The application; it looks for a new file `every` so many seconds, and closes `served` in the end.

    It calls `ready` when the server has begun: an interrupt ends it in good order from then on.

    `hosts` are the names that a client may call this server by. Without such a list a page of the web could read what
    a server on loopback says, by letting its own name lead there (DNS rebinding). None takes any name, for a server
    that is open to others anyway: it shows no examples of queries, which may be people's own words, and no paths.
    """
    desk = _Desk(served, limits, Fallback(online, served.store.manifest) if online else None, hosts is not None)
    answers = {"/health": desk.health, "/status": desk.status, "/metrics": desk.metrics}
    routes = [
        route("/lookup", GET=desk.look_up, POST=desk.look_up_posted),
        *(route(path, GET=answer) for path, answer in answers.items()),
        *(route(path, GET=_file(*file)) for path, file in _FILES.items()),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(served.watch(every))
        ready()
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await asyncio.to_thread(desk.close)
            served.close()

    known, allowed = {route.path for route in routes}, None if hosts is None else set(hosts)
    gate = Middleware(Gate, desk.traffic, Rate(limits.rate), allowed, known)
    handlers = {HTTPException: refused, Exception: failed}
    app = Starlette(routes=routes, middleware=[gate], exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app


class _Desk:
    """Answers requests from the store that is served."""

    def __init__(self, served: ServedStore, limits: Limits, fallback: Fallback | None, local: bool) -> None:
        self._served, self._limits, self._fallback, self._local = served, limits, fallback, local
        self.traffic = Traffic()
        self._store, self._words = served.store, reader(served.store.manifest)

    def close(self) -> None:
        if self._fallback:
            self._fallback.close()

    async def look_up(self, request: Request) -> Data:
        return Data(self._answer(query_of(request.scope["query_string"])))

    async def look_up_posted(self, request: Request) -> Data:
        asked = await asked_in(request, self._limits.body, self._limits.queries)
        if isinstance(asked, str):
            return Data(self._answer(asked) if self._fallback is None else await self._answer_online(asked))
        return Data({"results": [self._answer_of_several(query) for query in asked]})

    def _answer(self, query: str, online: bool = False) -> dict[str, Any]:
        """What the store holds. Raises Refusal for what is no query, and for a damaged row."""
        store = self._served.store
        try:
            query = store.normalise(query)
        except UserError as error:
            self.traffic.queries["invalid"] += 1
            raise Refusal(400, "bad_query", str(error)) from None
        try:
            payload = store.find(query)
        except UserError as error:
            self.traffic.queries["damaged"] += 1
            raise Refusal(500, "damaged_row", str(error).replace(str(store.path), store.path.name)) from None
        if payload is not None:
            self.traffic.queries["hit"] += 1
            return self._found(query, payload)
        if not online:
            self.traffic.queries["miss"] += 1
        return {"found": False, "query": query}

    def _answer_of_several(self, query: str) -> dict[str, Any]:
        """As `_answer`; what is wrong with one query is said in its place."""
        try:
            return self._answer(query)
        except Refusal as refusal:
            return {"found": False, **said(refusal.code, str(refusal))}

    async def _answer_online(self, query: str) -> dict[str, Any]:
        """As `_answer`; what the store does not hold is asked of the model."""
        store, fallback = self._served.store, self._fallback
        assert fallback is not None
        fits = fallback.fits(store)
        answer = self._answer(query, online=fits)
        if answer["found"] or not fits:
            return answer
        try:
            payload = await fallback.ask(store, answer["query"])
        except Busy:
            words = "too many queries wait for the model: ask again later"
            raise Refusal(503, "busy", words, retry_after="1") from None
        except UserError as error:
            self.traffic.queries["failed"] += 1
            raise Refusal(422, "not_answered", str(error)) from None
        self.traffic.queries["online"] += 1
        return self._found(answer["query"], payload) | {"online": True}

    def _found(self, query: str, payload: dict[str, Any]) -> dict[str, Any]:
        if self._store is not self._served.store:
            self._store, self._words = self._served.store, reader(self._served.store.manifest)
        return {"found": True, "query": query, "answer": self._words(payload), "payload": payload}

    async def health(self, _: Request) -> Data:
        return Data(self._health())

    def _health(self) -> dict[str, Any]:
        served, facts = self._served, self._served.facts
        problem = served.problem
        if problem is None and self._fallback and not self._fallback.fits(served.store):
            problem = "the store is of another model or job than the one that answers online: start the server again"
        return {
            "status": "ok" if problem is None else "degraded",
            "problem": problem,
            "store": served.path.name,
            "digest": facts.digest,
            "rows": facts.rows,
            "queries": facts.queries,
            "failures": facts.failures,
            "coverage": facts.coverage,
            "bytes": facts.bytes,
            "since": served.since,
            "swaps": served.swaps,
        }

    async def status(self, _: Request) -> Data:
        facts, asked = self._served.facts, self.traffic.queries
        examples, manifest = (facts.examples, facts.manifest) if self._local else ([], compared(facts.manifest))
        counts = {name: asked[name] for name in ("hit", "miss", "online")}
        more = {"asked": counts, "most_queries": self._limits.queries, "examples": examples, "reasons": facts.reasons}
        return Data(self._health() | more | {"about": about(manifest), "options": options_of(manifest)})

    async def metrics(self, _: Request) -> Response:
        health, lines = self._health(), self.traffic.lines()
        for name in ("rows", "queries", "failures", "bytes"):
            lines += family(f"store_{name}", "gauge", f"What the store that is served has: {name}.", health[name])
        lines += family("store_degraded", "gauge", "1 if /health has a problem.", int(health["status"] != "ok"))
        lines += family("store_swaps_total", "counter", "New files that were taken on.", health["swaps"])
        lines += family("store_info", "gauge", "SHA-256 of the file; empty while it grows.")
        lines.append(f'limbeck_store_info{{digest="{health["digest"]}"}} 1')
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def _file(name: str, kind: str) -> Any:
    content = importlib.resources.files("limbeck.inference").joinpath(name).read_bytes()

    async def answer(_: Request) -> Response:
        return page(content, kind)

    return answer
