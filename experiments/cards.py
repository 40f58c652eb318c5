"""What a run measured of a model, told on its card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.evaluation.bias.tables import bias_tables
from limbeck.evaluation.data_audit.tables import audit_tables
from limbeck.evaluation.energy import Energy, told
from limbeck.evaluation.quantities import quantity, with_interval
from limbeck.model.pretrained import add_to_card
from limbeck.model.pretrained.card import Result, Table

_KINDS = {"generation": "text-generation"}  # every other kind of task is a classification to the hub


def train_energy(training: Mapping[str, Any]) -> dict[str, Any]:
    """What a report's row says of the energy of a training; nothing of one from before it was counted."""
    cost = training.get("cost")
    return {"train_joules": cost["joules"], "train_joules_source": cost["joules_source"]} if cost else {}


def tell_quality(folder: Path, data: str, kind: str, row: Mapping[str, Any]) -> None:
    """Puts the metrics of a report's row on a model's card, and what its requests cost."""
    metrics = {name: score for name, score in row["metrics"].items() if score["value"] is not None}
    lines = [
        [name, with_interval(score["value"], score.get("ci95"), 4), str(score.get("n") or "–")]
        for name, score in metrics.items()
    ]
    results = [Result(data, _KINDS.get(kind, "text-classification"), n, score["value"]) for n, score in metrics.items()]
    sections = {"evaluation": [Table(data, ["metric", "value, 95 % interval", "n"], lines)]}
    costs = [["parameters", quantity(row["params_total"])], ["weights", quantity(row["bytes"], "B")]]
    if row.get("latency_ms_p50") is not None:
        costs.append(["one request, median", quantity(row["latency_ms_p50"] / 1000, "s")])
    if row.get("flops_per_request") is not None:
        costs.append(["FLOPs of a request", quantity(row["flops_per_request"])])
    if row.get("joules_source"):
        joules = row["joules_per_prediction"]
        energy = Energy(None if joules is None else 1000 * joules, row["joules_source"])
        costs.append(["energy of 1,000 requests", told(energy)])
    sections["energy"] = [Table("What it takes", ["what", "measured"], costs)]
    add_to_card(folder, sections, results)


def tell_data(folder: Path, audit: Mapping[str, Any]) -> None:
    """Puts the audit of the data that a model was trained on on its card."""
    add_to_card(folder, {"data": audit_tables(audit)})


def tell_bias(folder: Path, name: str, probes: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Puts what a report's "rows" and "differences" say of the model of that name on its card."""
    rows = [row for row in probes["rows"] if row["model"] == name]
    differences = [each for each in probes["differences"] if each["after"] == name]
    add_to_card(folder, {"bias": bias_tables(rows, differences)})
