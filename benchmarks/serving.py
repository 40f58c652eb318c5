"""Look-ups over HTTP on loopback: `limbeck serve` beside an application that says hello, in the same run.

    .venv/bin/python benchmarks/serving.py
    .venv/bin/python benchmarks/serving.py --rows 1000000 --swap

Servers take turns, each a process with one worker on the first core; the client here has the second. `closed` is as
fast as so many connections that are kept alive ask again; `paced` asks so many times a second, and a request's time is
counted from when it was due, so one that waits behind a slow one counts as slow. CPU is the server's own, which other
programs disturb least; `waited` is the share of the time in which the server would have run and another program had its
core. Half of the queries are in the store.
"""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import tyro
import uvloop
from contest import console, table

from limbeck.inference.store import PredictionStore

HELLO = """
import socket
from limbeck.experiments.http_server import run
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    head = [(b"content-type", b"application/json"), (b"content-length", b"15")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b'{"hello":"you"}'})
listening = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
run(app, listening)
"""
LIMBECK = ["-m", "limbeck.experiments.cli", "serve"]


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    rows: int = 100_000
    connections: int = 8
    requests: int = 20_000
    """Of a turn."""
    rate: float = 2000.0
    """Requests a second, paced."""
    rounds: int = 5
    swap: bool = False
    """Also put a new file in place of the store, and measure while it is read and taken on."""


class Found(NamedTuple):
    """Of one turn: requests a second, ms of a middling request and of one in a hundred, CPU in µs, waiting in %."""

    rate: float
    p50: float
    p99: float
    cpu: float
    waited: float


class Asking(asyncio.Protocol):
    """A connection that is kept alive; `ask` sends one request, and the future it gives is done with the answer."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self._got, self._waiting = transport, b"", asyncio.get_running_loop().create_future()

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, gap, body = self._got.partition(b"\r\n\r\n")
        if gap and len(body) == int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self._got = b""
            if not self._waiting.done():
                self._waiting.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"the server hung up: {exc}"))


async def asked(port: int, targets: list[str], connections: int, pace: float) -> list[float]:
    """Seconds of each request; without a pace each connection asks as soon as it has its answer."""
    loop, left = asyncio.get_running_loop(), iter(enumerate(targets))
    lines = [f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() for target in targets]
    seconds, start = [], 0.0

    async def one() -> None:
        _, line = await loop.create_connection(Asking, "127.0.0.1", port)
        for number, _ in left:
            due = start + number / pace if pace else time.perf_counter()
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            head = await line.ask(lines[number])
            seconds.append(time.perf_counter() - due)
            assert head.startswith(b"HTTP/1.1 200"), head
        line.transport.close()

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    return seconds


def turn(child: subprocess.Popen, port: int, targets: list[str], connections: int, pace: float) -> Found:
    (cpu, waited), start = _spent(child.pid), time.perf_counter()
    seconds = sorted(uvloop.run(asked(port, targets, connections, pace)))
    took, count = time.perf_counter() - start, len(seconds)
    cpu_then, waited_then = _spent(child.pid)
    p50, p99 = (1e3 * seconds[int(share * count)] for share in (0.5, 0.99))
    return Found(count / took, p50, p99, 1e6 * (cpu_then - cpu) / count, 100 * (waited_then - waited) / took)


def _spent(process: int) -> tuple[float, float]:
    """Seconds on a core, and seconds of waiting for one; of the one thread that serves."""
    running, waiting, _ = map(int, Path(f"/proc/{process}/schedstat").read_text().split())
    return running / 1e9, waiting / 1e9


@contextlib.contextmanager
def server(words: list[str], core: int):
    """(process, port) of a server that listens."""
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(child.pid, {core})
    try:
        assert child.stdout
        yield child, int(child.stdout.readline().rstrip().rstrip("/").rpartition(":")[2])
    finally:
        child.terminate()
        child.wait()


def main(args: Args) -> int:
    cores = sorted(os.sched_getaffinity(0))
    queries = [f"سؤال {i}" for i in range(2 * args.rows)]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        path = Path(folder) / "serving.db"
        with PredictionStore(Path(folder) / "job.db", manifest={"options": '["one", "other"]'}) as store:
            payload = {"logprobs": [-0.25, -1.5], "lengths": [1, 1], "greedy": [True, False]}
            store.put_many((f"{i:064x}", query, payload) for i, query in enumerate(queries[::2]))
            store.compact(path)
        step = max(1, len(queries) // args.requests) | 1  # odd: hits and misses in turns
        targets = [f"/lookup?q={quote(queries[i * step % len(queries)])}" for i in range(args.requests)]
        out = console()
        limbeck = running.enter_context(server([*LIMBECK, str(path), "--port", "0", "--rate", "0"], cores[0]))
        hello = running.enter_context(server(["-c", HELLO], cores[0]))
        os.sched_setaffinity(0, {cores[-1]})
        for kind, pace in (("closed", 0.0), (f"paced, {args.rate:g} requests/s", args.rate)):
            found: dict[str, list[Found]] = {"limbeck": [], "hello": []}
            for _ in range(args.rounds):
                for name, (child, port) in (("limbeck", limbeck), ("hello", hello)):
                    found[name].append(turn(child, port, targets, args.connections, pace))
            _show(out, f"{kind}: {args.connections} connections, {args.rows:,} rows", found)
        if args.swap:
            new = shutil.copy(path, Path(folder) / "new")
            os.replace(new, path)
            found = {"limbeck": [turn(*limbeck, targets, args.connections, args.rate)]}
            _show(out, "paced, while a new file is read and taken on", found)
        out.print(f"load of the last minute {os.getloadavg()[0]:.1f} on {len(cores)} cores, of which this is about 2")
    return 0


def _show(out, title: str, found: dict[str, list[Found]]) -> None:
    rows = table(title, ["", "requests/s", "p50 ms", "p99 ms", "best p99", "waited %", "CPU µs", "times hello's CPU"])
    ratios = [mine.cpu / other.cpu for mine, other in zip(found["limbeck"], found.get("hello", []), strict=False)]
    for name, turns in found.items():
        rate, p50, p99, cpu, waited = (statistics.median(values) for values in zip(*turns, strict=True))
        ratio = f"{statistics.median(ratios):.2f}" if name == "limbeck" and ratios else ""
        times = (f"{each:.2f}" for each in (p50, p99, min(turn.p99 for turn in turns)))
        rows.add_row(name, f"{rate:,.0f}", *times, f"{waited:.0f}", f"{cpu:.0f}", ratio)
    out.print(rows)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args, description=__doc__)))
