"""The end of a run on one page: report.json holds what was measured, report.html and report.md show it.

`data` has, each optional:
title, command, seed, seconds, machine {}, versions {}, task {name, train, test, example_prompt},
facts [[name, value in words]], metric (the main one, "accuracy" if not said),
rows [{method, metrics {name: {value, ci95, n}}, ...: see COLUMNS}], claims [{name, statement, holds, evidence}],
curves {stage: [[step, loss], ...]}, evaluations {stage: [{step, validation_loss, the metric, ...}]},
ambiguity {a way of asking: [[answer, probability], ...]}, break_even [of `break_even_table`],
bias [{set, model, probe, group, value, ci95, n, ideal, note, perplexity}], bias_differences [of `rows.told`],
bias_caveats {set: a sentence}, tables [{title, header, rows, note}] of any other kind,
rates [{method, best, tried [[factor on its learning rate, the metric on validation data], ...]}],
disagreement {student: [{group, n, teacher, student, agreement {value, ci95, n}}, ...]},
offline {rows, coverage, lookup_us_p50, online_ms_p50, speedup, same_answers},
samples [{input, answer, and every method's answer by its name}], texts [{prompt, text}], skipped [a line each].

What a kind of run does not measure at all is absent, and the page says nothing of it; what is there and null or empty
reads "not measured".
"""

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.evaluation import plots, scales
from limbeck.evaluation.columns import cell, metric_of, score_words, verdict
from limbeck.evaluation.page import figures, render
from limbeck.evaluation.quantities import compact
from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, write_atomic
from limbeck.model.hosts import leads
from limbeck.model.markdown import one_line
from limbeck.model.pretrained import card

_IN_TERMINAL = {  # what 80 columns hold
    "params_total": "params", "params_trainable": "trained", "bytes": "size", "train_seconds": "training",
    "prompt_tokens": "prompt", "latency_ms_p50": "latency",
}
_BLOCKS = {
    "rows": list, "claims": list, "break_even": list, "bias": list, "samples": list, "texts": list, "skipped": list,
    "facts": list, "rates": list, "curves": dict, "evaluations": dict, "ambiguity": dict, "offline": dict,
    "disagreement": dict, "bias_differences": list, "bias_caveats": dict,
    "tables": list, "task": dict, "machine": dict, "versions": dict, "metric": str,
}


def write_report(folder: str | Path, data: dict[str, Any]) -> None:
    """Writes quality.svg, report.md, report.html and, last, report.json; equal data gives equal bytes.

    Of processes that run an experiment together the one that leads writes. Raises UserError for a number that is not
    finite, naming its place, and for a folder it cannot write.
    """
    _require_finite(data, "report")
    if not leads():
        return
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1) + "\n"
    data = json.loads(text)
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    drawn = figures(data)
    if "latency" in drawn:
        write_atomic(folder / "quality.svg", plots.standalone(drawn["latency"]))
    write_atomic(folder / "report.md", render("report.md.j2", data, drawn))
    write_atomic(folder / "report.html", render("report.html.j2", data, drawn))
    write_atomic(folder / "report.json", text)


def load_report(folder: str | Path) -> dict[str, Any]:
    """The data of `folder`/report.json. Raises UserError where it is missing or is not a report."""
    path = Path(folder) / "report.json"
    remedy = "run the same `limbeck run` command again, it goes on where it was"
    try:
        data = json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no report in {folder}: only a finished run has a report.json; {remedy}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; change its permissions") from None
    except ValueError as error:
        raise UserError(f"{path} is not a report ({one_line(str(error), 80)}); {remedy}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a report (it holds no object); {remedy}")
    for name, kind in _BLOCKS.items():
        if not isinstance(data.get(name), kind | None):
            raise UserError(f"{path} is not a report ({name!r} should be a JSON {kind.__name__}); {remedy}")
    return data


def terminal_table(data: dict[str, Any]) -> RenderableType:
    """The facts, the methods and the claims as tables for a terminal."""
    title = Text(one_line(data.get("title") or "Limbeck report"), style="bold")
    parts: list[RenderableType] = [title]
    if data.get("facts"):
        facts = Table(box=None, show_header=False, pad_edge=False)
        for name, value in data["facts"]:
            facts.add_row(Text(one_line(name)), Text(one_line(value)))
        parts += [facts, ""]
    if "rows" in data:
        parts += [_methods(data), ""] if data["rows"] else ["methods: not measured", ""]
    parts += [part for each in data.get("tables") or [] for part in (shown_table(card.Table(**each)), "")]
    if "claims" in data:
        claims = Table(box=None, show_header=False, pad_edge=False)
        for claim in data["claims"] or []:
            good = claim["holds"]
            words = Text(one_line(claim["statement"]))
            if not good:
                words.append("\n" + one_line(compact(claim.get("evidence"))))
            style = "" if good else "bold red"
            claims.add_row("holds" if good else "FAILS", Text(one_line(claim["name"])), words, style=style)
        parts += [claims, "", Text(verdict(data), style="bold")]
    return Group(*parts)


def shown_table(each: card.Table) -> RenderableType:
    """One table of an audit for a terminal."""
    if not each.rows:
        return Group(Text(one_line(each.title), style="italic"), Text(one_line(each.note), style="dim"))
    shown = Table(title=Text(one_line(each.title)), title_justify="left", box=None, pad_edge=False)
    for number, name in enumerate(each.header):
        side = "right" if number else "left"
        shown.add_column(Text(one_line(name)), justify=side, no_wrap=not number, overflow="fold")
    for line in each.rows:
        shown.add_row(*(Text(one_line(text)) for text in line))
    return Group(shown, Text(one_line(each.note), style="dim")) if each.note else shown


def _methods(data: dict[str, Any]) -> Table:
    metric, rows = metric_of(data), data["rows"]
    methods = Table(box=None, pad_edge=False, collapse_padding=True)
    methods.add_column("method", no_wrap=True)
    methods.add_column(scales.heading(metric), no_wrap=True)
    shown = [key for key in _IN_TERMINAL if any(row.get(key) is not None for row in rows)]
    for key in shown:
        methods.add_column(_IN_TERMINAL[key], justify="right")
    for row in rows:
        score = score_words(row, rows, metric)
        methods.add_row(Text(one_line(row["method"])), " ".join(score), *[cell(row, key) for key in shown])
    return methods


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"{where} is {value}, not a finite number: the run diverged; lower its learning rate, rerun it"
        )
    if isinstance(value, dict):
        for key, item in value.items():
            _require_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_finite(item, f"{where}.{index}")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
