"""Ways of tuning side by side: each from the same start, on the same records, in one report."""

from pathlib import Path

from rich.console import Console

from limbeck.evaluation.baseline import baselines
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.machine import provenance
from limbeck.experiments.menu_config import MenuConfig
from limbeck.experiments.rundir import stage
from limbeck.experiments.tuning import Tuned, tuned


def run(config: MenuConfig, rundir: Path) -> int:
    """Tunes in every way, one after the other, each in a folder of its own, and reports; exit status 0."""
    done: dict[str, Tuned] = {}
    for number, method in enumerate(config.methods):
        folder = rundir / f"{number:02}-{method}" if method.isidentifier() else rundir / f"{number:02}"
        folder.mkdir(exist_ok=True)
        done[method] = tuned(config.of(method), folder)
    task = next(iter(done.values())).task
    data = {
        "title": f"Limbeck: {task.name}, tuned in {len(done)} ways",
        **provenance(rundir, config.tuning.seed),
        "seconds": sum(each.training["train_seconds"] for each in done.values()),
        "task": {"name": task.name, "train": len(task.splits["train"]), "test": len(task.splits["test"])},
        "metric": task.metric,
        "rows": [
            *({"method": name, **each.row} for name, each in done.items()),
            *stage(rundir, "baselines", lambda: baselines(task)),
        ],
        "curves": {name: each.training["curve"] for name, each in done.items()},
        "evaluations": {name: each.training["evaluations"] for name, each in done.items()},
        "skipped": next(iter(done.values())).skipped,
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"the report is {rundir / 'report.html'}")
    return 0
