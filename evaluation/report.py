"""The end of a run on one page: report.json holds what was measured, report.html and report.md show it.

`data` has, each optional:
title, command, seed, seconds, machine {}, versions {}, task {name, train, test, example_prompt},
facts [[name, value in words]], metric (the main one, "accuracy" if not said),
rows [{method, metrics {name: {value, ci95, n}}, ...: see _COLUMNS}], claims [{name, statement, holds, evidence}],
curves {stage: [[step, loss], ...]}, evaluations {stage: [{step, validation_loss, the metric, ...}]},
ambiguity {see _ASKED: [[answer, probability], ...]}, break_even [of `break_even_table`],
bias [{model, probe, value, ci95, n, ideal, perplexity}],
rates [{method, best, tried [[factor on its learning rate, the metric on validation data], ...]}],
disagreement {student: [{group, n, teacher, student, agreement {value, ci95, n}}, ...]},
offline {rows, coverage, lookup_us_p50, online_ms_p50, speedup, same_answers},
samples [{input, answer, and every method's answer by its name}], texts [{prompt, text}], skipped [a line each].

What a kind of run does not measure at all is absent, and the page says nothing of it; what is there and null or empty
reads "not measured".
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

from limbeck.evaluation import plots, scales
from limbeck.evaluation.curves import training_curves
from limbeck.evaluation.quantities import compact, duration, one_line, quantity, with_interval
from limbeck.model.errors import UserError
from limbeck.model.files import disk_errors, write_atomic
from limbeck.tasks.label_metrics import normalise
from limbeck.tasks.metrics import METRICS

_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "n": ("n", str),
    "spread": (
        "median of variants (least to most)",
        lambda value: f"{value['median']:.2f} ({value['minimum']:.2f} to {value['maximum']:.2f})",
    ),
    "difference": ("from the best", lambda value: with_interval(value["value"], value["ci95"], 2)),
    "stereotyped": ("stereotyped pairs", lambda value: with_interval(value["value"], value["ci95"], 2)),
    "params_total": ("parameters", quantity),
    "params_trainable": ("trainable", quantity),
    "bytes": ("size", lambda value: quantity(value, "B")),
    "train_seconds": ("training", duration),
    "train_flops": ("FLOPs of training", quantity),
    "learning_rate": ("learning rate", lambda value: f"{value:.2g}"),
    "flops_per_step": ("FLOPs a step", quantity),
    "step_seconds": ("a step", lambda value: quantity(value, "s")),
    "step_bytes": ("memory of a step", lambda value: quantity(value, "B")),
    "adapter_bytes": ("adapter", lambda value: quantity(value, "B")),
    "optimizer_bytes": ("optimizer", lambda value: quantity(value, "B")),
    "prompt_tokens": ("prompt tokens", lambda value: f"{value:.4g}"),
    "latency_ms_p50": ("latency", lambda value: quantity(value / 1000, "s")),
    "latency_ms_prefix": ("latency, prefix kept", lambda value: quantity(value / 1000, "s")),
    "per_second": ("requests a second", quantity),
    "flops_per_request": ("FLOPs a request", quantity),
    "flops_per_request_prefix": ("FLOPs, prefix kept", quantity),
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
    "rows": list, "claims": list, "break_even": list, "bias": list, "samples": list, "texts": list, "skipped": list,
    "facts": list, "rates": list, "curves": dict, "evaluations": dict, "ambiguity": dict, "offline": dict,
    "disagreement": dict, "task": dict, "machine": dict, "versions": dict, "metric": str,
}
_COUNTS_HITS = ("accuracy", "macro_f1", "matthews", "micro_f1", "label_macro_f1", "exact_match")
_ROOM = 10  # columns that fit a page beside the main metric; the other metrics get a table of their own beyond it
_LISTED = 20  # lines of what was skipped, and groups in which a student and its teacher differ most


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
    drawn = _figures(data)
    if "latency" in drawn:
        write_atomic(folder / "quality.svg", plots.standalone(drawn["latency"]))
    write_atomic(folder / "report.md", _render("report.md.j2", data, drawn))
    write_atomic(folder / "report.html", _render("report.html.j2", data, drawn))
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
    if "claims" in data:
        claims = Table(box=None, show_header=False, pad_edge=False)
        for claim in data["claims"] or []:
            good = claim["holds"]
            words = Text(one_line(claim["statement"]))
            if not good:
                words.append("\n" + one_line(compact(claim.get("evidence"))))
            style = "" if good else "bold red"
            claims.add_row("holds" if good else "FAILS", Text(one_line(claim["name"])), words, style=style)
        parts += [claims, "", Text(_verdict(data), style="bold")]
    return Group(*parts)


def _methods(data: dict[str, Any]) -> Table:
    metric, rows = _metric(data), data["rows"]
    methods = Table(box=None, pad_edge=False, collapse_padding=True)
    methods.add_column("method", no_wrap=True)
    methods.add_column(scales.heading(metric), no_wrap=True)
    shown = [key for key in _IN_TERMINAL if any(row.get(key) is not None for row in rows)]
    for key in shown:
        methods.add_column(_IN_TERMINAL[key], justify="right")
    for row in rows:
        score = _score(row, rows, metric)
        methods.add_row(Text(one_line(row["method"])), " ".join(score), *[_cell(row, key) for key in shown])
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


def _cell(row: dict[str, Any], key: str) -> str:
    return "–" if row.get(key) is None else _COLUMNS[key][1](row[key])


def _score(row: dict[str, Any], rows: list[dict[str, Any]], metric: str) -> tuple[str, ...]:
    """("0.91", "[0.88, 0.94]"), the value alone where no interval was measured, or ("–",)."""
    score, decimals = scales.score_of(row, metric), scales.digits(metric, scales.seen(rows, metric))
    if score is None:
        return ("–",)
    value, ci95 = scales.figure(score["value"], decimals), score.get("ci95")
    return (value, f"[{', '.join(scales.figure(end, decimals) for end in ci95)}]") if ci95 else (value,)


def _metric(data: dict[str, Any]) -> str:
    return data.get("metric") or "accuracy"


def _other_metrics(data: dict[str, Any]) -> list[str]:
    """The measured metrics beside the main one, in the order in which they are listed, then by name."""
    rows, order = data.get("rows") or [], list(METRICS)
    names = {name for row in rows for name in row.get("metrics") or {} if scales.score_of(row, name) is not None}
    return sorted(names - {_metric(data)}, key=lambda name: (order.index(name) if name in order else len(order), name))


def _range(row: dict[str, Any], rows: list[dict[str, Any]], metric: str) -> dict[str, float] | None:
    """Where on a bar from 0 to 100 the row's value and its interval lie, and zero if it is within."""
    score = scales.score_of(row, metric)
    if score is None:
        return None
    low, high = scales.limits(metric, scales.seen(rows, metric))
    ends = dict(zip(("low", "high"), score.get("ci95") or (), strict=False))
    places = {"value": score["value"], **ends, **({"zero": 0.0} if low < 0 < high else {})}
    return {name: round(100 * (place - low) / (high - low), 1) for name, place in places.items()}


