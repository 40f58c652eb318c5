"""A config.json as a ModelConfig and back: in the words of a published family, or in our own."""

import dataclasses
import math
import sys
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from limbeck.model.config import DEEPEST, ModelConfig
from limbeck.model.errors import UserError, nearest, one_of
from limbeck.model.pretrained.families import FAMILIES, Json
from limbeck.model.pretrained.layer_kinds import whole
from limbeck.model.pretrained.ropes import read_ropes, write_ropes
from limbeck.model.rope import Rope

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_TYPES = get_type_hints(ModelConfig)
_MAY_BE_NULL = ("num_kv_heads", "head_dim", "mlp_dim")  # they follow from others
_CLASSIFIER = "ForSequenceClassification"
_OWN = "limbeck"  # the model_type of a model that no published family can say
_MOST_LABELS = 10**6
TOKENIZER_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of the tokenizer, in a config.json all the same


def read_config(json: Json) -> ModelConfig:
    """The ModelConfig that a config.json describes.

    Raises UserError for an architecture that is not known, a key that is missing or of the wrong type, and a setting
    that changes the computation in a way that is not supported.
    """
    name = json.get("model_type")
    if name == _OWN:
        return _read_own(json)
    if not isinstance(name, str) or name not in FAMILIES:
        known = f"known are {', '.join(FAMILIES)}{nearest(str(name), FAMILIES)}"
        raise UserError(f"unknown model_type {name!r}: {known}")
    if json.get("quantization_config"):
        raise UserError("the weights are quantised (quantization_config): save the model in a float type first")
    family = FAMILIES[name]
    json = {**family.omitted, **json}
    for key, value in family.unsupported.items():
        if json.get(key, value) != value:
            raise UserError(f"{key}={json[key]}: only {value} can be computed")
    fields: dict[str, Any] = {ours: _value(json, ours, theirs) for ours, theirs in family.keys.items()}
    if fields.get("num_kv_heads") is None:
        fields["num_kv_heads"] = fields["num_heads"]
    if fields.get("head_dim") is None:
        fields["head_dim"] = fields["width"] // fields["num_heads"]
    if fields["mlp_dim"] is None:
        fields["mlp_dim"] = 4 * fields["width"]
    fields["activation"] = _ACTIVATIONS[one_of("activation", fields["activation"], _ACTIVATIONS)]
    if scale := fields.get("attention_scale"):
        fields["attention_scale"] = None if scale == fields["head_dim"] else scale**-0.5
    fields |= {ours: value(fields) if callable(value) else value for ours, value in family.fixed.items()}
    if fields["depth"] > DEEPEST:
        raise UserError(f"{family.keys['depth']}={fields['depth']} in the config: at most {DEEPEST}")
    window, global_layers, unrotated = family.kinds.read(json, fields["depth"])
    fields |= {"window": window, "global_layers": global_layers, "unrotated_layers": unrotated}
    if fields.get("positions", "rope") == "rope":
        fields["rope"], fields["local_rope"] = read_ropes(family, json, fields["max_len"])
    fields["dtype"] = json.get("dtype") or json.get("torch_dtype") or "float32"
    if f"{_CLASSIFIER}'" in str(json.get("architectures")):
        fields["labels"] = _labels(json)
    return ModelConfig(**fields, family=name)


def write_config(config: ModelConfig) -> Json:
    """The config.json of the model's own family, else of the first that can say what the config says, else our own.

    The keys are those of published checkpoints (`rope_theta`, `rope_scaling`, `torch_dtype`), which older and newer
    programs read.
    """
    for name in dict.fromkeys((config.family, *FAMILIES)):
        if name not in FAMILIES:
            continue
        json = _write(config, name)
        try:
            again = read_config(json)
        except UserError:
            continue
        if again == dataclasses.replace(config, scan=again.scan, remat=again.remat):
            return json
    return write_own(config)


def write_own(config: ModelConfig) -> Json:
    """The config.json that no other program reads, for a model that no published family can say."""
    json = {"model_type": _OWN, **dataclasses.asdict(config)}
    del json["family"]
    return json


