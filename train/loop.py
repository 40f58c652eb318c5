"""The loop around the step: progress, metrics, checkpoints; killed at any instant, it goes on where it was."""

import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.model.progress import progress
from limbeck.train.checkpoint import restore_state, save_state
from limbeck.train.config import FitConfig
from limbeck.train.loss import Batch, LossFn
from limbeck.train.optim import make_optimizer
from limbeck.train.select import Selection, apply_selection, masked
from limbeck.train.step import init_state, make_step


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
    are functions of the step, so the result is that of an uninterrupted run. Raises UserError when the loss is
    no longer a number: the last checkpoint before stays the latest.
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
    with progress(name, config.steps, done=done) as advance:
        for step in range(done, config.steps):
            state, metrics = step_fn(state, frozen, batch_at(step), key)
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                loss = float(metrics["loss"])
                if not math.isfinite(loss):
                    raise UserError(
                        f"{name}: the loss is {loss} at step {step + 1}: lower the learning rate "
                        f"(now {config.optim.learning_rate}) or clip harder (now {config.optim.clip})"
                    )
                curve.append((step + 1, loss))
                log({"stage": name, "step": step + 1, **{k: float(v) for k, v in metrics.items()}})
                note = f"loss {loss:.3f}"
            if checkpoints is not None and (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
                save_state(checkpoints, state, {"curve": curve, "seconds": seconds + time.perf_counter() - start})
            advance(note=note)
    jax.block_until_ready(state.trainable)
    return Fitted(state.trainable, frozen, curve, seconds + time.perf_counter() - start)
