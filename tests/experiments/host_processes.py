"""Processes that hold a model together on this machine, each with simulated devices of its own."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(words: Sequence[str], process: int, port: int, **environment: str) -> subprocess.Popen:
    """One of two processes of two devices that run the command of these words."""
    own = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
    }
    # A shell that starts the tests in the background has them, and so their children, ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "limbeck.experiments.cli", *words]
    piped = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **own, **environment}, **piped)


def start_all(words: Sequence[str], **environment: str) -> list[subprocess.Popen]:
    port = free_port()
    return [start(words, process, port, **environment) for process in (0, 1)]
