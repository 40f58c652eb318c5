"""The loop around the step: progress, metrics, evaluations, checkpoints.

Killed at any instant, it goes on where it was, and ends in the same bits.
"""

import contextlib
import hashlib
import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.errors import UserError
from limbeck.model.hosts import hung_after, watched
from limbeck.model.params import Params, digest, merge
from limbeck.model.peak import peak
from limbeck.model.progress import progress
from limbeck.model.sharding import AXES, ROWS, over_rows, platform, spread
from limbeck.train.checkpoint import Save, checkpoint_writer, newest_checkpoint, read_checkpoint
from limbeck.train.config import FitConfig
from limbeck.train.loss import Batch, LossFn
from limbeck.train.optim import average_of, make_optimizer, schedule
from limbeck.train.select import Selection, apply_selection
from limbeck.train.step import State, init_state, make_step, state_shapes
from limbeck.train.watch import Meter, Watch, compilation

STOPPED = 128 + signal.SIGTERM  # the exit status of a run that was told to stop, and has saved
_ASKED = itertools.count()  # how often this process has asked whether to stop: in all of several as often
_PROFILED = 3  # steps in a profile, after as many that compile and warm up


class Evaluation(NamedTuple):
    """What an evaluation found: one number by which the best is chosen, more is better; and all that is logged."""

    score: float
    metrics: dict[str, Any]


