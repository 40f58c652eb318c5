"""`limbeck serve` as it is run: a server of its own process, asked over its socket.

Run as a program (`python test_serving.py STORE`) this file serves a store, and looks for a new one all the time.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="limbeck serve needs the extra [serve]")
pytest.importorskip("uvicorn", reason="limbeck serve needs the extra [serve]")
pytest.importorskip("httptools", reason="limbeck serve needs the extra [serve]")

from limbeck.experiments import serving
from limbeck.experiments.cli import main
from limbeck.inference.store import PredictionStore

QUERIES = [f"سؤال {i}" for i in range(100)]
FIRST = urllib.parse.quote(QUERIES[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A compacted store in which every query finds "1"."""
    return made(tmp_path / "serving.db", 1)


def made(path: Path, version: int) -> Path:
    with PredictionStore(path.with_name(f"job{version}.db"), manifest={"weights": f"w{version}"}) as store:
        store.put_many([(f"key{i:03}", query, {"text": str(version)}) for i, query in enumerate(QUERIES)])
        store.compact(path)
    return path


@contextlib.contextmanager
def process(*words: str):
    """(a server that listens, its port)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout and child.stderr
    try:
        line = child.stdout.readline()
        assert "http://" in line, child.stderr.read()
        yield child, int(line.rstrip().rstrip("/").rpartition(":")[2])
    finally:
        child.kill()
        child.communicate()


def limbeck_serve(*words: object):
    return process("-m", "limbeck.experiments.cli", "serve", *map(str, words), "--port", "0")


def connected(port: int):
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30))


def asked(connection: http.client.HTTPConnection, target: str, body: object = None):
    method, headers = ("GET", {}) if body is None else ("POST", {"Content-Type": "application/json"})
    connection.request(method, target, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_many_swaps_under_load_and_not_one_failed_request(path: Path, tmp_path: Path) -> None:
    """Whole stores and damaged ones take the path in turns; every answer is a whole one's, and at last the newest's."""
    swaps, stop, errors, counts = 24, threading.Event(), [], []
    versions = [made(tmp_path / f"v{version}.db", version) for version in range(2, swaps + 2)]

    def client(number: int, port: int) -> None:
        seen, count = 1, 0
        try:
            with connected(port) as connection:
                while not stop.is_set():
                    status, answer = asked(connection, "/lookup", {"queries": QUERIES[number::20]})
                    answers = {result["answer"] for result in answer["results"]}
                    assert status == 200 and len(answers) == 1, answer  # a batch is answered by one store
                    status, answer = asked(connection, f"/lookup?q={FIRST}")
                    assert status == 200 and answer["found"], answer
                    now = [int(answers.pop()), int(answer["answer"])]
                    assert seen <= now[0] <= now[1], (seen, now)
                    seen, count = now[1], count + 1
        except Exception as error:
            errors.append(error)
        counts.append((seen, count))

    with process(__file__, str(path)) as (_, port):
        clients = [threading.Thread(target=client, args=(number, port)) for number in range(4)]
        for thread in clients:
            thread.start()
        with connected(port) as connection:
            for version, whole in enumerate(versions, 2):
                new = tmp_path / "new"
                if version % 3 == 1:
                    new.write_bytes(whole.read_bytes()[: 4096 * 3] + b"\xa5" * 4096)
                    os.replace(new, path)
                    time.sleep(0.05)
                shutil.copy(whole, new)
                os.replace(new, path)
                time.sleep(0.05 if version % 2 else 0.002)  # also faster than a file is read
                end = time.monotonic() + 30
                while version % 3 == 1 and asked(connection, f"/lookup?q={FIRST}")[1]["answer"] != str(version):
                    assert time.monotonic() < end
                    time.sleep(0.01)
            time.sleep(0.2)
            health = asked(connection, "/health")[1]
        stop.set()
        for thread in clients:
            thread.join(30)
    assert errors == []
    assert {seen for seen, _ in counts} == {swaps + 1} and all(count > 10 for _, count in counts)
    assert health["status"] == "ok" and swaps // 3 <= health["swaps"] <= swaps


def test_a_damaged_file_is_reported_and_the_old_one_served(path: Path) -> None:
    with limbeck_serve(path) as (_, port):
        path.with_name("new").write_bytes(b"no store at all" * 100)
        os.replace(path.with_name("new"), path)
        end = time.monotonic() + 30
        with connected(port) as connection:
            while (health := asked(connection, "/health")[1])["status"] == "ok":
                assert time.monotonic() < end
                time.sleep(0.05)
            assert health["status"] == "degraded" and health["rows"] == 100
            assert "not a prediction store" in health["problem"]
            assert asked(connection, "/lookup", {"query": "سؤال  5"})[1]["answer"] == "1"


def exchanged(port: int, *parts: bytes) -> bytes:
    """What a socket answers to these bytes until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        got = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
            while part := connection.recv(1 << 16):
                got += part
    return got


