"""Every claim of the lesson can fail: a table of what breaks which."""

import copy

import pytest

from limbeck.experiments.claims import lesson_claims


def score(value: float) -> dict:
    return {"metrics": {"accuracy": {"value": value, "ci95": [value - 0.03, value + 0.03], "n": 300}}}


def holding() -> dict:
    """Measurements with which every claim holds."""
    asked = {"latency_ms_p50": 8.0, "params_total": 1000, "params_trainable": 0}
    rows = [
        {"method": "zero_shot", **asked, **score(0.02)},
        {"method": "one_shot", **asked, **score(0.8)},
        {"method": "few_shot", **asked, **score(0.85)},
        {"method": "full", **asked, **score(0.95), "params_trainable": 1000},
        {"method": "lora", **asked, **score(0.94), "params_total": 1100, "params_trainable": 100},
        {"method": "bias_norm", **asked, **score(0.7), "params_trainable": 10},
        {"method": "last_block", **asked, **score(0.9), "params_trainable": 200},
        {"method": "distilled", **asked, **score(0.9), "params_total": 240, "latency_ms_p50": 3.0},
        {"method": "student_alone", **asked, **score(0.5), "params_total": 240, "latency_ms_p50": 3.0},
    ]
    moving = {"leaves_moved": ["a"], "leaves_unmoved": [], "frozen_moved": []}
    full = {**moving, "frozen_leaves": 0, "flops_per_step": 100.0, "optimizer_bytes": 8000}
    part = {**moving, "frozen_leaves": 5, "flops_per_step": 70.0, "optimizer_bytes": 80}
    readings = {
        "fruit": "pome",
        "company": "computers",
        "zero_shot": [["pome", 0.2], ["computers", 0.1], ["red", 0.7]],
        "few_shot_fruit": [["pome", 0.9], ["computers", 0.01]],
        "few_shot_company": [["computers", 0.8], ["pome", 0.1]],
    }
    return {
        "metric": "accuracy",
        "rows": rows,
        "training": {"full": full, "lora": part, "bias_norm": dict(part), "last_block": dict(part)},
        "offline": {
            "speedup": 500.0, "same_answers": True, "compared": 100, "lookup_us_p50": 10.0, "online_ms_p50": 5.0,
        },
        "probes": {
            "rows": [
                {"model": model, "value": 0.5, "ci95": [0.4, 0.6], "n": 60} for model in ("base", "tuned", "distilled")
            ]
        },
        "ambiguity": {"apple": readings},
        "base_unmoved": True,
    }


def verdicts(data: dict) -> dict[str, bool]:
    return {claim["name"]: claim["holds"] for claim in lesson_claims(**data)}


def put(*path):
    *way, value = path

    def change(data):
        for key in way[:-1]:
            data = next(row for row in data if row["method"] == key) if isinstance(data, list) else data[key]
        data[way[-1]] = value

    return change


BREAKS = {
    "tuned_has_as_many_parameters": put("rows", "full", "params_total", 1001),
    "tuned_beats_base": put("rows", "full", "metrics", "accuracy", "ci95", [0.04, 0.99]),
    "every_parameter_moved": put("training", "full", "leaves_unmoved", ["norm/scale"]),
    "peft_moves_a_subset": put("training", "bias_norm", "frozen_moved", ["embed/embedding"]),
    "peft_is_cheaper": put("training", "last_block", "flops_per_step", 101.0),
    "peft_is_nearly_as_good": put("rows", "lora", "metrics", "accuracy", "value", 0.9),
    "distilled_has_fewer_parameters": put("rows", "distilled", "params_total", 251),
    "distilled_is_faster": put("rows", "distilled", "latency_ms_p50", 4.1),
    "distilled_is_close": put("rows", "distilled", "metrics", "accuracy", "value", 0.85),
    "prompting_moves_nothing": put("base_unmoved", False),
    "examples_help": put("rows", "one_shot", "metrics", "accuracy", "ci95", [0.04, 0.9]),
    "offline_is_faster": put("offline", "same_answers", False),
    "bias_is_measured": put("probes", "rows", []),
    "zero_shot_is_ambiguous": put("ambiguity", "apple", "zero_shot", [["pome", 0.9]]),
}


def test_all_claims_hold_where_all_is_well_and_each_has_a_break():
    assert verdicts(holding()) == dict.fromkeys(BREAKS, True)


@pytest.mark.parametrize("name", BREAKS)
def test_a_claim_falls_alone(name):
    data = copy.deepcopy(holding())
    BREAKS[name](data)
    assert [claim for claim, holds in verdicts(data).items() if not holds] == [name]


def as_errors(data: dict) -> dict:
    """The same measurements in a metric of which less is better, one in proportion to 1 / accuracy."""
    for row in data["rows"]:
        score = row["metrics"].pop("accuracy")
        low, high = score["ci95"]
        turned = {"value": 0.4 / score["value"], "ci95": [0.4 / high, 0.4 / max(low, 0.01)]}
        row["metrics"]["mse"] = {**score, **turned}
    return {**data, "metric": "mse"}


def test_the_claims_of_quality_follow_the_metric_s_direction():
    data = as_errors(holding())
    assert verdicts(data) == dict.fromkeys(BREAKS, True)
    for name in ("tuned_beats_base", "peft_is_nearly_as_good", "distilled_is_close", "examples_help"):
        data = holding()
        BREAKS[name](data)
        assert [claim for claim, holds in verdicts(as_errors(data)).items() if not holds] == [name]


def test_the_statement_and_the_evidence_name_the_metric():
    claims = {claim["name"]: claim for claim in lesson_claims(**as_errors(holding()))}
    assert claims["peft_is_nearly_as_good"]["statement"] == "LoRA has at most 1.05 times full tuning's squared error."
    assert set(claims["tuned_beats_base"]["evidence"]["tuned"]) == {"mse", "ci95", "n"}
    claims = {claim["name"]: claim for claim in lesson_claims(**holding())}
    assert claims["distilled_is_close"]["statement"].endswith("at least 90 % of its teacher's accuracy.")


def test_other_tasks_are_not_asked_about_the_world_s_names():
    data = holding()
    data["ambiguity"] = {}
    assert "zero_shot_is_ambiguous" not in verdicts(data)
