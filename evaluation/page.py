"""The report's page, in HTML and in Markdown: `*.j2` say how it looks, this what is put into them."""

import importlib.resources
from collections.abc import Sequence
from typing import Any, get_args

import jinja2
import markupsafe

from limbeck.evaluation import plots, scales
from limbeck.evaluation.asked import in_words
from limbeck.evaluation.bias.tables import bias_tables
from limbeck.evaluation.break_even_plot import break_even_lines
from limbeck.evaluation.columns import COLUMNS, cell, metric_of, score_words, sources, verdict
from limbeck.evaluation.curves import training_curves
from limbeck.evaluation.prompt_plots import accuracy_lines, variant_strips
from limbeck.evaluation.quantities import compact, duration, quantity, with_interval
from limbeck.model.markdown import escaped
from limbeck.model.pretrained.card import Table, in_markdown
from limbeck.prompting.config import View
from limbeck.tasks.label_metrics import normalise
from limbeck.tasks.metrics import METRICS

_ASKED = {
    "zero_shot": "no examples",
    "few_shot_fruit": "fruits as examples",
    "few_shot_company": "companies as examples",
}
_ROOM = 10  # columns that fit a page beside the main metric; the other metrics get a table of their own beyond it
_TEMPLATES = importlib.resources.files("limbeck.evaluation")
_LISTED = 20  # lines of what was skipped, and groups in which a student and its teacher differ most


def _other_metrics(data: dict[str, Any]) -> list[str]:
    """The measured metrics beside the main one, in the order in which they are listed, then by name."""
    rows, order = data.get("rows") or [], list(METRICS)
    names = {name for row in rows for name in row.get("metrics") or {} if scales.score_of(row, name) is not None}
    place = {name: order.index(name) if name in order else len(order) for name in names - {metric_of(data)}}
    return sorted(place, key=lambda name: (place[name], name))


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
    return plots.quality(rows, metric_of(data), key, label)


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
    return {"methods": plots.in_order(list(methods)), "rows": samples, "marked": scales.counts_hits(metric_of(data))}


def _prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that were asked in any other way than the task says, or in several."""
    return [row for row in rows if (row.get("prompt") or {}).keys() - {"seed"} or row.get("variants")]


def _views(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The views of option scores that any row has, in their order, in words."""
    there = {name for row in rows for name in row.get("views") or {}}
    return {name: scales.words(name) for name in get_args(View) if name in there}


def figures(data: dict[str, Any]) -> dict[str, markupsafe.Markup]:
    """The SVG of every plot whose numbers were measured."""
    table, rows = data.get("break_even") or [], data.get("rows") or []
    drawn = {
        "latency": _against(data, "latency_ms_p50"),
        "size": _against(data, "params_total"),
        "trained": _against(data, "params_trainable"),
        "seconds": break_even_lines(table, "seconds"),
        "flops": break_even_lines(table, "FLOPs"),
        "variants": variant_strips(rows, metric_of(data)),
        "by_samples": accuracy_lines(rows),
        "curves": training_curves(data.get("curves") or {}, data.get("evaluations") or {}, metric_of(data)),
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
    return escaped(str(value))


def _in_tables(tables: Sequence[Table | dict[str, Any]]) -> markupsafe.Markup:
    """Tables in Markdown, one after another; their text is escaped there."""
    parts = [Table(**each) if isinstance(each, dict) else each for each in tables]
    return markupsafe.Markup("\n\n".join(map(in_markdown, parts)))  # noqa: S704


def render(name: str, data: dict[str, Any], drawn: dict[str, markupsafe.Markup]) -> str:
    """The page that the template `name` makes of the data and its `figures`."""
    is_html = name == "report.html.j2"
    environment = jinja2.Environment(
        autoescape=is_html, finalize=None if is_html else _escape_markdown,
        undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        loader=jinja2.FunctionLoader(lambda name: (_TEMPLATES / name).read_text(encoding="utf-8")),
    )
    environment.filters |= {"quantity": quantity, "duration": duration, "compact": compact, "in_words": in_words}
    rows, metric, others = data.get("rows") or [], metric_of(data), _other_metrics(data)
    environment.globals |= {
        "cell": cell, "energy": sources(rows), "colour": plots.colour, "in_tables": _in_tables, "asked": _ASKED,
        "bias_tables": lambda data: bias_tables(
            data["bias"], data.get("bias_differences") or (), data.get("bias_caveats")
        ),
        "heading": scales.heading,
        "score": lambda row, name: score_words(row, rows, name),
        "measured": lambda score: score_words({"metrics": {metric: score}}, rows, metric),
        "within": lambda score: with_interval(score["value"], score["ci95"], 2),
        "range_of": lambda row: _range(row, rows, metric),
        "same": lambda a, b: normalise(str(a)) == normalise(str(b)),
    }
    rows = [{**row, "n": (scales.score_of(row, metric) or {}).get("n")} for row in rows]
    measured = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    expected = [key for key in COLUMNS if any(key in row for row in data.get("rows") or [])]
    return environment.get_template(name).render(
        data=data,
        about=_about(data),
        rows=rows,
        prompts=_prompts(rows),
        views=_views(rows),
        metric=metric,
        title=scales.words(metric)[:1].upper() + scales.words(metric)[1:],
        higher=scales.higher_is_better(metric),
        arrow=not all(map(scales.higher_is_better, [metric, *others])),
        beside=others if len(others) + len(measured) <= _ROOM else [],
        apart=others if len(others) + len(measured) > _ROOM else [],
        intervals=any((scales.score_of(row, metric) or {}).get("ci95") for row in rows),
        columns={key: COLUMNS[key][0] for key in measured},
        unmeasured=[COLUMNS[key][0] for key in expected if key not in measured],
        failed=[claim for claim in data.get("claims") or [] if not claim["holds"]],
        verdict=verdict(data),
        samples=_samples(data),
        listed=_LISTED,
        crowd=plots.CROWD,
        plots=drawn,
    )
