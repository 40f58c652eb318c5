"""Which method is worth its cost: the Pareto front, and the requests after which a dearer start pays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# (unit, key of the cost paid once, key of the cost of a request, factor from the latter to the unit)
_COSTS = (
    ("seconds", "train_seconds", "latency_ms_p50", 1e-3),
    ("FLOPs", "train_flops", "flops_per_request", 1.0),
)
_PAIRS = (("few_shot", "full"), ("few_shot", "lora"), ("full", "distilled"))


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, in order, of the (cost, quality) points that no other point beats.

    A point is beaten by one as cheap and as good that is better in either. Equal points are all kept.
    """
    cost, quality = np.asarray(points, dtype=float).reshape(-1, 2).T
    no_worse = (cost[:, None] <= cost) & (quality[:, None] >= quality)
    better = (cost[:, None] < cost) | (quality[:, None] > quality)
    dominated = (no_worse & better).any(axis=0)
    return [int(index) for index in np.flatnonzero(~dominated)]


def break_even(fixed_a: float, per_request_a: float, fixed_b: float, per_request_b: float) -> float | None:
    """The number of requests after which b stays cheaper than a: 0 if at once, None if never for good.

    Costs are `fixed + per_request * requests`, all in one unit.
    """
    if per_request_b < per_request_a:
        return max(0.0, (fixed_b - fixed_a) / (per_request_a - per_request_b))
    return 0.0 if per_request_b == per_request_a and fixed_b < fixed_a else None


def break_even_table(
    rows: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]] = _PAIRS
) -> list[dict[str, Any]]:
    """Break-even of each pair of methods (the second one dearer to make) in measured seconds and in FLOPs.

    `rows` are the report's: `train_seconds` and `train_flops` are all that was spent to get there (with a
    student's go its teacher's), `latency_ms_p50` and `flops_per_request` what one request costs. A pair of
    which one is not measured in a unit has no entry in that unit. It says nothing of quality.
    """
    by_method = {row["method"]: row for row in rows}
    table = []
    for unit, fixed, per_request, scale in _COSTS:
        costs = {
            method: (row[fixed], row[per_request] * scale)
            for method, row in by_method.items()
            if row.get(fixed) is not None and row.get(per_request) is not None
        }
        for a, b in pairs:
            if a in costs and b in costs:
                table.append({
                    "from": a, "to": b, "unit": unit,
                    "fixed_from": costs[a][0], "per_request_from": costs[a][1],
                    "fixed_to": costs[b][0], "per_request_to": costs[b][1],
                    "requests": break_even(*costs[a], *costs[b]),
                })
    return table
