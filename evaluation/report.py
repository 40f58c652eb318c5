"""The end of a run on one page: report.json holds what was measured, report.html and report.md show it.

`data` has, each optional (what is missing or null reads "not measured"):
title, command, seed, seconds, machine {}, versions {}, task {name, train, test, example_prompt},
rows [{method, accuracy, ci95, ...: see _COLUMNS}], claims [{name, statement, holds, evidence}],
curves {stage: [[step, loss], ...]}, ambiguity {see _ASKED: [[answer, probability], ...]},
break_even [of `break_even_table`], bias [{model, probe, value, ci95, n, ideal, perplexity}],
offline {rows, coverage, lookup_us_p50, online_ms_p50, speedup, same_answers},
samples [{input, answer, and every method's answer by its name}].
"""

import importlib.resources
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from limbeck.evaluation import plots
from limbeck.evaluation.quantities import compact, duration, one_line, quantity, with_interval
from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, write_atomic

_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "macro_f1": ("macro F1", "{:.2f}".format),
    "n": ("n", str),
    "params_total": ("parameters", quantity),
    "params_trainable": ("trainable", quantity),
    "bytes": ("size", lambda value: quantity(value, "B")),
    "train_seconds": ("training", duration),
    "flops_per_step": ("FLOPs a step", quantity),
    "optimizer_bytes": ("optimizer", lambda value: quantity(value, "B")),
    "prompt_tokens": ("prompt tokens", lambda value: f"{value:.4g}"),
    "latency_ms_p50": ("latency", lambda value: quantity(value / 1000, "s")),
    "joules_per_prediction": ("energy", lambda value: quantity(value, "J")),
}
_IN_TERMINAL = {  # what 80 columns hold
    "params_total": "params", "params_trainable": "trained", "bytes": "size", "train_seconds": "training",
    "prompt_tokens": "prompt", "latency_ms_p50": "latency",
}
_ASKED = {
    "zero_shot": "no examples",
    "few_shot_fruit": "fruits as examples",
    "few_shot_company": "companies as examples",
}
_BLOCKS = {
    "rows": list, "claims": list, "break_even": list, "bias": list, "samples": list, "curves": dict,
    "ambiguity": dict, "offline": dict, "task": dict, "machine": dict, "versions": dict,
}


def write_report(folder: str | Path, data: dict[str, Any]) -> None:
    """Writes quality.svg, report.md, report.html and, last, report.json; equal data gives equal bytes.

    Raises UserError for a number that is not finite, naming its place, and for a folder it cannot write.
    """
    _require_finite(data, "report")
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1) + "\n"
    data = json.loads(text)
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if picture := plots.quality(data.get("rows") or [], "latency_ms_p50", "latency of one request, ms"):
        write_atomic(folder / "quality.svg", plots.standalone(picture))
    write_atomic(folder / "report.md", _render("report.md.j2", data))
    write_atomic(folder / "report.html", _render("report.html.j2", data))
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
    """The methods and the claims as tables for a terminal."""
    title = Text(one_line(data.get("title") or "Limbeck report"), style="bold")
    methods = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    methods.add_column("method", no_wrap=True)
    methods.add_column("accuracy", no_wrap=True)
    for short in _IN_TERMINAL.values():
        methods.add_column(short, justify="right")
    for row in data.get("rows") or []:
        cells = [_cell(row, key) for key in _IN_TERMINAL]
        methods.add_row(Text(one_line(row["method"])), _interval(row, "accuracy", 2), *cells)
    claims = Table(box=None, show_header=False, pad_edge=False)
    for claim in data.get("claims") or []:
        good = claim["holds"]
        words = Text(one_line(claim["statement"]))
        if not good:
            words.append("\n" + one_line(compact(claim.get("evidence"))))
        style = "" if good else "bold red"
        claims.add_row("holds" if good else "FAILS", Text(one_line(claim["name"])), words, style=style)
    shown = methods if data.get("rows") else "methods: not measured"
    return Group(shown, "", claims, "", Text(_verdict(data), style="bold"))


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


def _cell(row: dict[str, Any], key: str) -> str:
    return "–" if row.get(key) is None else _COLUMNS[key][1](row[key])


def _interval(row: dict[str, Any], key: str, digits: int) -> str:
    return "–" if row.get(key) is None else with_interval(row[key], row.get("ci95"), digits)


def _verdict(data: dict[str, Any]) -> str:
    claims = data.get("claims") or []
    failed = [one_line(claim["name"]) for claim in claims if not claim["holds"]]
    if not claims:
        return "claims: not measured"
    if not failed:
        return f"all {len(claims)} claims hold"
    return f"{len(failed)} of {len(claims)} claims FAIL: {', '.join(failed)}"


def _samples(data: dict[str, Any]) -> dict[str, Any] | None:
    """The columns of the samples (methods in the lesson's order) and the samples."""
    samples = data.get("samples")
    if not samples:
        return None
    methods = {key for sample in samples for key in sample} - {"input", "answer"}
    return {"methods": plots.in_order(list(methods)), "rows": samples}


def _figures(data: dict[str, Any]) -> dict[str, markupsafe.Markup]:
    """The SVG of every plot whose numbers were measured."""
    rows, table = data.get("rows") or [], data.get("break_even") or []
    drawn = {
        "latency": plots.quality(rows, "latency_ms_p50", "latency of one request, ms"),
        "size": plots.quality(rows, "params_total", "parameters"),
        "seconds": plots.break_even_lines(table, "seconds"),
        "flops": plots.break_even_lines(table, "FLOPs"),
    }
    if any((data.get("curves") or {}).values()):
        drawn["curves"] = plots.loss_curves(data["curves"])
    if data.get("bias"):
        drawn["bias"] = plots.bias_intervals(data["bias"])
    answers = data.get("ambiguity") or {}
    asked = {title: answers[key] for key, title in _ASKED.items() if answers.get(key)}
    if asked:
        drawn["ambiguity"] = plots.ambiguity_bars(asked)
    return {name: markupsafe.Markup(svg) for name, svg in drawn.items() if svg}


def _escape_markdown(value: Any) -> Any:
    """What a template prints into Markdown, as text: one line, no markup of Markdown's or HTML's."""
    if isinstance(value, markupsafe.Markup):
        return value
    return re.sub(r"([\\`*\[\]<>|~&])", r"\\\1", one_line(str(value)))


def _render(name: str, data: dict[str, Any]) -> str:
    is_html = name == "report.html.j2"
    environment = jinja2.Environment(
        autoescape=is_html, finalize=None if is_html else _escape_markdown,
        undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )
    environment.filters |= {"quantity": quantity, "duration": duration, "compact": compact}
    environment.globals |= {
        "cell": _cell, "interval": _interval, "colour": plots.colour, "asked": _ASKED,
    }
    rows = data.get("rows") or []
    measured = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    template = importlib.resources.files("limbeck.evaluation").joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        data=data,
        columns={key: _COLUMNS[key][0] for key in measured},
        unmeasured=[_COLUMNS[key][0] for key in _COLUMNS if key not in measured and key != "macro_f1"],
        failed=[claim for claim in data.get("claims") or [] if not claim["holds"]],
        verdict=_verdict(data),
        samples=_samples(data),
        plots=_figures(data) if is_html else {},
        pictured=any(row.get("accuracy") is not None and row.get("latency_ms_p50") for row in rows),
    )
