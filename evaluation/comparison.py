"""Which method is worth its cost: the Pareto front, the requests after which a dearer start pays, what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.evaluation.scales import higher_is_better, score_of

# unit: (key of the cost paid once, keys of the cost of a request, of which the first that a row has counts, factor
# from the latter to the unit). With its prefix kept, a prompt's examples are not read again for each request.
COSTS: dict[str, tuple[str, tuple[str, ...], float]] = {
    "seconds": ("train_seconds", ("latency_ms_p50",), 1e-3),
    "FLOPs": ("train_flops", ("flops_per_request",), 1.0),
    "seconds, prefix kept": ("train_seconds", ("latency_ms_prefix", "latency_ms_p50"), 1e-3),
    "FLOPs, prefix kept": ("train_flops", ("flops_per_request_prefix", "flops_per_request"), 1.0),
}
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
    student's go its teacher's), `latency_ms_p50` and `flops_per_request` what one request costs, `latency_ms_prefix`
    and `flops_per_request_prefix` what it costs where the prompt's examples are read once. A pair of which one is not
    measured in a unit has no entry in that unit. It says nothing of quality.
    """
    table = []
    for unit, (_, per_request, _) in COSTS.items():
        costs = _costs(rows, unit)
        if not any(row.get(per_request[0]) is not None for row in rows):
            continue
        for a, b in pairs:
            if a in costs and b in costs:
                table.append({
                    "from": a, "to": b, "unit": unit,
                    "fixed_from": costs[a][0], "per_request_from": costs[a][1],
                    "fixed_to": costs[b][0], "per_request_to": costs[b][1],
                    "requests": break_even(*costs[a], *costs[b]),
                })
    return table


def cheapest(costs: Mapping[str, tuple[float, float]]) -> list[tuple[float, str]]:
    """[(number of requests, method)]: from that number on the method is the cheapest, until the next takes over.

    `costs` are (fixed, per request) of each method. The first number is 0; of equal costs the method that is dearer
    per request gives way at once.
    """
    here = min(costs, key=lambda method: costs[method])
    found = [(0.0, here)]
    while True:
        fixed, per_request = costs[here]
        crossings = [
            ((other - fixed) / (per_request - each), each, method)
            for method, (other, each) in costs.items()
            if each < per_request
        ]
        if not crossings:
            return found
        at, _, here = min(crossings)
        found.append((max(at, 0.0), here))


def advice(rows: Sequence[Mapping[str, Any]], metric: str, unit: str = "seconds") -> str:
    """One sentence: which of the methods that are as good as the best costs least, by the number of requests.

    A row's `difference` is its paired difference from the best one {"ci95": [low, high]}, by what each record is worth
    (of a correlation its squared error): as good is what the test records cannot tell from the best, or find better.
    Where there is only one it is to be taken, whatever it costs. Empty where nothing was measured.
    """
    scored = {row["method"]: score for row in rows if (score := score_of(dict(row), metric)) is not None}
    if not scored:
        return ""
    sign = 1 if higher_is_better(metric) else -1
    best = max(scored, key=lambda method: sign * scored[method]["value"])
    costs = _costs(rows, unit)
    good = {row["method"] for row in rows if row["method"] in scored and _as_good(row)} | {best}
    value, n = f"{metric} {scored[best]['value']:.3g}", f"{scored[best]['n']:,} test records"
    if len(good) == 1:
        return f"Take {best} ({value})" + (f": on {n} no other method is as good." if len(scored) > 1 else ".")
    if not good & costs.keys():
        return f"Take the best ({best}, {value}): what it costs was not measured."
    found = cheapest({method: costs[method] for method in costs if method in good})
    among = f"Of the {len(good)} methods that {n} cannot tell from the best ({best}, {value}), "
    among += f"{found[0][1]} costs least "
    if len(found) == 1:
        return f"{among}however many requests there are (in {unit})."
    ends = [f"{at:,.0f}" for at, _ in found[1:]]
    later = [f"{method} from there to {end}" for (_, method), end in zip(found[1:-1], ends[1:], strict=True)]
    return f"{among}{', '.join([f'up to {ends[0]} requests', *later, f'{found[-1][1]} from there on'])} (in {unit})."


def _as_good(row: Mapping[str, Any]) -> bool:
    difference = row.get("difference")
    return difference is not None and difference["ci95"][1] >= 0


def _costs(rows: Sequence[Mapping[str, Any]], unit: str) -> dict[str, tuple[float, float]]:
    """(paid once, paid for each request) of every method that is measured in the unit."""
    fixed, keys, scale = COSTS[unit]
    costs = {}
    for row in rows:
        each = next((row[key] for key in keys if row.get(key) is not None), None)
        if row.get(fixed) is not None and each is not None:
            costs[row["method"]] = (row[fixed], each * scale)
    return costs
