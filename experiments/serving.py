"""`limbeck lookup` and `limbeck serve`: answers of a store, in the terminal and over HTTP."""

import argparse
import importlib.util
import ipaddress
import math
import socket
import sys
from typing import Any

from limbeck.inference.lookup import Online, lookup, side_store
from limbeck.inference.store import PredictionStore
from limbeck.inference.words import reader
from limbeck.model.errors import UserError


def look_up(args: argparse.Namespace) -> int:
    """Prints the answer to a query; exit status 1 if the store has none and no model was to be asked."""
    with PredictionStore(args.store, read_only=True) as store:
        payload, manifest = lookup(store, args.query), store.manifest
    if payload is None and args.online is not None:
        with _writable(args.store) as store:
            payload = lookup(store, args.query, _online(manifest, args.online))
    if payload is None:
        print("not in the store", file=sys.stderr)
        return 1
    print(reader(manifest)(payload))
    return 0


def serve(args: argparse.Namespace) -> int:
    """Answers look-ups over HTTP until it is interrupted."""
    missing = [name for name in ("starlette", "uvicorn", "httptools") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"limbeck serve needs {', '.join(missing)}: pip install 'limbeck[serve]'")
    if not 0 <= args.rate < math.inf:
        raise UserError(f"--rate {args.rate:g}: requests a second, or 0 for no limit")
    from limbeck.experiments.http_server import run
    from limbeck.inference.serve import LOOPBACK, Limits, create_app
    from limbeck.inference.served import ServedStore

    with _listen(args.host, args.port) as listening:
        served = ServedStore(args.store)
        online = None if args.online is None else _online(served.store.manifest, args.online)
        address, port = listening.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        local = ipaddress.ip_address(address).is_loopback
        if not local:
            print(
                f"limbeck: {args.host} is no loopback address: whoever reaches port {port} of this machine can read "
                "the store, without a password and unencrypted",
                file=sys.stderr,
            )

        def ready() -> None:
            facts = served.facts
            counts = f"{facts.rows} predictions, {facts.queries} queries"
            print(f"{args.store}: {counts}, at http://{name}:{port}/", flush=True)
            if online:
                print(f"what it lacks is asked of the model, and kept in {side_store(served.store.path)}", flush=True)

        hosts = {*LOOPBACK, name, args.host.lower()} if local else None
        run(create_app(served, Limits(rate=args.rate), online, hosts, ready=ready), listening)
    return 0


def _online(manifest: dict[str, str], model: str) -> Online:
    from limbeck.experiments.predicting import asker

    return asker(manifest, model or None)


def _writable(path: str) -> PredictionStore:
    """The store open for writing, or for reading where it is a copy for look-ups or another process writes it."""
    try:
        return PredictionStore(path)
    except UserError:
        return PredictionStore(path, read_only=True)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError for a name that is none, and for a port that cannot be had."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: a number from 0 (any free port) to 65535")
    try:
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no address of that name (127.0.0.1 is this machine alone)") from error
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        words = f"cannot listen on {host} port {port} ({error.strerror}): name another --port, or stop what has it"
        raise UserError(words) from error
    return listening