def _against(data: dict[str, Any], key: str) -> str:
    label = {
        "latency_ms_p50": "latency of one request, ms",
        "params_total": "parameters",
        "params_trainable": "parameters that train",
    }[key]
    rows = data.get("rows") or []
    if key == "params_trainable":  # of the ways of tuning one model, which say what each keeps; a baseline is no such
        rows = [row for row in rows if "adapter_bytes" in row]
    return plots.quality(rows, _metric(data), key, label)


def _bias_value(row: dict[str, Any]) -> str:
    return "–" if row.get("value") is None else with_interval(row["value"], row.get("ci95"), 3)


def _verdict(data: dict[str, Any]) -> str:
    claims = data.get("claims") or []
    failed = [one_line(claim["name"]) for claim in claims if not claim["holds"]]
    if not claims:
        return "claims: not measured"
    if not failed:
        return f"all {len(claims)} claims hold"
    return f"{len(failed)} of {len(claims)} claims FAIL: {', '.join(failed)}"


def _about(data: dict[str, Any]) -> list[str]:
    """What the run was, in short parts; a part that is null says so."""
    task, seed, seconds = data.get("task") or {}, data.get("seed"), data.get("seconds")
    sizes = (task.get("train"), task.get("test"))
    parts = [f"{sizes[0]} training and {sizes[1]} test records"] if None not in sizes else []
    parts += [f"seed {'not measured' if seed is None else seed}"] if "seed" in data else []
    return parts + (["time not measured" if seconds is None else duration(seconds)] if "seconds" in data else [])


