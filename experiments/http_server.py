"""A web server in this process: uvicorn on a socket that listens already, with a limit to the length of a head."""

import contextlib
import gc
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = 1 << 16  # bytes of a request's first line and headers
_CONNECTIONS = 1000  # whoever comes then is told 503
_IDLE = 30  # seconds until a connection that is not used is closed
_CLOSING = 10  # seconds that requests in flight have when the server is stopped


def run(app: Any, listening: socket.socket) -> None:
    """Serves an ASGI application until the process is interrupted; requests in flight are answered then."""
    config = uvicorn.Config(
        app,
        http=ShortHeads,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else any program of this machine could name another client than itself
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_CLOSING,
    )
    gc.collect()
    gc.freeze()  # what is there now stays: going through it again would hold requests up for ten milliseconds
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


class ShortHeads(HttpToolsProtocol):
    """uvicorn's protocol, which by itself would take in a head without end."""

    _head: int | None = 0  # bytes of a head that has not ended; None within a body, -1 where a request ended

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is None:
            return
        self._head = 0 if self._head < 0 else self._head + len(data)
        if self._head > _HEAD and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head = -1
        super().on_message_complete()
