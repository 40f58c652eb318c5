"""Contenders that take turns: each a process of its own, kept alive, told over a pipe what to do.

Machines are noisy and drift, so nothing is timed alone: in every round each contender has its turn, ratios are taken
within a round, and medians are reported with their quartiles. Only the standard library, numpy and rich are needed
here: a contender may live in another environment, without Limbeck.
"""

import contextlib
import ctypes
import gc
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]


def environment() -> dict[str, str]:
    """What every contender starts with: a thread for each core, and glibc's huge pages as `limbeck run` has them."""
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    own = {"OMP_NUM_THREADS": cores, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if platform.libc_ver()[0] == "glibc":
        own["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return {**own, **os.environ}


def restart_with_environment() -> None:
    """Starts this very script again with `environment()`, which only the start of a process can ask for."""
    if environment() != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment())


class Died(Exception):
    """A contender's process ended, or answered with an error; its words are the message."""


class Contender:
    """A process that answers one line of JSON with another."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            encoding="utf-8",
        )

    def ask(self, **request: Any) -> Json:
        """Sends a request and waits for its answer. Raises Died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Died(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise Died(answer["error"])
        return answer

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"ended with {how}" + (f": {lines[-1]}" if lines else "")


def answer_requests(start: Callable[[Json], tuple[Json, Callable[[Json], Json]]]) -> None:
    """The other end of the pipe: the first request goes to `start`, which gives its answer and who answers the rest.

    Whatever a library prints goes to stderr, so that only answers are on the pipe.
    """
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    handler: Callable[[Json], Json] | None = None
    for line in sys.stdin:
        try:
            if handler is None:
                answer, handler = start(json.loads(line))
            else:
                answer = handler(json.loads(line))
        except Exception as error:
            import traceback

            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}"}
        pipe.write(json.dumps(answer) + "\n")
        pipe.flush()


class Summary(NamedTuple):
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    def text(self, form: str = ".2f") -> str:
        return f"{self.median:{form}} [dim]({self.low:{form}} to {self.high:{form}})[/dim]"


def summary(values: Sequence[float]) -> Summary:
    """Median and quartiles; of fewer than four values, the smallest and the largest."""
    if len(values) < 4:
        return Summary(statistics.median(values), min(values), max(values))
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high)


def memory() -> tuple[float, float]:
    """(MiB resident now, the most there ever were or since `forget_peak`); zeros where /proc has no word of it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0, 0.0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


def forget_peak() -> None:
    """From here on `memory` tells the peak of what follows (Linux; elsewhere that of the whole process).

    What a compiler has used and freed goes back to the system first, or it would count as the program's.
    """
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def machine() -> Json:
    """Where a measurement was made."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else ""
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": int(environment()["OMP_NUM_THREADS"]),
        "python": platform.python_version(),
        "GLIBC_TUNABLES": environment().get("GLIBC_TUNABLES", ""),
    }


def console() -> Console:
    """Where tables go, wide enough for them where no terminal says how wide it is; it begins with the machine."""
    out = Console()
    out = out if out.is_terminal else Console(width=130)
    about = machine()
    tunables = about["GLIBC_TUNABLES"] or "(unset)"
    out.print(f"{about['processor']}, {about['cores']} cores; GLIBC_TUNABLES={tunables}", highlight=False)
    return out


def table(title: str, columns: Sequence[str]) -> Table:
    """An empty table: the first column is words, the others are figures."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    made.add_column(columns[0])
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Keeps a result beside what the machine is, if a path was given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")
