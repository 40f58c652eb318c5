"""Requests to an ASGI application in this thread, without a server or a client's library."""

import asyncio
import json
from typing import Any, NamedTuple


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


async def ask(app, method, target, body=b"", headers=None, client="127.0.0.1", parts=None) -> Answer:
    """The answer to one request; `parts` is a body in pieces, each a number of seconds to wait or bytes."""
    path, _, query = target.partition("?")
    named = {"host": "127.0.0.1:8000", **({"content-type": "application/json"} if body or parts else {})}
    if parts is None:
        named["content-length"] = str(len(body))
    named |= headers or {}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": (client, 50000),
        "server": ("127.0.0.1", 8000),
        "scheme": "http",
        "state": {},
    }
    left, got = list(parts if parts is not None else [body]), []

    async def receive():
        while left:
            part = left.pop(0)
            if isinstance(part, bytes):
                return {"type": "http.request", "body": part, "more_body": bool(left)}
            await asyncio.sleep(part)
        return {"type": "http.disconnect"}

    async def send(message):
        got.append(message)

    await app(scope, receive, send)
    start, *rest = got
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], headers, b"".join(part.get("body", b"") for part in rest))


def post(app, content, **named):
    """A POST of JSON to /lookup."""
    return ask(app, "POST", "/lookup", json.dumps(content).encode(), **named)


def run(app, script):
    """What `script(app)` comes to, within the application's life."""

    async def whole():
        async with app.router.lifespan_context(app):
            return await script(app)

    return asyncio.run(whole())
