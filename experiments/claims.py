"""The lesson's claims: each computed from what was measured, each able to fail."""

import dataclasses
from collections.abc import Callable
from typing import Any

from limbeck.evaluation.scales import higher_is_better, words


@dataclasses.dataclass(frozen=True)
class _Quality:
    """What every method's score in the main metric says of the others; better is lower where lower is better."""

    metric: str
    scores: dict[str, dict[str, Any]]

    def apart(self, better: str, worse: str) -> bool:
        """Whether the two intervals lie apart, the first one on the good side."""
        return self._oriented(better)[0] > self._oriented(worse)[2]

    def reaches_interval(self, name: str, other: str) -> bool:
        return self._oriented(name)[1] >= self._oriented(other)[0]

    def keeps(self, part: float, name: str, whole: str) -> bool:
        """Whether a method has that part of another one's quality; where lower is better, the reciprocal counts."""
        value, reference = self.scores[name]["value"], self.scores[whole]["value"]
        return value >= part * reference if higher_is_better(self.metric) else part * value <= reference

    def keeping(self, who: str, part: float, whose: str) -> str:
        """The statement that `keeps` decides."""
        if higher_is_better(self.metric):
            return f"{who} keeps at least {part:.0%} of {whose} {words(self.metric)}.".replace("%", " %")
        return f"{who} has at most {1 / part:.2f} times {whose} {words(self.metric)}."

    def ratio(self, name: str, whole: str) -> float | None:
        reference = self.scores[whole]["value"]
        return self.scores[name]["value"] / reference if reference else None

    def shown(self, name: str) -> dict[str, Any]:
        score = self.scores[name]
        return {self.metric: score["value"], "ci95": score["ci95"], "n": score["n"]}

    def _oriented(self, name: str) -> tuple[float, float, float]:
        """(worst, value, best) of the interval, as numbers of which more is better."""
        value, (low, high) = self.scores[name]["value"], self.scores[name]["ci95"]
        return (low, value, high) if higher_is_better(self.metric) else (-high, -value, -low)


def lesson_claims(
    metric: str,
    rows: list[dict[str, Any]],
    training: dict[str, dict[str, Any]],
    offline: dict[str, Any],
    probes: dict[str, Any],
    ambiguity: dict[str, Any],
    base_unmoved: bool,
) -> list[dict[str, Any]]:
    """[{name, statement, holds, evidence}]; the ambiguity of names is claimed of the built-in world alone."""
    by = {row["method"]: row for row in rows}
    quality = _Quality(metric, {row["method"]: row["metrics"][metric] for row in rows})
    tuned, student = by["full"], by["distilled"]
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
            quality.apart("full", "zero_shot"),
            base=quality.shown("zero_shot"),
            tuned=quality.shown("full"),
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
            quality.keeping("LoRA", 0.95, "full tuning's"),
            quality.keeps(0.95, "lora", "full"),
            lora=quality.shown("lora"),
            full=quality.shown("full"),
            ratio=quality.ratio("lora", "full"),
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
            quality.keeping("The distilled student", 0.9, "its teacher's"),
            quality.keeps(0.9, "distilled", "full"),
            teacher=quality.shown("full"),
            student=quality.shown("distilled"),
            ratio=quality.ratio("distilled", "full"),
            same_student_without_teacher=quality.shown("student_alone"),
        ),
        claim(
            "prompting_moves_nothing",
            "Prompting left every parameter of the base as it was: one SHA-256 before and after.",
            base_unmoved,
        ),
        claim(
            "examples_help",
            "Few examples beat one or are within its interval, and both beat none, 95 % intervals apart.",
            quality.reaches_interval("few_shot", "one_shot")
            and quality.apart("few_shot", "zero_shot")
            and quality.apart("one_shot", "zero_shot"),
            zero_shot=quality.shown("zero_shot"),
            one_shot=quality.shown("one_shot"),
            few_shot=quality.shown("few_shot"),
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
