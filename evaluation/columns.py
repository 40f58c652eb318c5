"""What a method's row shows, on the page and in a terminal: the columns, and each cell in words."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from limbeck.evaluation import scales
from limbeck.evaluation.energy import WORLD, emissions
from limbeck.evaluation.quantities import duration, quantity, with_interval
from limbeck.model.markdown import one_line

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
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
    "joules_per_prediction": ("energy of 1,000", lambda value: quantity(1000 * value, "J")),
    "train_joules": ("energy of its own training", lambda value: quantity(value, "J")),
}

_ENERGY = {"joules_per_prediction": "joules_source", "train_joules": "train_joules_source"}


def cell(row: dict[str, Any], key: str) -> str:
    """The row's cell in a column, a dash where nothing was measured, "≈" before energy that is estimated."""
    if row.get(key) is None:
        return "–"
    estimated = key in _ENERGY and str(row.get(_ENERGY[key])).startswith("estimate")
    return ("≈ " if estimated else "") + COLUMNS[key][1](row[key])


def sources(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How the rows' energies are known, each way once, and what they give off; nothing where none is told.

    How busy the cores were, which an estimate says of each row, is left out.
    """
    told = (row.get(source) for row in rows for source in _ENERGY.values())
    found = list(dict.fromkeys(re.sub(r"[\d.]+ cores?", "busy cores", text) for text in told if text))
    return [*found, f"1 MJ gives off {emissions(1e6):.0f} g CO2e at {WORLD:g} g/kWh"] if found else []


def score_words(row: dict[str, Any], rows: list[dict[str, Any]], metric: str) -> tuple[str, ...]:
    """("0.91", "[0.88, 0.94]"), the value alone where no interval was measured, or ("–",)."""
    score, decimals = scales.score_of(row, metric), scales.digits(metric, scales.seen(rows, metric))
    if score is None:
        return ("–",)
    value, ci95 = scales.figure(score["value"], decimals), score.get("ci95")
    return (value, f"[{', '.join(scales.figure(end, decimals) for end in ci95)}]") if ci95 else (value,)


def metric_of(data: dict[str, Any]) -> str:
    """The main metric of a report's data."""
    return data.get("metric") or "accuracy"


def verdict(data: dict[str, Any]) -> str:
    """How many claims hold, and the names of those that do not."""
    claims = data.get("claims") or []
    failed = [one_line(claim["name"]) for claim in claims if not claim["holds"]]
    if not claims:
        return "claims: not measured"
    if not failed:
        return f"all {len(claims)} claims hold"
    return f"{len(failed)} of {len(claims)} claims FAIL: {', '.join(failed)}"
