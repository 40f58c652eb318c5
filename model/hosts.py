"""Processes that hold a model together: each runs the same programs in the same order; the first speaks for all."""

import contextlib
import hashlib
import json
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from limbeck.model.errors import UserError

LOST = 75  # the exit status of a process that lost another: all can begin again (EX_TEMPFAIL of sysexits.h)
_SILENT = 20  # seconds after which a process that is not heard of is taken to be dead
_HUNG = "LIMBECK_HUNG_AFTER"  # seconds after which a training that makes no step is ended, with LOST
_HUNG_AFTER = 900.0  # a first step may compile for minutes
_AGAIN = "run the same command on all hosts to go on"
_GONE = re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|[Gg]loo|[Cc]onnection (closed|reset)|heartbeat")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """What is inside runs as one of several processes that hold a model together; nothing may be computed before.

    Slurm, Open MPI and Cloud TPU say which one it is; elsewhere JAX_COORDINATOR_ADDRESS (of process 0,
    "host:port"), JAX_NUM_PROCESSES and JAX_PROCESS_ID do. What goes wrong ends the process there and then, with exit
    status 2 if it is the user's mistake, 130 if it was interrupted, 75 (`LOST`) if another process is gone, else 1: on
    the usual way out it would wait for the others, and they for it. Without it they end, too; where JAX itself finds
    that one is not heard of, by SIGABRT. Raises UserError where nothing says which one it is, or the others cannot be
    reached.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, own = (os.environ.get(name) for name in names)
    try:
        numbers = (int(count) if count else None, int(own) if own else None)
        jax.distributed.initialize(address, *numbers, heartbeat_timeout_seconds=_SILENT)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"this process cannot join the others ({' '.join(str(error).split())}): set {', '.join(names)}"
        ) from error
    try:
        yield
    except UserError as error:
        _end(f"limbeck: {error}", 2)
    except KeyboardInterrupt:
        _end(f"limbeck: interrupted; {_AGAIN}", 130)
    except SystemExit as told:
        _end("", told.code if isinstance(told.code, int) else 1)
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _GONE.search(str(error)):
            _end(f"limbeck: another process is gone; {_AGAIN} ({' '.join(str(error).split())[:200]})", LOST)
        _end(traceback.format_exc(), 1)


@contextlib.contextmanager
def watched() -> Iterator[Callable[[float], None]]:
    """Yields a function that gives the next sign of life so many seconds; without one the process ends, with `LOST`.

    That is for a process that waits for one that lives and does nothing; by itself it does not watch.
    """
    deadline, over = [math.inf], threading.Event()

    def give(seconds: float) -> None:
        deadline[0] = time.monotonic() + seconds

    def watch() -> None:
        while not over.wait(0.5):
            if time.monotonic() > deadline[0]:
                _end(f"limbeck: no step for {hung_after():g} s, so some process hangs ({_HUNG}); {_AGAIN}", LOST)

    if jax.process_count() > 1:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield give
    finally:
        over.set()


def hung_after() -> float:
    """Seconds that a step of a training of several processes may take, the first with its compilation."""
    told = os.environ.get(_HUNG, "")
    try:
        return float(told or _HUNG_AFTER)
    except ValueError:
        raise UserError(f"{_HUNG}={told}: a number of seconds, such as {_HUNG_AFTER:g}") from None


def _end(words: str, status: int) -> NoReturn:
    print(words, file=sys.__stderr__, end="\n" if words else "")
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.__stderr__ is not None:
        sys.__stderr__.flush()
    os._exit(status)


def leads() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return jax.process_index() == 0


def from_leader(value: Any) -> Any:
    """What the process that leads has of a value that JSON can say; all must ask, and wait for it."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(data))))
    told = broadcast_one_to_all(np.resize(data, size))
    return json.loads(np.asarray(told).tobytes())


def without(holds: bool) -> list[int]:
    """The processes in which something does not hold; all must ask."""
    if jax.process_count() == 1:
        return [] if holds else [0]
    from jax.experimental.multihost_utils import process_allgather

    return np.flatnonzero(~np.asarray(process_allgather(np.bool_(holds)))).tolist()


def together(place: str) -> None:
    """Waits until every process has come to that place."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(place)


def on_host(tree: Any) -> Any:
    """A tree of arrays as numpy ones, whole in every process: of what lies with others, too."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def fetched(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        from jax.experimental.multihost_utils import process_allgather

        return process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(fetched, tree))


def agreed(names: Sequence[str], chosen: set[str]) -> set[str]:
    """Which of the names the process that leads has chosen.

    Raises UserError, in all of them, where one has other names: they would wait for each other forever.
    """
    if jax.process_count() == 1:
        return chosen
    from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

    own = np.frombuffer(hashlib.sha256("\n".join(names).encode()).digest(), np.uint8)
    of_all = process_allgather(own)
    other = [process for process, each in enumerate(of_all) if not np.array_equal(each, of_all[0])]
    if other:
        raise UserError(
            f"process {other[0]} has other queries than process 0, or another model: "
            "give all the same files and settings"
        )
    chosen_N = broadcast_one_to_all(np.array([name in chosen for name in names], np.uint8))
    return {name for name, is_chosen in zip(names, chosen_N, strict=True) if is_chosen}