def _samples(data: dict[str, Any]) -> dict[str, Any] | None:
    """The columns of the samples (methods in the lesson's order), the samples, and whether a wrong one is marked."""
    samples = data.get("samples")
    if not samples:
        return None
    methods = {key for sample in samples for key in sample} - {"input", "answer"}
    return {"methods": plots.in_order(list(methods)), "rows": samples, "marked": _metric(data) in _COUNTS_HITS}


def _figures(data: dict[str, Any]) -> dict[str, markupsafe.Markup]:
    """The SVG of every plot whose numbers were measured."""
    table = data.get("break_even") or []
    drawn = {
        "latency": _against(data, "latency_ms_p50"),
        "size": _against(data, "params_total"),
        "trained": _against(data, "params_trainable"),
        "seconds": plots.break_even_lines(table, "seconds"),
        "flops": plots.break_even_lines(table, "FLOPs"),
        "curves": training_curves(data.get("curves") or {}, data.get("evaluations") or {}, _metric(data)),
    }
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
    return re.sub(r"([\\`*\[\]<>|~&#])", r"\\\1", one_line(str(value)))


def _render(name: str, data: dict[str, Any], drawn: dict[str, markupsafe.Markup]) -> str:
    is_html = name == "report.html.j2"
    environment = jinja2.Environment(
        autoescape=is_html, finalize=None if is_html else _escape_markdown,
        undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )
    environment.filters |= {"quantity": quantity, "duration": duration, "compact": compact}
    rows, metric, others = data.get("rows") or [], _metric(data), _other_metrics(data)
    environment.globals |= {
        "cell": _cell, "bias_value": _bias_value, "colour": plots.colour, "asked": _ASKED, "heading": scales.heading,
        "score": lambda row, name: _score(row, rows, name),
        "within": lambda score: with_interval(score["value"], score["ci95"], 2),
        "range_of": lambda row: _range(row, rows, metric),
        "same": lambda a, b: normalise(str(a)) == normalise(str(b)),
    }
    rows = [{**row, "n": (scales.score_of(row, metric) or {}).get("n")} for row in rows]
    measured = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    expected = [key for key in _COLUMNS if any(key in row for row in data.get("rows") or [])]
    template = importlib.resources.files("limbeck.evaluation").joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(template).render(
        data=data,
        about=_about(data),
        rows=rows,
        metric=metric,
        title=scales.words(metric)[:1].upper() + scales.words(metric)[1:],
        higher=scales.higher_is_better(metric),
        arrow=not all(map(scales.higher_is_better, [metric, *others])),
        beside=others if len(others) + len(measured) <= _ROOM else [],
        apart=others if len(others) + len(measured) > _ROOM else [],
        intervals=any((scales.score_of(row, metric) or {}).get("ci95") for row in rows),
        columns={key: _COLUMNS[key][0] for key in measured},
        unmeasured=[_COLUMNS[key][0] for key in expected if key not in measured],
        failed=[claim for claim in data.get("claims") or [] if not claim["holds"]],
        verdict=_verdict(data),
        samples=_samples(data),
        listed=_LISTED,
        crowd=plots.CROWD,
        plots=drawn,
    )
