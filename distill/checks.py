"""What cannot be distilled: heads, settings and rows that do not fit one another, each refused with its reason."""

from collections.abc import Mapping, Sequence

import jax

from limbeck.distill.config import TEMPERATURE_ONE, DistilConfig
from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.tasks.task import Kind


def check_heads(student: ModelConfig, teachers: Sequence[ModelConfig], kind: Kind) -> None:
    """Raises UserError for a head of another kind, and for one whose outputs are not the student's in their order."""
    for who, model in (("student", student), *(("teacher", teacher) for teacher in teachers)):
        if kind == "generation" and model.labels:
            raise UserError(
                f"kind=generation compares next tokens, but the {who}'s head gives {_listed(model.labels)}: say the "
                "task's kind, or give a model with the vocabulary's head"
            )
        if kind != "generation" and not model.labels:
            raise UserError(f"kind={kind}: the {who} has no head for it: add one (train.heads.add_head)")
        if kind == "regression" and len(model.labels) != 1:
            raise UserError(f"kind=regression: the {who}'s head gives {_listed(model.labels)}, and a number is one")
        if kind in ("classification", "multi_label") and model.labels != student.labels:
            raise UserError(
                f"the teacher's head gives {_listed(model.labels)}, the student's {_listed(student.labels)}: make the "
                "student's head with the teacher's labels, in their order"
            )


def check_settings(teachers: int, config: DistilConfig, kind: Kind, matching: bool) -> None:
    """Raises UserError for settings that the teachers, or what the heads give, have no place for."""
    if not teachers and config.cache is None:
        raise UserError("there is no teacher: give its config, or say what the rows have of it, such as cache=topk")
    if config.teacher_weights and teachers and len(config.teacher_weights) != teachers:
        raise UserError(f"teacher_weights={config.teacher_weights}: there are {teachers} teachers, give each a weight")
    if config.cache and kind in ("multi_label", "regression"):
        raise UserError(f"cache={config.cache} holds distributions, and a head of kind={kind} gives none: leave it out")
    if kind == "regression" and (config.objective != "forward_kl" or {config.temperature, _end(config)} != {1}):
        raise UserError(
            f"objective={config.objective}, temperature={config.temperature} to {_end(config)}: "
            "of a number only the squared distance is taken, so leave these alone"
        )
    if matching and teachers != 1:
        raise UserError(f"features are matched with one live teacher, and there are {teachers}: give one")


def check_rows(arrays: Mapping[str, jax.Array], live: bool, config: DistilConfig, matching: bool) -> None:
    """Raises UserError for rows with another source of the teacher's distribution than the settings are made for."""
    from_cache, paired = "teacher_ids_BTK" in arrays, "teacher_at_BT" in arrays
    if from_cache and config.cache is None:
        raise UserError("the rows hold a cached teacher (teacher_ids_BTK): say what of it, such as cache=topk")
    if not from_cache and not live:
        raise UserError("the rows hold no cached teacher (teacher_ids_BTK), and no live one was given: give either")
    if from_cache and config.cache != "topk" and "temperature_B" in arrays:
        raise UserError(
            f"temperature_B with cache={config.cache}: {TEMPERATURE_ONE[str(config.cache)]}: leave the schedule out, "
            "or choose cache=topk"
        )
    if matching and (from_cache or paired):
        what = "a cached teacher has no features" if from_cache else "the teacher reads other rows than the student"
        raise UserError(f"features cannot be matched where {what}: leave the matching out, or give plain rows")


def _end(config: DistilConfig) -> float:
    return config.temperature if config.temperature_end is None else config.temperature_end


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:6])
    return f"{shown} and {len(labels) - 6} more" if len(labels) > 6 else shown or "the next token"
