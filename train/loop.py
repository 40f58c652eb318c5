"""The loop around the step: progress, metrics, checkpoints; killed at any instant, it goes on where it was."""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.model.progress import progress
from limbeck.train.checkpoint import restore_state, save_state
from limbeck.train.config import FitConfig
from limbeck.train.loss import Batch, LossFn
from limbeck.train.optim import make_optimizer
from limbeck.train.select import Selection, apply_selection, masked
from limbeck.train.step import init_state, make_step

STOPPED = 128 + signal.SIGTERM  # the exit status of a run that was told to stop, and has saved


class Fitted(NamedTuple):
    """What training gave: the parameters that moved, those that did not, the loss curve, the seconds in the loop."""

    trainable: Params
    frozen: Params
    curve: list[tuple[int, float]]
    seconds: float


def fit(
    loss_fn: LossFn,
    params: Params,
    batch_at: Callable[[int], Batch],
    config: FitConfig,
    *,
    selection: Selection = Selection(),
    seed: int = 0,
    name: str = "train",
    checkpoints: str | os.PathLike[str] | None = None,
    log: Callable[[dict], None] = lambda record: None,
) -> Fitted:
    """Trains the selected parameters for `config.steps` steps.

    With a `checkpoints` folder it resumes from the newest undamaged checkpoint there; the batches and random keys
    are functions of the step, so the result is that of an uninterrupted run. SIGTERM lets the step end, writes a
    checkpoint and exits with status 143 (`STOPPED`). Raises UserError when loss or gradient are no longer numbers: what
    they left behind is never a checkpoint.
    """
    trainable, frozen = apply_selection(selection, params)
    optimizer = masked(make_optimizer(config.optim, config.steps), selection.masks)
    step_fn = make_step(loss_fn, optimizer)
    state = init_state(optimizer, trainable)
    curve: list[tuple[int, float]] = []
    seconds = 0.0
    if checkpoints is not None and (found := restore_state(checkpoints, state)) is not None:
        state, notes = found
        curve, seconds = [tuple(point) for point in notes["curve"]], notes["seconds"]
    done = int(state.step)
    key = jax.random.key(seed)
    start = time.perf_counter()
    note = ""
    with progress(name, config.steps, done=done) as advance, _sigterm_waits() as told_to_stop:
        for step in range(done, config.steps):
            state, metrics = step_fn(state, frozen, batch_at(step), key)
            last, stop = step + 1 == config.steps, told_to_stop()
            logs = last or (step + 1) % config.log_every == 0
            saves = checkpoints is not None and (stop or (not last and (step + 1) % config.checkpoint_every == 0))
            if logs or saves:
                values = {key: float(value) for key, value in metrics.items()}
                _check(values, state.trainable, saves, f"{name}, step {step + 1}", config)
            if logs:
                curve.append((step + 1, values["loss"]))
                log({"stage": name, "step": step + 1, **values})
                note = f"loss {values['loss']:.3f}"
            if saves and checkpoints is not None:
                save_state(checkpoints, state, {"curve": curve, "seconds": seconds + time.perf_counter() - start})
            advance(note=note)
            if stop:
                kept = "; the same command goes on from here" if saves else ""
                print(f"{name}: told to stop (SIGTERM) at step {step + 1}{kept}", file=sys.stderr)
                raise SystemExit(STOPPED)
    jax.block_until_ready(state.trainable)
    return Fitted(state.trainable, frozen, curve, seconds + time.perf_counter() - start)


def _check(values: dict[str, float], trainable: Params, saves: bool, place: str, config: FitConfig) -> None:
    """Raises UserError for a loss or a gradient that is no number; before a checkpoint, for a parameter as well."""
    sound = all(math.isfinite(values[name]) for name in ("loss", "grad_norm"))
    if sound and not saves:
        return
    spoilt = sorted(path for path, leaf in trainable.items() if not bool(jnp.isfinite(leaf).all()))
    if sound and not spoilt:
        return
    where = f" (it has spread to {len(spoilt)} leaves, {spoilt[0]} among them)" if spoilt else ""
    raise UserError(
        f"{place}: the loss is {values['loss']}, the gradient's norm {values['grad_norm']}{where}: lower the learning "
        f"rate (now {config.optim.learning_rate}) or clip harder (now {config.optim.clip})"
    )


@contextlib.contextmanager
def _sigterm_waits() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM has come; meanwhile the signal ends nothing by itself."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda: False
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
