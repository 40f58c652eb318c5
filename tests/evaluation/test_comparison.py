import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from limbeck.evaluation.comparison import advice, break_even, break_even_table, cheapest, pareto

small = st.integers(0, 6).map(float)  # small integers tie often
cost = st.integers(0, 60).map(float)


def test_pareto_of_a_drawn_example():
    #         kept     dearer   kept    worse    as good, dearer
    points = [(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8), (4, 0.9)]
    assert pareto(points) == [0, 2]
    assert pareto([]) == []


@given(st.lists(st.tuples(small, small), max_size=12))
def test_pareto_is_what_nothing_beats(points):
    def beats(a, b):
        return a != b and a[0] <= b[0] and a[1] >= b[1]

    front = [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]
    assert pareto(points) == front


@pytest.mark.parametrize(
    ("a", "b", "requests"),
    [
        ((0, 2), (10, 1), 10),  # 2 n = 10 + n
        ((5, 3), (20, 0.5), 6),
        ((10, 2), (4, 1), 0),  # dearer at neither
        ((10, 1), (4, 1), 0),
        ((0, 1), (10, 1), None),
        ((0, 1), (10, 2), None),
        ((10, 1), (0, 2), None),  # cheaper at first, not for good
        ((3, 1), (3, 1), None),
    ],
)
def test_break_even_by_hand(a, b, requests):
    assert break_even(*a, *b) == requests


@given(cost, cost, cost, cost)
@example(0.0, 2.0, 10.0, 1.0)
def test_break_even_is_where_a_simulation_sees_b_stay_cheaper(fixed_a, each_a, fixed_b, each_b):
    requests = break_even(fixed_a, each_a, fixed_b, each_b)
    cheaper = [fixed_b + each_b * n < fixed_a + each_a * n for n in range(200)]
    if requests is None:
        assert not cheaper[-1]
    else:
        first = math.floor(requests) + 1
        assert all(cheaper[first:])
        assert requests == 0 or not any(cheaper[:first])


def row(method, train_seconds, latency_ms_p50, **flops):
    return {"method": method, "train_seconds": train_seconds, "latency_ms_p50": latency_ms_p50, **flops}


ROWS = [
    row("few_shot", 0, 10.0, train_flops=0, flops_per_request=9e6),
    row("full", 40, 6.0, train_flops=6e9, flops_per_request=3e6),
    row("distilled", 60, 2.0),
]


def test_table_counts_seconds_and_flops_in_their_units():
    table = {(row["from"], row["to"], row["unit"]): row for row in break_even_table(ROWS)}
    assert table["few_shot", "full", "seconds"]["requests"] == pytest.approx(10_000)  # 40 s at 4 ms a request
    assert table["full", "distilled", "seconds"]["requests"] == pytest.approx(5_000)
    assert table["few_shot", "full", "FLOPs"]["requests"] == pytest.approx(1_000)
    assert table["full", "distilled", "seconds"]["per_request_from"] == pytest.approx(0.006)


def test_table_leaves_out_what_was_not_measured():
    units = {(row["to"], row["unit"]) for row in break_even_table(ROWS)}
    assert units == {("full", "seconds"), ("distilled", "seconds"), ("full", "FLOPs")}
    assert break_even_table([{"method": "full", "train_seconds": None, "latency_ms_p50": None}]) == []


def test_a_kept_prefix_has_its_own_break_even():
    kept = [{**ROWS[0], "latency_ms_prefix": 7.0, "flops_per_request_prefix": 4e6}, *ROWS[1:]]
    table = {(row["from"], row["to"], row["unit"]): row["requests"] for row in break_even_table(kept)}
    assert table["few_shot", "full", "seconds"] == pytest.approx(10_000)
    assert table["few_shot", "full", "seconds, prefix kept"] == pytest.approx(40_000)  # 40 s at 1 ms a request
    assert table["few_shot", "full", "FLOPs, prefix kept"] == pytest.approx(6_000)
    assert table["full", "distilled", "seconds, prefix kept"] == table["full", "distilled", "seconds"]


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(cost, cost), min_size=1))
@example({"a": (0.0, 1.0), "b": (0.0, 1.0), "c": (0.0, 0.0)})
def test_the_cheapest_is_what_a_search_finds(costs):
    found = cheapest(costs)
    assert found[0][0] == 0 and [at for at, _ in found] == sorted(at for at, _ in found)
    for n in [0.5, 1.5, 3.7, 9.3, 20.1, 55.5, 400.0]:
        method = [method for at, method in found if at <= n][-1]
        fixed, each = costs[method]
        least = min(other + own * n for other, own in costs.values())
        assert fixed + each * n == pytest.approx(least)


def measured(method, value, difference, fixed, latency):
    score = {"value": value, "ci95": [value - 0.02, value + 0.02], "n": 367}
    ends = difference and {"difference": {"value": sum(difference) / 2, "ci95": list(difference), "n": 367}}
    return {**row(method, fixed, latency), "metrics": {"accuracy": score}, **(ends or {})}


def test_advice_is_about_methods_as_good_as_the_best():
    rows = [
        measured("few_shot", 0.94, (-0.03, 0.01), 0, 10.0),
        measured("zero_shot", 0.60, (-0.40, -0.30), 0, 1.0),  # the cheapest by far, and not as good
        measured("full", 0.95, None, 40, 6.0),
        measured("distilled", 0.945, (-0.02, 0.01), 60, 2.0),
    ]
    assert advice(rows, "accuracy") == (
        "Of the 3 methods that 367 test records cannot tell from the best (full, accuracy 0.95), few_shot costs least "
        "up to 7,500 requests, distilled from there on (in seconds)."
    )
    middle = measured("lora", 0.94, (-0.03, 0.01), 10, 8.0)
    assert advice([*rows[:3], middle, rows[3]], "accuracy").endswith(
        "few_shot costs least up to 5,000 requests, lora from there to 8,333, distilled from there on (in seconds)."
    )
    dearer = [measured("few_shot", 0.94, (-0.03, 0.01), 0, 2.0), rows[2]]
    assert advice(dearer, "accuracy") == (
        "Of the 2 methods that 367 test records cannot tell from the best (full, accuracy 0.95), few_shot costs least "
        "however many requests there are (in seconds)."
    )
    assert advice([rows[1], rows[2]], "accuracy") == (
        "Take full (accuracy 0.95): on 367 test records no other method is as good."
    )
    assert advice([rows[1]], "accuracy") == "Take zero_shot (accuracy 0.6)."  # there is nothing to set it beside
    assert advice([{"method": "commonest"}], "accuracy") == ""
    unpriced = [{name: row[name] for name in row if name != "latency_ms_p50"} for row in dearer]
    assert advice(unpriced, "accuracy") == "Take the best (full, accuracy 0.95): what it costs was not measured."
    # By a metric that is no mean over records, such as macro F1, another one may be better record by record.
    better = measured("few_shot", 0.94, (0.01, 0.03), 0, 10.0)
    assert advice([better, rows[2]], "accuracy").startswith("Of the 2 methods")
    lower = [{**each, "metrics": {"mse": each["metrics"]["accuracy"]}} for each in rows]
    assert "the best (zero_shot, mse 0.6)" in advice(lower, "mse")
