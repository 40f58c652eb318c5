"""Rotary positions as published configs say them: in keys of their own, or in `rope_parameters` as newer ones do."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, one_of
from limbeck.model.pretrained.families import Family, Json
from limbeck.model.rope import Rope

_NAMES = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn", "longrope": "longrope"}
_NEED_ORIGINAL = ("llama3", "yarn", "longrope")


def read_ropes(family: Family, json: Json, max_len: int) -> tuple[Rope, Rope | None]:
    """(rotary positions of all layers, those of the layers with a window or None where they are the same).

    Raises UserError for a scaling that is not known or lacks a number.
    """
    given = json.get("rope_scaling") or json.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"rope_scaling={given!r}: an object with rope_type, factor and the like, or null")
    theta, share = family.rope_keys
    outer = {
        "rope_theta": json.get("rope_theta", json.get(theta, family.rope_theta)),
        "partial_rotary_factor": json.get("partial_rotary_factor", json.get(share, family.rope_share)),
    }
    local = None
    if family.local_rope_theta is not None:
        local = {"rope_theta": json.get("rope_local_base_freq", family.local_rope_theta)}
    if isinstance(given.get("full_attention"), Mapping):
        given, local = given["full_attention"], given.get("sliding_attention")
    if (original := json.get("original_max_position_embeddings")) is not None:
        given = {**given, "original_max_position_embeddings": original}
    rope = _read(family, {**outer, **given}, max_len)
    local_rope = _read(family, {**outer, **local}, max_len) if local else None
    return rope, None if local_rope == rope else local_rope


def _read(family: Family, given: Mapping[str, Any], max_len: int) -> Rope:
    def number(key: str, otherwise: Any = None) -> Any:
        value = given.get(key)
        value = otherwise if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{key}={value!r} in the config's rotary positions: a number is wanted")
        return value

    def factors(key: str) -> tuple[float, ...]:
        values = given.get(key)
        if not isinstance(values, list) or not all(isinstance(x, (int, float)) and x > 0 for x in values):
            raise UserError(f"{key}={values!r} in the config's rotary positions: a list of positive numbers is wanted")
        return tuple(float(x) for x in values)

    kind = str(given.get("rope_type") or given.get("type") or "default")
    kind = _NAMES[one_of("rope_type", family.rope_types.get(kind, kind), _NAMES)]
    rope = Rope(number("rope_theta"), number("partial_rotary_factor", 1.0))
    if kind == "none":
        return rope
    original = number("original_max_position_embeddings", max_len) if kind in _NEED_ORIGINAL else 0
    rope = dataclasses.replace(rope, scaling=kind, original_max_len=original)
    if kind == "longrope":
        short, long = factors("short_factor"), factors("long_factor")
        rope = dataclasses.replace(rope, short_factor=short, long_factor=long)
        stretch = number("factor", max_len / original)
        return dataclasses.replace(rope, attention_factor=number("attention_factor", _longrope(stretch, original)))
    rope = dataclasses.replace(rope, factor=number("factor", max_len / original if original else None))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        return dataclasses.replace(rope, low_frequency=low, high_frequency=high)
    if kind == "yarn":
        default = _yarn(rope.factor, given.get("mscale"), given.get("mscale_all_dim"))
        return dataclasses.replace(
            rope,
            beta_fast=number("beta_fast", 32.0),
            beta_slow=number("beta_slow", 1.0),
            truncate=given.get("truncate") is not False,
            attention_factor=number("attention_factor", default),
        )
    return rope


def write_ropes(family: Family, config: ModelConfig) -> Json:
    """The keys for a model's rotary positions. What they cannot say, `read_ropes` will not give back."""
    rope, (theta, share) = config.rope, family.rope_keys
    json: Json = {theta: rope.theta}
    if rope.share != family.rope_share:
        json[share] = rope.share
    if config.local_rope and family.local_rope_theta is not None:
        json["rope_local_base_freq"] = config.local_rope.theta
    if rope.scaling == "none":
        return {**json, "rope_scaling": None}
    name = next(theirs for theirs, ours in _NAMES.items() if ours == rope.scaling)
    given: Json = {"rope_type": name, "type": name}
    if rope.scaling != "longrope":
        given["factor"] = rope.factor
    if rope.scaling == "llama3":
        given |= {"low_freq_factor": rope.low_frequency, "high_freq_factor": rope.high_frequency}
    if rope.scaling == "yarn":
        given |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        given |= {} if rope.truncate else {"truncate": False}
        given |= _unless(rope.attention_factor, _yarn(rope.factor))
    if rope.scaling == "longrope":
        given |= {"short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
        default = _longrope(config.max_len / rope.original_max_len, rope.original_max_len)
        given |= _unless(rope.attention_factor, default)
    if "original_max_position_embeddings" in family.omitted:
        json["original_max_position_embeddings"] = rope.original_max_len
    elif rope.scaling in _NEED_ORIGINAL:
        given["original_max_position_embeddings"] = rope.original_max_len
    return {**json, "rope_scaling": given}


def _unless(factor: float, default: float) -> Json:
    return {} if factor == default else {"attention_factor": factor}


def _yarn(factor: float, mscale: float | None = None, mscale_all: float | None = None) -> float:
    """Peng et al. 2023, arXiv 2309.00071, equation 22; the two scales are DeepSeek's."""

    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    return grown(mscale) / grown(mscale_all) if mscale and mscale_all else grown(1.0)


def _longrope(factor: float, original: int) -> float:
    """Ding et al. 2024, arXiv 2402.13753: what the scores grow by with the length of the text."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