class Fitted(NamedTuple):
    """What training gave.

    The parameters that moved (in float32) and those that did not, the loss curve, the seconds in the loop, the steps
    taken, every evaluation as {"step", "score", ...metrics}, and a line for each step that was left out.
    """

    trainable: Params
    frozen: Params
    curve: list[tuple[int, float]]
    seconds: float
    steps: int
    evaluations: list[dict[str, Any]]
    skipped: list[str]


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
    evaluate: Callable[[Params], Evaluation] | None = None,
    example_name: Callable[[int], str] = str,
    flops_per_step: float | None = None,
    profile: str | os.PathLike[str] | None = None,
    donate: bool = False,
) -> Fitted:
    """Trains the selected parameters for `config.steps` steps, or until `evaluate` sees no more progress.

    With a `checkpoints` folder it resumes from the newest undamaged checkpoint there; the batches and random keys are
    functions of the step, so the result is that of an uninterrupted run. SIGTERM lets the step end, writes a
    checkpoint and exits with status 143 (`STOPPED`). `evaluate` is given all parameters; `example_name` turns the
    number of an example of the data into words; with `flops_per_step` the share of the machine's rate is logged; a
    few steps are profiled into the folder `profile`. With `donate` the arrays that train are freed once there are
    masters of them, and nobody may use them again: a quarter less to hold, of what AdamW keeps.

    Raises UserError when loss or gradient are no longer numbers (what they left behind is never a checkpoint), when
    the checkpoints are another run's, and when the folder is in use.
    """
    if config.keep == "best" and evaluate is None:
        raise UserError("keep='best' needs evaluations to choose by: give `evaluate`, or keep='last'")
    start = time.perf_counter()
    trainable, frozen = apply_selection(selection, params)
    _check_rows(config)
    optimizer = make_optimizer(config.optim, config.steps)
    shapes, rate = state_shapes(optimizer, trainable), schedule(config.optim, config.steps)
    step_fn = make_step(loss_fn, optimizer, accumulate=config.accumulate, like=shapes)
    watch = Watch(name, config.optim, list(trainable), example_name)
    meter = Meter(flops_per_step and flops_per_step / _chips(), peak() if flops_per_step else None)
    notes: dict[str, Any] = {"curve": [], "seconds": 0.0, "evaluations": [], "skipped": watch.skipped}
    with contextlib.ExitStack() as stack:
        save: Save | None = None
        resumed: tuple[State, Params, dict[str, Any]] | None = None
        if checkpoints is not None:
            save = stack.enter_context(checkpoint_writer(checkpoints))
            like = _tree(shapes, shapes.trainable if config.keep == "best" else {})
            notes["run"] = _identity(params, like, batch_at(0))
            resumed = _resumed(checkpoints, shapes, like, notes["run"])
        if resumed is not None:  # instead of a new state: there may be no room for two
            state, best, kept = resumed
            watch.skipped += kept["skipped"]
            notes = {**kept, "skipped": watch.skipped}
        else:
            state = init_state(optimizer, trainable)
            best = _host(state.trainable) if config.keep == "best" else {}
        if donate:
            _free(trainable, frozen)
        before = notes["seconds"]
        done, key = int(state.step), jax.random.key(seed)
        told = stack.enter_context(compilation())
        tracing = stack.enter_context(_profiling(profile))
        advance = stack.enter_context(progress(name, config.steps, done=done))
        told_to_stop = stack.enter_context(_sigterm_waits())
        give = stack.enter_context(watched())
        line = ""
        for step in range(done, config.steps):
            if config.patience and _stale(notes["evaluations"]) >= config.patience:
                break
            tracing(step - done)
            give(hung_after())
            batch = batch_at(step)
            state, metrics = step_fn(state, frozen, over_rows(batch), key)
            watch.add(step + 1, metrics, batch)
            meter.add(batch)
            if step == done:
                jax.block_until_ready(metrics)
                print(f"{name}: first step after {time.perf_counter() - start:.1f} s, {told()}", file=sys.stderr)
                meter.restart()
            last, stop = step + 1 == config.steps, told_to_stop(step)
            evaluates = evaluate is not None and (last or _every(config.evaluate_every, step))
            logs = last or evaluates or _every(config.log_every, step)
            saves = save is not None and (stop or last or _every(config.checkpoint_every, step))
            if logs or saves:
                values = watch.read()
                if saves:
                    _no_spoilt(state.trainable, f"{name}, step {step + 1}")
            if logs:
                values |= {"learning_rate": np.asarray(rate(step)).item(), **meter.read()}
                line = f"loss {values['loss']:.3f}  {values['tokens_per_second']:,.0f} tok/s"
                line += f"  {values['mfu']:.0%} of peak" if "mfu" in values else ""
                give(math.inf)  # an evaluation takes its time
                if evaluates and evaluate is not None:
                    found = evaluate(merge(average_of(state.opt) or state.trainable, frozen))
                    if config.keep == "best" and found.score > _best(notes["evaluations"]):
                        best = _host(average_of(state.opt) or state.trainable)
                    notes["evaluations"].append({"step": step + 1, "score": found.score, **found.metrics})
                    values |= found.metrics
                    meter.restart()
                notes["curve"].append((step + 1, values["loss"]))
                log({"stage": name, "step": step + 1, **values})
            if saves and save is not None:
                give(math.inf)
                save(step + 1, _tree(state, best), {**notes, "seconds": before + time.perf_counter() - start})
            advance(note=line)
            if stop:
                kept = "; the same command goes on from here" if saves else ""
                print(f"{name}: told to stop (SIGTERM) at step {step + 1}{kept}", file=sys.stderr)
                raise SystemExit(STOPPED)
        jax.block_until_ready(state.trainable)
    # Where the last ones lie: else every device of a mesh would hold the whole.
    last_or_best = {path: jax.device_put(leaf, state.trainable[path].sharding) for path, leaf in best.items()}
    return Fitted(
        last_or_best or average_of(state.opt) or state.trainable,
        frozen,
        [(step, loss) for step, loss in notes["curve"]],
        before + time.perf_counter() - start,
        int(state.step),
        notes["evaluations"],
        watch.skipped,
    )


def _chips() -> int:
    """Over how many chips a step's FLOPs are spread; simulated devices of a CPU are all one machine's."""
    return jax.process_count() if platform() == "cpu" else spread(AXES)


def _check_rows(config: FitConfig) -> None:
    """Raises UserError for a batch that a mesh cannot spread evenly."""
    devices = spread(ROWS)
    if config.batch_size % (devices * config.accumulate):
        portions = f" in {config.accumulate} portions" if config.accumulate > 1 else ""
        raise UserError(
            f"batch_size={config.batch_size}{portions} cannot be spread over the {devices} devices of "
            f"{' x '.join(ROWS)}: make it a multiple of {devices * config.accumulate}"
        )


def _every(period: int | None, step: int) -> bool:
    return period is not None and (step + 1) % period == 0


def _best(evaluations: list[dict[str, Any]]) -> float:
    return max(_scores(evaluations), default=-math.inf)


def _stale(evaluations: list[dict[str, Any]]) -> int:
    """How many evaluations there were since the first that had the best score."""
    scores = _scores(evaluations)
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def _scores(evaluations: list[dict[str, Any]]) -> list[float]:
    """Of every evaluation; one that is no number is worse than any."""
    return [-math.inf if math.isnan(found["score"]) else found["score"] for found in evaluations]


