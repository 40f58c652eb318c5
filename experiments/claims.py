"""The lesson's claims: each computed from what was measured, each able to fail."""

from collections.abc import Callable
from typing import Any


def lesson_claims(
    rows: list[dict[str, Any]],
    training: dict[str, dict[str, Any]],
    offline: dict[str, Any],
    probes: dict[str, Any],
    ambiguity: dict[str, Any],
    base_unmoved: bool,
) -> list[dict[str, Any]]:
    """[{name, statement, holds, evidence}]; the ambiguity of names is claimed of the built-in world alone."""
    by = {row["method"]: row for row in rows}
    tuned, lora, student = by["full"], by["lora"], by["distilled"]
    efficient = ("lora", "bias_norm", "last_block")

    def claim(name: str, statement: str, holds: bool, **evidence: Any) -> dict[str, Any]:
        return {"name": name, "statement": statement, "holds": bool(holds), "evidence": evidence}

    claims = [
        claim(
            "tuned_has_as_many_parameters",
            "Full fine-tuning leaves as many parameters as there were.",
            tuned["params_total"] == by["zero_shot"]["params_total"],
            base=by["zero_shot"]["params_total"],
            tuned=tuned["params_total"],
        ),
        claim(
            "tuned_beats_base",
            "The fully tuned model answers better than the base it came from, 95 % intervals apart.",
            _above(tuned, by["zero_shot"]),
            base=_score(by["zero_shot"]),
            tuned=_score(tuned),
        ),
        claim(
            "every_parameter_moved",
            "Full fine-tuning changed every weight and bias tensor.",
            not training["full"]["leaves_unmoved"] and not training["full"]["frozen_leaves"],
            moved=len(training["full"]["leaves_moved"]),
            unmoved=training["full"]["leaves_unmoved"],
        ),
        claim(
            "peft_moves_a_subset",
            "Parameter-efficient tuning moved only what it selected; every frozen tensor is bitwise what it was.",
            all(
                not training[name]["frozen_moved"]
                and training[name]["frozen_leaves"]
                and training[name]["leaves_moved"]
                and by[name]["params_trainable"] < by[name]["params_total"]
                for name in efficient
            ),
            share={name: by[name]["params_trainable"] / by[name]["params_total"] for name in efficient},
            frozen_leaves={name: training[name]["frozen_leaves"] for name in efficient},
            frozen_that_moved={name: training[name]["frozen_moved"] for name in efficient},
        ),
        claim(
            "peft_is_cheaper",
            "A parameter-efficient step takes fewer FLOPs and its optimiser fewer bytes than a full one.",
            all(
                training[name]["flops_per_step"] < training["full"]["flops_per_step"]
                and training[name]["optimizer_bytes"] < training["full"]["optimizer_bytes"]
                for name in efficient
            ),
            flops={n: training[n]["flops_per_step"] / training["full"]["flops_per_step"] for n in efficient},
            optimizer={n: training[n]["optimizer_bytes"] / training["full"]["optimizer_bytes"] for n in efficient},
        ),
        claim(
            "peft_is_nearly_as_good",
            "LoRA reaches at least 95 % of full tuning's accuracy.",
            lora["accuracy"] >= 0.95 * tuned["accuracy"],
            lora=_score(lora),
            full=_score(tuned),
            ratio=_ratio(lora["accuracy"], tuned["accuracy"]),
        ),
        claim(
            "distilled_has_fewer_parameters",
            "The distilled student has at most a quarter of its teacher's parameters.",
            student["params_total"] <= tuned["params_total"] / 4,
            ratio=student["params_total"] / tuned["params_total"],
        ),
        claim(
            "distilled_is_faster",
            "The distilled student answers a request at least twice as fast as its teacher.",
            2 * student["latency_ms_p50"] <= tuned["latency_ms_p50"],
            teacher_ms=tuned["latency_ms_p50"],
            student_ms=student["latency_ms_p50"],
            speedup=tuned["latency_ms_p50"] / student["latency_ms_p50"],
        ),
        claim(
            "distilled_is_close",
            "The distilled student keeps at least 90 % of its teacher's accuracy.",
            student["accuracy"] >= 0.9 * tuned["accuracy"],
            teacher=_score(tuned),
            student=_score(student),
            ratio=_ratio(student["accuracy"], tuned["accuracy"]),
            same_student_without_teacher=_score(by["student_alone"]),
        ),
        claim(
            "prompting_moves_nothing",
            "Prompting left every parameter of the base as it was: one SHA-256 before and after.",
            base_unmoved,
        ),
        claim(
            "examples_help",
            "Few examples beat one or are within its interval, and both beat none, 95 % intervals apart.",
            by["few_shot"]["accuracy"] >= by["one_shot"]["ci95"][0]
            and _above(by["few_shot"], by["zero_shot"])
            and _above(by["one_shot"], by["zero_shot"]),
            zero_shot=_score(by["zero_shot"]),
            one_shot=_score(by["one_shot"]),
            few_shot=_score(by["few_shot"]),
        ),
        claim(
            "offline_is_faster",
            "Looking an answer up is at least 100 times faster than computing it, and gives the same answer.",
            offline["speedup"] >= 100 and offline["same_answers"] and offline["compared"] > 0,
            **{k: offline[k] for k in ("lookup_us_p50", "online_ms_p50", "speedup", "same_answers", "compared")},
        ),
        claim(
            "bias_is_measured",
            "Base, tuned and distilled model were probed for bias, each number with its interval.",
            {"base", "tuned", "distilled"} <= {row["model"] for row in probes["rows"]}
            and all(row["n"] > 0 and row["ci95"][0] <= row["value"] <= row["ci95"][1] for row in probes["rows"]),
            rows=len(probes["rows"]),
        ),
    ]
    return claims + [_names_are_ambiguous(ambiguity, claim)] if ambiguity else claims


def _names_are_ambiguous(ambiguity: dict[str, Any], claim: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Over all names that are a fruit and a company: what examples do to the mean probability of either reading."""
    means = {
        (shown, reading): sum(dict(answers[shown]).get(answers[reading], 0.0) for answers in ambiguity.values())
        / len(ambiguity)
        for shown in ("zero_shot", "few_shot_fruit", "few_shot_company")
        for reading in ("fruit", "company")
    }
    return claim(
        "zero_shot_is_ambiguous",
        "After a lone name such as `apple:` no reading has most of the probability; examples of fruits make the "
        "fruit's class the likelier reading, examples of companies the industry.",
        max(means["zero_shot", "fruit"], means["zero_shot", "company"]) < 0.5
        and means["few_shot_fruit", "fruit"] > means["few_shot_fruit", "company"]
        and means["few_shot_company", "company"] > means["few_shot_company", "fruit"]
        and means["few_shot_fruit", "fruit"] > means["zero_shot", "fruit"]
        and means["few_shot_company", "company"] > means["zero_shot", "company"],
        names=sorted(ambiguity),
        **{f"{shown}: {reading}": value for (shown, reading), value in means.items()},
    )


def _above(better: dict[str, Any], worse: dict[str, Any]) -> bool:
    return better["ci95"][0] > worse["ci95"][1]


def _score(row: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy": row["accuracy"], "ci95": row["ci95"], "n": row["n"]}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
