"""The teacher in the loss: live and frozen beside the student's parameters, or what a cache holds of it in the rows.

Distillation is the one training step with another loss function and the selection `STUDENT`. Where the teacher's
distribution comes from is said by the arrays of a batch:

- `teacher_ids_BTK`, `teacher_logprobs_BTK`: a cached one; no teacher is among the parameters (see `sources.cached`);
- `teacher_tokens_BS`, `teacher_positions_BS`, `teacher_segments_BS`, `teacher_at_BT`: the live teacher reads rows of
  its own, and of the student's token t its distribution is that at its place `teacher_at_BT`, or none at -1;
- none of these: the live teacher reads the student's rows.

`temperature_B` and `hard_weight_B`, equal in all rows, take the place of the config's numbers (see `schedules.py`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from limbeck.distill.checks import check_heads, check_rows, check_settings
from limbeck.distill.chunked import chunked_loss
from limbeck.distill.config import DistilConfig
from limbeck.distill.features import Matching
from limbeck.distill.loss import divergence
from limbeck.distill.sources import Teacher, cached, live
from limbeck.distill.values import Texts, label_loss, number_loss
from limbeck.model.chosen import filled_outside
from limbeck.model.config import ModelConfig
from limbeck.model.params import Params
from limbeck.model.quantize import quantize
from limbeck.model.transformer import captured, head_kernel, hidden
from limbeck.tasks.task import Kind
from limbeck.train.config import Base
from limbeck.train.loss import Batch, LossFn, Metrics
from limbeck.train.select import Selection

_BESIDE = re.compile(r"(teacher\d*|matcher)/")  # what is no part of the student


def student_only(selection: Selection) -> Selection:
    """The same patterns, kept from matching a teacher's leaves."""
    return Selection(tuple(rf"(?!teacher\d*/)(?:{pattern})" for pattern in selection.patterns))


_DEFAULT = DistilConfig()
STUDENT = student_only(Selection())  # all of the student, and the projections that matching features learns


def with_teacher(
    student: Mapping[str, jax.Array],
    teacher: Mapping[str, jax.Array] | Sequence[Mapping[str, jax.Array]],
    base: Base = "as_is",
) -> Params:
    """All models in one dict, the teacher's paths under `teacher/`, those of several under `teacher0/`, `teacher1/`...

    A teacher only runs forward, so it may be kept in bfloat16 or with its dense kernels in int8 or NF4 (`base`).
    """
    teachers = [teacher] if isinstance(teacher, Mapping) else list(teacher)
    params = dict(student)
    for prefix, each in zip(_prefixes(len(teachers)), teachers, strict=True):
        params |= {prefix + path: leaf for path, leaf in _kept(each, base).items()}
    return params


def without_teacher(params: Mapping[str, jax.Array]) -> Params:
    """The student alone."""
    return {path: leaf for path, leaf in params.items() if not _BESIDE.match(path)}


