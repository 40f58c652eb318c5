"""The one training of an experiment: fitted, tracked, saved as `model/`, what it cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.experiments.rundir import stage
from limbeck.experiments.start import Start
from limbeck.experiments.tracking import tracking
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.params import Params, join, merge
from limbeck.model.pretrained import save_pretrained
from limbeck.train.config import FitConfig
from limbeck.train.data import Stream
from limbeck.train.loop import Evaluation, fit
from limbeck.train.loss import LossFn
from limbeck.train.methods import plain


def trained(
    config: PretrainingConfig | TuningConfig,
    settings: FitConfig,
    rundir: Path,
    start: Start,
    loss_fn: LossFn,
    stream: Stream,
    evaluate: Callable[[Params], Evaluation],
    flops_per_step: float,
    name: str,
) -> dict[str, Any]:
    """Trains what `start` selects, once, as the settings say; saves the model, adapters folded in; curve, evaluations, train_seconds and skipped steps, as the report has them.

    `name` is the stage's, in the run's folder, in its log and in the report.
    """

    def compute() -> dict[str, Any]:
        with tracking(rundir, config, config.wandb) as log:
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
                evaluate=evaluate,
                example_name=stream.name,
                flops_per_step=flops_per_step,
                profile=rundir / "profile" if config.profile else None,
            )
        save_pretrained(rundir / "model", start.config, plain(join(merge(fitted.trainable, fitted.frozen))), start.tokenizer)
        return {
            "curve": fitted.curve,
            "evaluations": fitted.evaluations,
            "train_seconds": fitted.seconds,
            "skipped": fitted.skipped,
        }

    return stage(rundir, name, compute)