def _free(trainable: Params, frozen: Params) -> None:
    """Deletes arrays, but for those that lie where something lies that stays, such as a teacher's."""
    stays = {place for leaf in frozen.values() for place in _places(leaf)}
    for leaf in trainable.values():
        if (places := _places(leaf)) and stays.isdisjoint(places):
            leaf.delete()


def _places(leaf: Any) -> set[tuple[int, int]]:
    """Where an array lies: (device, address) of each of its parts in this process; nowhere if it is not on a device."""
    if not isinstance(leaf, jax.Array) or leaf.is_deleted():
        return set()
    return {(shard.device.id, shard.data.unsafe_buffer_pointer()) for shard in leaf.addressable_shards}


def _host(params: Params) -> Params:
    """Copies: in the host's memory, or, of parameters that several processes hold together, where they are."""
    return {
        path: np.array(leaf, copy=True) if jax.process_count() == 1 else jnp.copy(leaf)  # pyright: ignore[reportReturnType]
        for path, leaf in params.items()
    }


def _tree(state: State, best: Params) -> dict[str, Any]:
    """A run's arrays, or shapes, as they are stored: the optimiser's leaves in a list, their classes are optax's."""
    tree = {"step": state.step, "trainable": state.trainable, "opt": jax.tree.leaves(state.opt)}
    return tree | ({"best": best} if best else {})


def _identity(params: Params, tree: Any, batch: Batch) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that goes on from it."""
    sha = hashlib.sha256()
    for name, array in sorted(batch.items()):
        sha.update(f"{name} {array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    shapes = [
        [jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return {"base": digest(params), "arrays": shapes, "first_batch": sha.hexdigest()}


def _resumed(
    folder: str | os.PathLike[str], shapes: State, like: dict[str, Any], run: dict[str, Any]
) -> tuple[State, Params, dict[str, Any]] | None:
    """State, best parameters and notes of the newest checkpoint; raises UserError if it is of another run."""
    if (found := newest_checkpoint(folder)) is None:
        return None
    checkpoint, notes = found
    for key, what in (
        ("base", "began with another model"),
        ("arrays", "trains other parameters, or with another optimiser"),
        ("first_batch", "read other data, or in another order"),
    ):
        if notes["run"][key] != run[key]:
            raise UserError(f"{checkpoint} is of a run that {what}: choose another folder, or delete that one")
    tree = read_checkpoint(checkpoint, like)
    opt = jax.tree.unflatten(jax.tree.structure(shapes.opt), tree["opt"])
    return State(tree["step"], tree["trainable"], opt), _host(tree.get("best", {})), notes


def _no_spoilt(trainable: Params, place: str) -> None:
    """Raises UserError for a parameter that is no number: it must not become a checkpoint."""
    spoilt = sorted(path for path, leaf in trainable.items() if not bool(jnp.isfinite(leaf).all()))
    if spoilt:
        raise UserError(
            f"{place}: {len(spoilt)} leaves hold values that are no numbers, {spoilt[0]} among them: lower the "
            "learning rate, or go on from the checkpoint before"
        )


@contextlib.contextmanager
def _profiling(folder: str | os.PathLike[str] | None) -> Iterator[Callable[[int], None]]:
    """Yields a function to be told the number of each step: it traces a few of them into `folder`."""
    tracing: list[str] = []

    def at(step: int) -> None:
        if folder is not None and step == _PROFILED:
            jax.profiler.start_trace(os.fspath(folder))
            tracing.append(os.fspath(folder))
        elif tracing and step == 2 * _PROFILED:
            stop()

    def stop() -> None:
        jax.profiler.stop_trace()
        print(f"profile of {_PROFILED} steps: tensorboard --logdir {tracing.pop()}", file=sys.stderr)

    try:
        yield at
    finally:
        if tracing:
            stop()


@contextlib.contextmanager
def _sigterm_waits() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that says whether SIGTERM has come; meanwhile the signal ends nothing by itself.

    Of several processes all agree on the step, whichever of them was told. There JAX takes the signal.
    """
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        # Not the training's own step, which begins anew in the next one of a run: the agreed step must be yet to come.
        yield lambda step: reached_preemption_sync_point(next(_ASKED))
        return
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield lambda step: False
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda step: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
