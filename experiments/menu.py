"""Ways of tuning side by side: each from the same start, on the same records, in one report."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.machine import provenance
from limbeck.experiments.menu_config import MenuConfig
from limbeck.experiments.rundir import stage
from limbeck.experiments.tuning import Tuned, tuned
from limbeck.model.errors import UserError
from limbeck.train.config import Keep

_TIMES = ("latency_ms_p50", "per_second", "joules_per_prediction", "joules_source")


def run(config: MenuConfig, rundir: Path) -> int:
    """Tunes in every way at every rate, each in a folder of its own, and reports each way's best; exit status 0.

    The rate is chosen on the validation split; the report's rows are of the test split. A way that this model or this
    data cannot have, or a rate at which training fails, is left out and listed; if the first fails, it is an error.
    """
    best: dict[str, Tuned] = {}
    tried: list[dict[str, Any]] = []
    left_out: list[str] = []
    spent = 0.0
    for number, method in enumerate(config.methods):
        name = f"{number:02}-{method}" if method.isidentifier() else f"{number:02}"
        done: dict[float, Tuned] = {}
        for rate in config.rates:
            folder = rundir / name / f"rate-{rate:g}"
            folder.mkdir(parents=True, exist_ok=True)
            try:
                done[rate] = tuned(config.of(method, rate), folder)
            except UserError as error:
                if not (best or done):  # it is not the way's fault
                    raise
                left_out.append(f"{method} at {rate:g} times its rate: {error}")
                print(f"left out: {left_out[-1]}", file=sys.stderr)
        if not done:
            continue
        spent += sum(each.training["train_seconds"] for each in done.values())
        kept = {rate: _kept(each, config.tuning.fit.keep) for rate, each in done.items()}
        chosen = max(kept, key=lambda rate: (kept[rate]["score"], -kept[rate]["validation_loss"]))
        best[method], metric = done[chosen], f"validation_{done[chosen].task.metric}"
        scores = [[rate, kept[rate][metric] if rate in kept else None] for rate in config.rates]
        tried.append({"method": method, "best": chosen, "tried": scores})
    first = next(iter(best.values()))
    task = first.task
    data = {
        "title": f"Limbeck: {task.name}, tuned in {len(best)} ways",
        **provenance(rundir, config.tuning.seed),
        "seconds": spent,
        "task": {"name": task.name, "train": len(task.splits["train"]), "test": len(task.splits["test"])},
        "metric": task.metric,
        "rows": [
            *({"method": name, **_row(each)} for name, each in best.items()),
            *stage(rundir, "baselines", lambda: baselines(task)),
        ],
        **({"rates": tried} if len(config.rates) > 1 else {}),
        "curves": {name: each.training["curve"] for name, each in best.items()},
        "evaluations": {name: each.training["evaluations"] for name, each in best.items()},
        "skipped": [*first.skipped, *left_out],
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"the report is {rundir / 'report.html'}")
    return 0


def _row(done: Tuned) -> dict[str, Any]:
    """What a way of tuning differs in: all but a few are folded and answer as fast as their base, so times are left."""
    return {key: value for key, value in done.row.items() if key not in _TIMES}


def _kept(done: Tuned, keep: Keep) -> dict[str, Any]:
    """The evaluation of the parameters that a tuning gave."""
    evaluations = done.training["evaluations"]
    return evaluations[-1] if keep == "last" else max(evaluations, key=lambda found: found["score"])
