"""Processes that hold a model together: each runs the same programs in the same order; the first speaks for all."""

import contextlib
import hashlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from limbeck.model.errors import UserError

_SILENT = 20  # seconds after which a process that is not heard of is taken to be dead


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """What is inside runs as one of several processes that hold a model together; nothing may be computed before.

    Slurm, Open MPI, Cloud TPU and Kubernetes say which one it is; elsewhere JAX_COORDINATOR_ADDRESS (of process 0,
    "host:port"), JAX_NUM_PROCESSES and JAX_PROCESS_ID do. What goes wrong ends the process there and then, with exit
    status 2 if it is the user's mistake, 130 if it was interrupted, else 1: on the usual way out it would wait for the
    others, and they for it. Without it they end, too. Raises UserError where nothing says which one it is, or the
    others cannot be reached.
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
        _end("limbeck: interrupted; run the same command on all hosts to go on", 130)
    except Exception:
        _end(traceback.format_exc(), 1)


def _end(words: str, status: int) -> NoReturn:
    print(words, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leads() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return jax.process_index() == 0


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
