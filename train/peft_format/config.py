"""PEFT's adapter_config.json: what of it changes the computation, checked when read and as short as can be written.

Sources: the configs of PEFT 0.21 and what its layers make of them. Nothing in the file is run, loaded or opened: not
`auto_mapping`, no tokenizer, no path.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from limbeck.model.errors import UserError
from limbeck.model.pretrained.stored_tensor import quoted
from limbeck.train.peft_format.names import OUTSIDE, Site, short_names

Json = dict[str, Any]

KINDS = ("LORA", "IA3", "VERA", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
PROMPTS = KINDS[3:]
_TASKS = ("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION")
# Keys that change what a model computes, where they are set at all.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations
_MOST = 2**20  # ranks and virtual tokens
_LARGEST_ALPHA = 1e30  # still a number in float32, and no NaN


def check_config(json: Json, place: object) -> str:
    """The kind of the adapter. Raises UserError for a kind or an option that this program does not compute."""
    kind = json.get("peft_type")
    if kind not in KINDS:
        raise UserError(f"{place}: peft_type={quoted(kind)} is not supported: one of {', '.join(KINDS)}")
    if json.get("task_type") not in (None, *_TASKS):
        raise UserError(f"{place}: task_type={quoted(json['task_type'])} is not supported: one of {', '.join(_TASKS)}")
    for key in _UNSUPPORTED:
        if json.get(key):
            raise UserError(f"{place}: {key} is set, which changes the computation and is not supported: unset it")
    begun = str(json.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGE_THE_BASE):
        raise UserError(
            f"{place}: init_lora_weights={quoted(begun)} changed the base model's weights: convert the adapter with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if kind in PROMPTS and json.get("num_transformer_submodules") not in (None, 1):
        raise UserError(f"{place}: num_transformer_submodules={json['num_transformer_submodules']!r}: 1 is supported")
    if kind in ("LORA", "VERA"):
        own = f"{kind.lower()}_only"
        if json.get("bias", "none") not in ("none", "all", own):
            raise UserError(f"{place}: bias={quoted(json['bias'])}: one of none, all, {own}")
    return kind


def whole(json: Json, key: str, default: int | None, place: object) -> int:
    """A positive whole number. Raises UserError for anything else."""
    return _rank(json.get(key, default), key, place)


def flag(json: Json, key: str, default: bool, place: object) -> bool:
    """True or false. Raises UserError for anything else."""
    value = json.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{place}: {key}={value!r}: true or false is wanted")
    return default if value is None else value


def names(json: Json, key: str, place: object) -> tuple[str, ...]:
    """A list of names, or none. Raises UserError for anything else."""
    value = json.get(key)
    if not isinstance(value, list | None) or not all(isinstance(name, str) for name in value or ()):
        raise UserError(f"{place}: {key} is not a list of names")
    return tuple(value or ())


def rank_and_scale(json: Json, name: str, place: object) -> tuple[int, float]:
    """A LoRA module's rank, and what its product is multiplied by: alpha / rank, or alpha / sqrt(rank) of rsLoRA.

    The first key of `rank_pattern` or `alpha_pattern` that is the module's name, or the end of it after a dot, counts;
    the keys are regular expressions. Raises UserError for a value that is none.
    """
    rank = _rank(_of_pattern(json, "rank_pattern", name, json.get("r", 8), place), "r", place)
    alpha = _of_pattern(json, "alpha_pattern", name, json.get("lora_alpha", 8), place)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < _LARGEST_ALPHA:
        raise UserError(f"{place}: lora_alpha={alpha!r}: a number is wanted")
    return rank, alpha / (math.sqrt(rank) if flag(json, "use_rslora", False, place) else rank)


def _of_pattern(json: Json, key: str, name: str, default: Any, place: object) -> Any:
    patterns = json.get(key) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{place}: {key} is not an object from names to numbers")
    for pattern, value in patterns.items():
        # What backtracks without end: a repeated group with a repetition in it, or very many repetitions.
        if len(pattern) > 500 or re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 4:
            raise UserError(f"{place}: {key} has {quoted(pattern)}, which is too involved: name the modules instead")
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", name):
                return value
        except re.error as error:
            raise UserError(f"{place}: {key} has {quoted(pattern)}, no regular expression: {error}") from error
    return default


def _rank(value: Any, key: str, place: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
        raise UserError(f"{place}: {key}={value!r}: a whole number from 1 to {_MOST} is wanted")
    return value


def targets(kind: str, chosen: Iterable[Site], every: Iterable[Site]) -> Json:
    """`target_modules`, and `layers_to_transform` where it says the same in fewer names."""
    chosen, every = list(chosen), list(every)
    layers = {site.layer for site in chosen}
    suffixes = {site.suffix for site in chosen}
    same = OUTSIDE not in layers and len(chosen) == len(layers) * len(suffixes)
    some = same and len(layers) < len({site.layer for site in every} - {OUTSIDE})
    if same and some and kind in ("LORA", "VERA"):
        short = short_names(chosen, (site for site in every if site.suffix not in suffixes))
        return {"target_modules": short, "layers_to_transform": sorted(layers)}
    return {"target_modules": short_names(chosen, (site for site in every if site not in chosen))}


def ranks_and_alphas(ranks: Mapping[Site, tuple[int, float]], every: Iterable[Site]) -> Json:
    """`r`, `lora_alpha` and the patterns of what differs, from each module's rank and scale.

    The scale is that of rsLoRA where its alphas are whole numbers and the plain ones are not. What is read again is
    the same scale in float32, bit for bit.
    """
    every = list(every)
    plain = {site: _number(scale * rank) for site, (rank, scale) in ranks.items()}
    rooted = {site: _number(round(scale * math.sqrt(rank))) for site, (rank, scale) in ranks.items()}
    exact = all(_close(alpha / math.sqrt(ranks[site][0]), ranks[site][1]) for site, alpha in rooted.items())
    rooted_better = exact and not all(isinstance(alpha, int) for alpha in plain.values())
    r, r_pattern = _usual({site: rank for site, (rank, _) in ranks.items()}, every)
    alpha, alpha_pattern = _usual(rooted if rooted_better else plain, every)
    return {
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": rooted_better,
        "rank_pattern": r_pattern,
        "alpha_pattern": alpha_pattern,
    }


def _usual(values: Mapping[Site, Any], every: list[Site]) -> tuple[Any, dict[str, Any]]:
    """(the commonest value, short names of the modules that have another)."""
    usual = Counter(values.values()).most_common(1)[0][0]
    pattern = {}
    for value in sorted(set(values.values()) - {usual}):
        having = [site for site in values if values[site] == value]
        pattern |= {name: value for name in short_names(having, (site for site in every if site not in having))}
    return usual, pattern


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _close(value: float, scale: float) -> bool:
    """Whether a scale is the nearest number in float32."""
    return abs(value - scale) <= abs(scale) * 2**-25
