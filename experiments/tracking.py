"""Where the numbers of a run go: metrics.jsonl always, TensorBoard's files always, Weights & Biases if asked for."""

import contextlib
import hashlib
import numbers
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from limbeck.experiments.config import flatten
from limbeck.experiments.rundir import MetricsLog
from limbeck.model.errors import UserError
from limbeck.model.hosts import leads

Log = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def tracking(rundir: Path, config: Any, wandb_project: str = "") -> Iterator[Log]:
    """Yields `log(row)`: a row has "stage" and "step", numbers, and perhaps "texts" as [{"prompt", "text"}].

    TensorBoard's files are in `rundir/tensorboard/<stage>`; a run that goes on from a checkpoint hides what it wrote
    after it. Of processes that run it together the one that leads does all this. With a project the rows go to Weights
    & Biases as well, under one id for all starts of the run; nothing leaves the machine otherwise. Raises UserError
    where wandb is asked for and is not installed.
    """
    if not leads():
        yield lambda row: None
        return
    with contextlib.ExitStack() as stack:
        sinks: list[Log] = [MetricsLog(rundir).append, stack.enter_context(_tensorboard(rundir / "tensorboard"))]
        if wandb_project:
            sinks.append(stack.enter_context(_wandb(rundir, config, wandb_project)))

        def log(row: dict[str, Any]) -> None:
            for sink in sinks:
                sink(row)

        yield log


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Log]:
    from tensorboardX import SummaryWriter

    writers: dict[str, SummaryWriter] = {}

    def log(row: dict[str, Any]) -> None:
        stage, step = row["stage"], row["step"]
        if stage not in writers:
            suffix = f".{time.time_ns()}"  # two starts in one second would write to one file
            writers[stage] = SummaryWriter(str(folder / stage), purge_step=step, filename_suffix=suffix)
        for name, value in _numbers(row).items():
            writers[stage].add_scalar(name, value, step)
        for number, text in enumerate(row.get("texts", ())):
            writers[stage].add_text(f"text {number}", text["prompt"] + text["text"], step)
        writers[stage].flush()

    try:
        yield log
    finally:
        for writer in writers.values():
            writer.close()


@contextlib.contextmanager
def _wandb(rundir: Path, config: Any, project: str) -> Iterator[Log]:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(f"wandb={project!r}: Weights & Biases is not installed; `pip install wandb`") from None
    identity = hashlib.sha256(str(rundir.resolve()).encode()).hexdigest()[:16]
    run = wandb.init(
        project=project, dir=str(rundir), id=identity, name=rundir.name, resume="allow", config=flatten(config)
    )
    try:
        yield lambda row: run.log({f"{row['stage']}/{name}": value for name, value in _numbers(row).items()})
    finally:
        run.finish()


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, numbers.Real) and not isinstance(value, bool)
    }