def distillation_loss(
    student: ModelConfig,
    teacher: ModelConfig | Sequence[ModelConfig] | None,
    config: DistilConfig = _DEFAULT,
    *,
    kind: Kind = "generation",
    matching: Matching | None = None,
    cached_vocab_size: int | None = None,
) -> LossFn:
    """hard_weight * the loss to the targets + (1 - hard_weight) * the divergence from the teacher (see `loss.py`).

    `teacher` is one model, several (their probabilities are averaged by `teacher_weights`), or None where all rows have
    a cached one. `kind` says what the heads give: "generation" is the vocabulary's, "classification" one of the labels,
    "multi_label" a yes or no for each (the divergence is between these, summed over labels), "regression" a number
    (the divergence is the squared distance to the teacher's, and has no objective and no temperature). `matching` adds
    a loss between hidden states or attention (see `features.py`). Its terms are means over all real tokens, the others
    over targets, by which portions of a batch are weighed: with it a batch is to be run whole (`accumulate` of 1).

    Models of one tokenizer may pad their vocabularies differently: the distributions are compared over the first
    tokens, as many as the smallest vocabulary has, and logits beyond are left out of both softmaxes. That of a cached
    teacher is `cached_vocab_size`, None where it is no smaller than the student's. That the tokenizer is one is for the
    caller to see to. The cross-entropy to the targets is over all of the student's vocabulary.

    Metrics: `loss`, `cross_entropy` (`squared_error` of a regression), `divergence`, `weight`, and those of `matching`.
    Raises UserError for heads and settings that do not fit one another.
    """
    teachers = (teacher,) if isinstance(teacher, ModelConfig) else tuple(teacher or ())
    check_heads(student, teachers, kind)
    check_settings(len(teachers), config, kind, matching is not None)
    weights = config.teacher_weights or (1.0,) * len(teachers)
    shares = [weight / sum(weights) for weight in weights]
    of_tokens = divergence(config)
    sizes = [model.vocab_size for model in (student, *teachers)]
    vocab_size = len(student.labels) or min([*sizes, cached_vocab_size or student.vocab_size])
    names = matching.names if matching else ()

    def loss_fn(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        arrays = {name: jnp.asarray(array) for name, array in batch.items()}
        check_rows(arrays, bool(teachers), config, matching is not None)
        temperature = arrays["temperature_B"][0] if "temperature_B" in arrays else config.temperature
        hard_weight = arrays["hard_weight_B"][0] if "hard_weight_B" in arrays else config.hard_weight
        own = filled_outside(without_teacher(params))
        hidden_BTD, seen = _read(student, own, arrays, "", names)
        weights_N = _flat(arrays["weights_BT"])
        from_cache = "teacher_ids_BTK" in arrays
        theirs = _Taught((), jnp.ones(weights_N.shape, bool), {})
        if not from_cache:
            theirs = _taught(params, teachers, shares, arrays, names)
        if kind in ("generation", "classification"):
            if from_cache and config.cache:
                entries = (_flat(arrays["teacher_ids_BTK"]), _flat(arrays["teacher_logprobs_BTK"]))
                source = cached(of_tokens, config.cache, *entries, vocab_size, temperature)
            else:
                source = live(of_tokens, theirs.teachers, theirs.taught_N, vocab_size, temperature)
            loss, metrics = chunked_loss(
                source,
                _flat(hidden_BTD),
                head_kernel(own),
                _flat(arrays["targets_BT"]),
                weights_N,
                temperature=temperature,
                hard_weight=hard_weight,
                cap=_cap(student),
            )
        else:
            texts = Texts(_flat(hidden_BTD), head_kernel(own), _flat(arrays["values_BTC"]), weights_N)
            if kind == "multi_label":
                loss, metrics = label_loss(of_tokens, *theirs[:2], texts, temperature, hard_weight)
            else:
                loss, metrics = number_loss(*theirs[:2], texts, hard_weight)
        if matching is not None:
            more, of_matching = matching.loss(params, seen, theirs.captured, batch)
            loss, metrics = loss + more, {**metrics, **of_matching}
        return loss, {"loss": loss, "weight": weights_N.sum(), **metrics}

    return loss_fn


class _Taught(NamedTuple):
    """What live teachers say of each token, which tokens they say anything of, and what of the last was captured."""

    teachers: Sequence[Teacher]
    taught_N: jax.Array
    captured: dict[str, jax.Array]


def _taught(
    params: Params,
    configs: Sequence[ModelConfig],
    shares: Sequence[float],
    arrays: Mapping[str, jax.Array],
    names: tuple[str, ...],
) -> _Taught:
    at_BT = arrays.get("teacher_at_BT")
    found, seen = [], {}
    for prefix, config, share in zip(_prefixes(len(configs)), configs, shares, strict=True):
        own = {path.removeprefix(prefix): leaf for path, leaf in params.items() if path.startswith(prefix)}
        hidden_BTD, seen = _read(config, own, arrays, "" if at_BT is None else "teacher_", names)
        if at_BT is not None:
            hidden_BTD = jnp.take_along_axis(hidden_BTD, jnp.maximum(at_BT, 0)[..., None], axis=1)
        found.append(Teacher(_flat(hidden_BTD), head_kernel(own), _cap(config), share))
    taught_BT = jnp.ones(arrays["weights_BT"].shape, bool) if at_BT is None else at_BT >= 0
    return _Taught(found, taught_BT.reshape(-1), seen)


def _read(
    config: ModelConfig, params: Params, arrays: Mapping[str, jax.Array], whose: str, names: tuple[str, ...]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(hidden_BTD, what of `names` was captured) of the rows that are the student's ("") or the teacher's own."""
    letters = "BS" if whose else "BT"
    tokens_BT, positions_BT, segments_BT = (
        arrays[f"{whose}{name}_{letters}"] for name in ("tokens", "positions", "segments")
    )
    if names:
        return captured(config, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, names=names)
    return hidden(config, params, tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)[0], {}


def _flat(x_BT: jax.Array) -> jax.Array:
    return x_BT.reshape(-1, *x_BT.shape[2:])


def _cap(config: ModelConfig) -> float | None:
    return None if config.labels else config.logit_softcap


def _prefixes(count: int) -> list[str]:
    return ["teacher/"] if count == 1 else [f"teacher{index}/" for index in range(count)]


def _kept(teacher: Mapping[str, jax.Array], base: Base) -> Mapping[str, jax.Array]:
    if base == "as_is":
        return teacher
    if base == "bfloat16":
        return {path: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for path, x in teacher.items()}
    return quantize(teacher, base)