def test_what_is_sent_over_the_wire(path: Path) -> None:
    with limbeck_serve(path) as (child, port):
        host = b"Host: 127.0.0.1\r\nConnection: close\r\n\r\n"
        head, _, body = exchanged(port, b"GET /lookup?q=a HTTP/1.1\r\n" + host).partition(b"\r\n\r\n")
        assert body == b'{"found":false,"query":"a"}' and b"\r\nserver:" not in head.lower()
        only_head = exchanged(port, b"HEAD /lookup?q=a HTTP/1.1\r\n" + host)
        length = b"content-length: %d\r\n" % len(body)
        assert length in only_head and only_head.endswith(b"\r\n\r\n")
        for endless in (b"GET /lookup?q=", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
            answer = exchanged(port, endless, *([b"a" * 50_000] * 20))
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
        many = b"GET /lookup?q=" + b"a" * 9000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"  # a new head each time
        assert exchanged(port, many * 20 + b"GET / HTTP/1.1\r\n" + host).count(b"HTTP/1.1 200") == 21
        big = json.dumps({"query": "b" * 500_000}).encode()  # a long body is no long head
        start = b"POST /lookup HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(big)
        again = start + b"Host: 127.0.0.1\r\n\r\n" + big
        assert exchanged(port, again, start + host + big).count(b'{"found":false,') == 2
        too_big = start.replace(b"%d" % len(big), b"2000000") + host
        assert b'"code":"body_too_long"' in exchanged(port, too_big + b"c" * 2_000_000)
        spoofed = b"GET /health HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close\r\n\r\n"
        assert exchanged(port, spoofed).startswith(b"HTTP/1.1 421")
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0


def test_it_is_stopped_with_requests_answered(path: Path) -> None:
    with limbeck_serve(path) as (child, port), connected(port) as connection:
        connection.putrequest("POST", "/lookup")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "18")
        connection.endheaders(b'{"query"')
        time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.send(b': "none" }')
        assert json.loads(connection.getresponse().read()) == {"found": False, "query": "none"}
        assert child.wait(30) in (0, -signal.SIGTERM)


def test_open_to_others_it_warns(path: Path) -> None:
    with limbeck_serve(path, "--host", "0.0.0.0") as (child, port), connected(port) as connection:
        connection.request("GET", "/lookup?q=a", headers={"Host": "any.example"})
        assert connection.getresponse().status == 200
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=30)
    assert error.startswith("limbeck: 0.0.0.0 is no loopback address: ") and error.count("\n") == 1
    with limbeck_serve(path, "--host", "localhost") as (child, port), connected(port) as connection:
        assert asked(connection, "/health")[0] == 200
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30)[1] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: no address of that name"),
        (["--host", "a" * 300], "no address of that name"),
        (["--port", "70000"], "--port 70000: a number from 0"),
        (["--port", "TAKEN"], "name another --port"),
        (["--rate", "-1"], "--rate -1: requests a second"),
        (["--rate", "nan"], "--rate nan: requests a second"),
    ],
)
def test_mistakes_are_one_line(path: Path, words: list[str], message: str, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.replace("TAKEN", str(taken.getsockname()[1])) for word in words]
        assert main(["serve", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("limbeck: ") and error.count("\n") == 1


def test_a_store_that_cannot_be_served(tmp_path: Path, path: Path, capsys) -> None:
    assert main(["serve", str(tmp_path / "none.db"), "--port", "0"]) == 2
    assert "none.db" in capsys.readouterr().err
    path.with_name("cut.db").write_bytes(path.read_bytes()[:9000])
    assert main(["serve", str(path.with_name("cut.db")), "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert "damaged" in error and error.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else name)
    assert main(["serve", str(path)]) == 2
    assert capsys.readouterr().err == "limbeck: limbeck serve needs uvicorn: pip install 'limbeck[serve]'\n"


if __name__ == "__main__":
    from limbeck.experiments.http_server import run
    from limbeck.inference.serve import create_app
    from limbeck.inference.served import ServedStore

    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    run(create_app(ServedStore(sys.argv[1]), every=0.005), listening)
