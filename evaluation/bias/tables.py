"""Bias rows and differences as a reader sees them: a table for each set of items, a column for each model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.evaluation.bias.rows import TOO_FEW
from limbeck.model.pretrained.card import Table

_MARKS = {
    " n.d.": "n.d.: not distinguishable from the ideal.",
    " few": "few: fewer than eight items, of which no interval can be believed.",
}
_DIGITS = 3  # after the point; more where two figures of what is small need them, fewer of what is large


def bias_tables(
    rows: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]] = (),
    caveats: Mapping[str, str] | None = None,
) -> list[Table]:
    """Tables of what `rows.told` told; `caveats` by the name of the set of items ("set" of a row, "" without one)."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    tables = []
    for name in dict.fromkeys(row.get("set", "") for row in rows):
        of_set = [row for row in rows if row.get("set", "") == name]
        found: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
        for row in of_set:
            found.setdefault((row["probe"], row.get("group", "")), {})[row["model"]] = row
        lines = [_line(probe, group, by_model, models) for (probe, group), by_model in found.items()]
        perplexity = {row["model"]: row["perplexity"] for row in of_set if row.get("perplexity") is not None}
        if perplexity:
            lines.append(["perplexity", "", "", "", *(_figure(perplexity.get(model)) for model in models)])
        cells = [cell for line in lines for cell in line]
        marks = [text for mark, text in _MARKS.items() if any(cell.endswith(mark) for cell in cells)]
        note = " ".join(filter(None, (*marks, (caveats or {}).get(name, ""))))
        tables.append(Table(name or "Bias probes", ["probe", "of", "n", "ideal", *models], lines, note))
    names = dict.fromkeys(each.get("set", "") for each in differences)
    return tables + [_changes(name, [each for each in differences if each.get("set", "") == name]) for name in names]


def _line(probe: str, group: str, by_model: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> list[str]:
    first = next(iter(by_model.values()))
    ideal = "" if first.get("ideal") is None else f"{first['ideal']:.3g}"
    return [probe, group, str(first.get("n", "–")), ideal, *(_cell(by_model.get(model)) for model in models)]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row.get("value") is None:
        return "–"
    note = str(row.get("note", ""))
    mark = " n.d." if note.startswith("not distinguishable") else " few" if note.startswith(TOO_FEW) else ""
    return _interval(row["value"], row.get("ci95")) + mark


def _interval(value: float, ci95: Sequence[float] | None) -> str:
    numbers = [value, *(ci95 or ())]
    largest = max(map(abs, numbers))
    size = math.floor(math.log10(largest)) if largest else 0
    digits = _DIGITS if -2 <= size < 2 else min(9, max(0, _DIGITS - size if size > 0 else 1 - size))
    told, *ends = (f"{number:.{digits}f}".replace(f"-{0:.{digits}f}", f"{0:.{digits}f}") for number in numbers)
    return f"{told} [{', '.join(ends)}]" if ends else told


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _changes(name: str, differences: Sequence[Mapping[str, Any]]) -> Table:
    """What of a set changed from model to model, where it can be told from no change."""
    seen = [each for each in differences if each["note"] not in ("not distinguishable", TOO_FEW)]
    lines = [
        [
            f"{each['before']} → {each['after']}",
            each["probe"],
            each.get("group", ""),
            str(each["n"]),
            _interval(each["value"], each["ci95"]),
            "" if each.get("flips_p") is None else f"{each['flips_p']:.2g}",
            each["note"],
        ]
        for each in seen
    ]
    note = (
        f"{len(differences) - len(seen)} of {len(differences)} paired differences are left out: not distinguishable "
        "from none, or of too few items. "
        "p is McNemar's, of the items that flipped. Of twenty true zeros one is shown by chance."
    )
    title = f"What changed: {name}" if name else "What changed"
    header = ["from → to", "probe", "of", "n", "change", "p", "the later model is"]
    return Table(title, header, lines, note)