def _write(config: ModelConfig, name: str) -> Json:
    family = FAMILIES[name]
    architecture = family.architecture
    if config.labels:
        architecture = architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + _CLASSIFIER
    json: Json = {"architectures": [architecture], "model_type": name}
    for ours, theirs in family.keys.items():
        json[theirs] = getattr(config, ours)
    if "attention_scale" in family.keys:
        scale = config.attention_scale
        scalar = config.head_dim if scale is None else scale**-2
        # The square of an inverse root is a rounding error away from the number that it was.
        json["query_pre_attn_scalar"] = round(scalar) if math.isclose(scalar, round(scalar)) else scalar
    activation = family.keys["activation"]
    names = [theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation]
    usual = family.omitted[activation]
    json[activation] = usual if usual in names else names[0]
    json |= family.unsupported
    json |= family.kinds.write(config)
    if config.positions == "rope":
        json |= write_ropes(family, config)
    if config.labels:
        json["id2label"] = {str(index): label for index, label in enumerate(config.labels)}
        json["label2id"] = {label: index for index, label in enumerate(config.labels)}
        json |= {"problem_type": "regression"} if len(config.labels) == 1 else {}
    return {**json, "torch_dtype": config.dtype}


def _value(json: Json, ours: str, theirs: str) -> Any:
    """The value of a key, checked against the type of our field; null only where it means something."""
    if theirs not in json:
        raise UserError(f"the config has no {theirs!r}{nearest(theirs, json)}")
    value, hint = json[theirs], _TYPES[ours]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is bool:
        right, wanted = isinstance(value, bool), "true or false"
    elif hint is int:
        right, wanted = number and isinstance(value, int) and 0 < value < 2**31, "a positive whole number"
    elif hint in (float, float | None):
        right, wanted = number and 0 < value < sys.float_info.max, "a positive number"
    else:
        right, wanted = isinstance(value, str), "a name"
    if not right and not (value is None and (ours in _MAY_BE_NULL or hint == float | None)):
        raise UserError(f"{theirs}={value!r} in the config: {wanted} is wanted")
    return _real(hint, value)


def _real(hint: Any, value: Any) -> Any:
    """A whole number as a float where a float is meant: 2 ** 31 would overflow the integers of an accelerator."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < sys.float_info.max
    return float(value) if whole and hint in (float, float | None) else value


def _labels(json: Json) -> tuple[str, ...]:
    names = json.get("id2label")
    if not names:
        return tuple(f"LABEL_{index}" for index in range(min(whole(json, "num_labels") or 2, _MOST_LABELS)))
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(len(names))}:
        raise UserError(f"id2label={names!r}: a name for each of 0, 1, 2 and so on")
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _read_own(json: Json) -> ModelConfig:
    fields = {name: value for name, value in json.items() if name not in ("model_type", *TOKENIZER_KEYS)}
    for name in ("rope", "local_rope"):
        if fields.get(name) is not None:
            fields[name] = _from_json(Rope, fields[name])
    if "family" in fields:
        raise UserError("unknown field 'family': a model of a family has that as its model_type")
    return _from_json(ModelConfig, fields)


def _from_json(kind: type, fields: Any) -> Any:
    """A config dataclass from its fields, with lists as tuples."""
    legal = [field.name for field in dataclasses.fields(kind)]
    for name in fields if isinstance(fields, dict) else ():
        if name not in legal:
            raise UserError(f"unknown field {name!r}{nearest(name, legal)}")
    hints = get_type_hints(kind)
    try:
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        made = kind(**{name: _real(hints[name], value) for name, value in plain.items()})
    except (TypeError, AttributeError) as error:
        raise UserError(f"a field is missing or of the wrong type: {error}") from error
    for name, hint in hints.items():
        if not _fits(hint, getattr(made, name)):
            raise UserError(f"{name}={getattr(made, name)!r}: {getattr(hint, '__name__', hint)} is wanted")
    return made


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type as our config classes spell them."""
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(arm, value) for arm in arms)
    if origin is Literal:
        return value in arms
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arms[0], item) for item in value)
    if hint in (int, float):
        huge = isinstance(value, int) and hint is float and abs(value) > sys.float_info.max
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and not huge
    return isinstance(value, hint)
