"""When a dearer start pays, as a picture: what every method has cost after so many requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.evaluation.plots import DASHES, colour, draw, in_order, name_ends, quantities

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def break_even_lines(table: Sequence[dict[str, Any]], unit: str) -> str:
    """Cumulative cost in `unit` against the number of requests, log-log, one line a method, crossings marked.

    Dashed and with a hollow mark: what a prompt costs with its prefix kept, where that was measured. `table` is
    `break_even_table`'s. Returns "" where it has nothing in that unit.
    """
    plain, kept = ([entry for entry in table if entry["unit"] == each] for each in (unit, f"{unit}, prefix kept"))
    if not plain:
        return ""
    costs = _costs(plain)
    dashed = {name: cost for name, cost in _costs(kept).items() if cost != costs.get(name)}
    lines = [(name, costs[name], "-") for name in in_order(list(costs))]
    lines += [(name, dashed[name], DASHES) for name in in_order(list(dashed))]
    crossings = [(entry["requests"], entry["to"], costs[entry["to"]], "full") for entry in plain if entry["requests"]]
    crossings += [
        (entry["requests"], entry["to"], {**costs, **dashed}[entry["to"]], "none")
        for entry in kept
        if entry["requests"] and {entry["from"], entry["to"]} & dashed.keys()
    ]
    last = 30 * max([requests for requests, *_ in crossings], default=1e4)

    def paint(figure: "Figure") -> None:
        ax = figure.subplots()
        requests = np.geomspace(1, last, 200)
        for name, (fixed, each), style in lines:
            ax.plot(requests, fixed + each * requests, color=colour(name), linewidth=1.6, linestyle=style)
        totals = [fixed + each * count for _, (fixed, each), _ in lines for count in (1, last)]
        bottom = max(min(totals), 1e-6 * max(totals)) / 2
        ax.set(xscale="log", yscale="log", xlim=(1, last), ylim=(bottom, 4 * max(totals)))
        for count, name, (fixed, each), fill in crossings:
            y = fixed + each * count
            ax.plot(count, y, "o", color=colour(name), markersize=5, zorder=5, fillstyle=fill)
            ax.plot([count] * 2, [bottom, y], color=colour(name), linewidth=0.9, linestyle=(0, (2, 2)))
        quantities(ax.xaxis, "requests")
        quantities(ax.yaxis, f"cost so far, {unit}")
        names = [(name if style == "-" else "prefix kept", colour(name)) for name, _, style in lines]
        name_ends(figure, ax, names, [(last, fixed + each * last) for _, (fixed, each), _ in lines])

    return draw(f"cost in {unit} against requests", (380, 280), paint)


def _costs(table: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """{method: (paid once, for each request)} of the pairs of a break-even table."""
    return {
        entry[end]: (entry[f"fixed_{end}"], entry[f"per_request_{end}"]) for entry in table for end in ("from", "to")
    }
