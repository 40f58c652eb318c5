"""What is watched while a run goes on: numbers that are none, and how fast it is."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from limbeck.model.errors import UserError
from limbeck.model.peak import Peak
from limbeck.train.config import OptimConfig
from limbeck.train.loss import Batch, Metrics


class Seen(NamedTuple):
    """A step's metrics, still on the device, and its batch, by which a bad one is traced to its examples."""

    step: int
    metrics: Metrics
    batch: Batch


class Watch:
    """Looks at every step's loss and gradient, but only when asked: reading a number waits for the device.

    `skipped` holds a line for each step that was left out.
    """

    def __init__(self, name: str, config: OptimConfig, paths: Sequence[str], example_name: Callable[[int], str]):
        self.skipped: list[str] = []
        self._name, self._config, self._paths, self._example_name = name, config, sorted(paths), example_name
        self._unread: list[Seen] = []

    def add(self, step: int, metrics: Metrics, batch: Batch) -> None:
        """Remembers a step that has been begun."""
        self._unread.append(Seen(step, metrics, batch))

    def read(self) -> dict[str, float]:
        """The last step's metrics, once all steps since the last reading were seen to be sound.

        Raises UserError, naming step, leaf and examples, for a loss or gradient that is no number, once more steps
        were left out than `skip` allows.
        """
        values: dict[str, float] = {}
        for seen in self._unread:
            metrics = jax.device_get(seen.metrics)
            values = {key: float(value) for key, value in metrics.items() if np.ndim(value) == 0}
            if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                continue
            line = self._told(seen, values, metrics["grad_norms_P"])
            if len(self.skipped) >= self._config.skip:
                allowed = f" ({self._config.skip} such steps were left out before)" if self._config.skip else ""
                raise UserError(
                    f"{line}{allowed}: look at these examples, lower the learning rate (now "
                    f"{self._config.learning_rate}) or clip harder (now {self._config.clip})"
                )
            self.skipped.append(line)
            print(f"{line}: the step was left out", file=sys.stderr)
        self._unread.clear()
        return values

    def _told(self, seen: Seen, values: dict[str, float], norms_P: np.ndarray) -> str:
        spoilt = [path for path, norm in zip(self._paths, norms_P, strict=True) if not math.isfinite(norm)]
        where = f" in {len(spoilt)} leaves, {spoilt[0]} among them" if spoilt else ""
        examples = np.unique(np.asarray(seen.batch.get("segments_BT", 0)))
        examples = examples[examples > 0]
        shown = ", ".join(self._example_name(int(number) - 1) for number in examples[:8])
        more = f" and {len(examples) - 8} more" if len(examples) > 8 else ""
        return (
            f"{self._name}, step {seen.step}: the loss is {values['loss']}, the gradient's norm "
            f"{values['grad_norm']}{where}; examples {shown}{more}"
        )


class Meter:
    """Tokens a second, and the share of the device's rate that the counted FLOPs come to, since the last reading."""

    def __init__(self, flops_per_step: float | None, peak: Peak | None):
        self._flops, self._peak = flops_per_step, peak
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted, and the time until now: an evaluation is no step."""
        self._start, self._tokens, self._steps = time.perf_counter(), 0, 0

    def add(self, batch: Batch) -> None:
        """Counts a batch: its tokens without the padding."""
        real = batch.get("segments_BT", batch["tokens_BT"])
        self._tokens += int(np.count_nonzero(np.asarray(real)))
        self._steps += 1

    def read(self) -> dict[str, float]:
        """`tokens_per_second`, and `mfu` where FLOPs and peak are known (PaLM, arXiv 2204.02311, appendix B)."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        rates = {"tokens_per_second": self._tokens / seconds}
        if self._flops and self._peak:
            rates["mfu"] = self._flops * self._steps / seconds / self._peak.flops_per_second
        self.restart()
        return rates


@contextlib.contextmanager
def compilation() -> Iterator[Callable[[], str]]:
    """Yields a function that says, in words, how long was compiled since then and what the cache spared."""
    seconds = [0.0]
    events = {"cache_hits": 0, "cache_misses": 0}

    def on_duration(event: str, duration_secs: float, **_: object) -> None:
        if event.startswith("/jax/core/compile/"):
            seconds[0] += duration_secs

    def on_event(event: str, **_: object) -> None:
        name = event.removeprefix("/jax/compilation_cache/")
        if name in events:
            events[name] += 1

    def told() -> str:
        programs = sum(events.values())
        spared = f", {events['cache_hits']} of {programs} programs from the cache" if programs else ""
        return f"{seconds[0]:.1f} s of it compiling{spared}"

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        yield told
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)
