"""One progress bar for everything that is long: count, rate, time left, and a note such as the loss."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_QUIET_SECONDS = 10.0  # a log file wants a line now and then, not a redrawn bar


_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


@contextlib.contextmanager
def no_progress() -> Iterator[None]:
    """No bars for what is inside, such as calls that are timed."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


@contextlib.contextmanager
def progress(description: str, total: int, unit: str = "step", done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar on stderr with the time left; yields `advance(n=1, note="")`.

    `done` units are already there (a resumed run) and do not count towards the rate. Where stderr is not a
    terminal, plain lines at most every ten seconds.
    """
    if _hidden.get():
        yield lambda n=1, note="": None
    elif sys.stderr.isatty():
        with _bar(description, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(description, total, unit, done)


@contextlib.contextmanager
def _bar(description: str, total: int, unit: str, done: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total, completed=done, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bars.update(task, advance=n, note=note)

        yield advance


def _lines(description: str, total: int, unit: str, done: int) -> Callable[..., None]:
    start = last = time.monotonic()
    count = done

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal last, count
        count += n
        now = time.monotonic()
        if now - last < _QUIET_SECONDS and count < total:
            return
        last = now
        left = (now - start) / max(count - done, 1) * (total - count)
        line = f"{description}: {count}/{total} {unit}s, {left:.0f} s left  {note}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    return advance
