"""The one training of an experiment: fitted, tracked, saved as `model/`, what it cost."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from limbeck.distill.schedules import Named
from limbeck.distill.teacher import without_teacher
from limbeck.evaluation.energy import Meter
from limbeck.experiments.origins import made_here, training_cost
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.rundir import stage
from limbeck.experiments.start import Start, ground
from limbeck.experiments.tracking import tracking
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.errors import UserError
from limbeck.model.files import write_atomic
from limbeck.model.hosts import leads
from limbeck.model.params import Params, count, join, merge
from limbeck.model.pretrained import save_pretrained
from limbeck.model.pretrained.lineage import LINEAGE
from limbeck.model.sharding import over_rows
from limbeck.train.config import FitConfig
from limbeck.train.loop import Evaluation, fit
from limbeck.train.loss import Batch, LossFn
from limbeck.train.methods import plain, with_added, with_trained
from limbeck.train.optim import make_optimizer
from limbeck.train.peft_format import kind_of_leaf, save_adapter
from limbeck.train.step import init_state, make_step

_TIMED = 3  # steps whose median is a step's time


def trained(
    config: PretrainingConfig | TuningConfig,
    settings: FitConfig,
    rundir: Path,
    start: Start,
    again: Callable[[], Start],
    loss_fn: LossFn,
    stream: Named,
    evaluate: Callable[[Params], Evaluation],
    flops_per_step: float,
    name: str,
) -> dict[str, Any]:
    """Trains what `start` selects, once, as the settings say; saves the model, adapters folded in.

    Gives curve, evaluations, train_seconds and skipped steps, as the report has them, and what a tuning's step costs.
    `name` is the stage's, in the run's folder, in its log and in the report; `again` gives the model as it was before
    tuning.
    """

    def compute() -> dict[str, Any]:
        with tracking(rundir, config, config.wandb) as log, Meter() as meter:
            fitted = fit(
                loss_fn,
                start.params,
                stream,
                settings,
                selection=start.selection,
                seed=config.seed,
                name=name,
                checkpoints=rundir / "checkpoints",
                log=log,
                evaluate=lambda params: evaluate(without_teacher(params)),
                example_name=stream.name,
                flops_per_step=flops_per_step,
                profile=rundir / "profile" if config.profile else None,
                donate=True,
            )
        trainable, frozen = without_teacher(fitted.trainable), without_teacher(fitted.frozen)
        final = join(merge(trainable, frozen))
        cost = training_cost(meter, fitted.seconds, flops_per_step * fitted.steps)
        lineage = made_here(
            rundir.name,
            start.past,
            config,
            parameters=count(plain(final)),
            trained=count(trainable),
            method=config.tuning,
            cost=cost,
        )
        save_pretrained(rundir / "model", start.config, plain(final), start.tokenizer, lineage=lineage)
        if frozen:
            _save_adapter(config, again, final, list(trainable), rundir)
        step = {}
        if isinstance(config, TuningConfig):  # last, with what was trained: there may be no room for a second state
            step = cost_of_step(loss_fn, settings, fitted.trainable, fitted.frozen, stream(0))
        return {
            "curve": fitted.curve,
            "evaluations": fitted.evaluations,
            "train_seconds": fitted.seconds,
            "cost": cost,
            "skipped": fitted.skipped,
            **step,
        }

    return stage(rundir, name, compute)


def _save_adapter(
    config: PretrainingConfig | TuningConfig,
    again: Callable[[], Start],
    tuned: Params,
    trained: Sequence[str],
    rundir: Path,
) -> None:
    """Writes what was tuned in PEFT's format, where that can say it.

    The base is read anew: a run that kept it in few bits does not hold the whole of it besides.
    """
    if not any(map(kind_of_leaf, tuned)):
        print(f"no adapter folder beside the model: PEFT has no form for {config.tuning}", file=sys.stderr)
        return
    start = again()
    whole = with_trained(with_added(config.tuning, ground(start, config)), tuned, trained)
    folder = rundir / "adapter"
    try:
        save_adapter(folder, start.config, start.params, whole, base_name=config.model)
    except UserError as reason:
        print(f"no adapter folder beside the model: {reason}", file=sys.stderr)
        return
    if leads():
        write_atomic(folder / LINEAGE, (rundir / "model" / LINEAGE).read_text(encoding="utf-8"))


def cost_of_step(
    loss_fn: LossFn, settings: FitConfig, trainable: Params, frozen: Params, batch: Batch
) -> dict[str, float]:
    """`step_bytes`, what a device holds at a compiled step's peak (XLA's own account), and `step_seconds`, a median.

    The arrays of `trainable` are deleted.
    """
    optimizer = make_optimizer(settings.optim, settings.steps)
    state, key = init_state(optimizer, trainable), jax.random.key(0)
    for leaf in trainable.values():
        leaf.delete()
    batch = over_rows(batch)
    step = make_step(loss_fn, optimizer, accumulate=settings.accumulate, like=state)
    step = step.lower(state, frozen, batch, key).compile()
    held = step.memory_analysis()
    seconds = []
    for _ in range(_TIMED + 1):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, frozen, batch, key))
        seconds.append(time.perf_counter() - began)
    size = held.argument_size_in_bytes + held.output_size_in_bytes + held.temp_size_in_bytes - held.alias_size_in_bytes
    return {"step_bytes": size, "step_seconds": statistics.median(seconds[1:])}
