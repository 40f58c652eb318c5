"""Which layers have a window and which do not turn, as the published configs say it.

Every `Kinds` is a pair: one function reads `Layers` from a config.json, the other writes the keys from a ModelConfig.
`layer_types`, a newer key that names the kind of every layer, wins where a config has it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError

_WINDOW, _FULL = "sliding_attention", "full_attention"


class Layers(NamedTuple):
    """What a config says of its layers."""

    window: int | None
    global_layers: tuple[int, ...]
    unrotated: tuple[int, ...] = ()


class Kinds(NamedTuple):
    """How a family says which layers are of which kind: `read(json, depth)` and `write(config)`."""

    read: Callable[[Mapping[str, Any], int], Layers]
    write: Callable[[ModelConfig], dict[str, Any]]


def whole(json: Mapping[str, Any], key: str, otherwise: int | None = None) -> int | None:
    """A positive whole number of a config, or None where it says null; raises UserError for anything else."""
    value = json.get(key, otherwise)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise UserError(f"{key}={value!r} in the config: a positive whole number is wanted")


def _layers(json: Mapping[str, Any], depth: int, window: int | None, sliding: Iterable[int]) -> Layers:
    """`sliding` are the layers with the window, unless `layer_types` says otherwise."""
    types = json.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != depth or any(kind not in (_WINDOW, _FULL) for kind in types):
            raise UserError(f"layer_types={types}: one of {_WINDOW}, {_FULL} for each of the {depth} layers")
        sliding = [layer for layer, kind in enumerate(types) if kind == _WINDOW]
    sliding = set(sliding) if window else set()
    if not sliding:
        return Layers(None, ())
    return Layers(window, tuple(layer for layer in range(depth) if layer not in sliding))


def _types(config: ModelConfig) -> list[str]:
    return [_FULL if not config.window or i in config.global_layers else _WINDOW for i in range(config.depth)]


def _read_all(json: Mapping[str, Any], depth: int) -> Layers:
    return Layers(whole(json, "sliding_window"), ())


def _read_from(json: Mapping[str, Any], depth: int) -> Layers:
    window = whole(json, "sliding_window", 4096) if json.get("use_sliding_window") else None
    first = 0 if json.get("max_window_layers") == 0 else whole(json, "max_window_layers") or 28
    return _layers(json, depth, window, range(first, depth))


def _write_from(config: ModelConfig) -> dict[str, Any]:
    if not config.window:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.depth}
    first = _types(config).index(_WINDOW)
    return {
        "use_sliding_window": True,
        "sliding_window": config.window,
        "max_window_layers": first,
        "layer_types": _types(config),
    }


def _read_other(json: Mapping[str, Any], depth: int) -> Layers:
    return _layers(json, depth, whole(json, "sliding_window", 4096), range(0, depth, 2))


def _write_other(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.window or config.max_len, "layer_types": _types(config)}


def _read_nth(json: Mapping[str, Any], depth: int) -> Layers:
    every = whole(json, "sliding_window_pattern") or whole(json, "_sliding_window_pattern") or 6
    sliding = [layer for layer in range(depth) if (layer + 1) % every]
    return _layers(json, depth, whole(json, "sliding_window", 4096), sliding)


def _write_nth(config: ModelConfig) -> dict[str, Any]:
    types = _types(config)
    # The old key, for programs that do not know layer_types, where it can say the same.
    every = types.index(_FULL) + 1 if _FULL in types else config.depth + 1
    regular = all((kind == _FULL) == ((layer + 1) % every == 0) for layer, kind in enumerate(types))
    pattern = {"sliding_window_pattern": every} if regular else {}
    return {"sliding_window": config.window or config.max_len, "layer_types": types, **pattern}


def _read_unrotated(json: Mapping[str, Any], depth: int) -> Layers:
    every = whole(json, "no_rope_layer_interval") or 4
    rotates = json.get("no_rope_layers") or [(layer + 1) % every != 0 for layer in range(depth)]
    if not isinstance(rotates, list) or len(rotates) != depth:
        raise UserError(f"no_rope_layers={rotates}: one of 0, 1 for each of the {depth} layers")
    unrotated = tuple(layer for layer in range(depth) if not rotates[layer])
    window = whole(json, "sliding_window") if json.get("use_sliding_window") else None
    return _layers(json, depth, window, unrotated)._replace(unrotated=unrotated)


def _write_unrotated(config: ModelConfig) -> dict[str, Any]:
    return {
        "no_rope_layers": [int(layer not in config.unrotated_layers) for layer in range(config.depth)],
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": _types(config),
    }


NONE = Kinds(lambda json, depth: Layers(None, ()), lambda config: {})
ALL = Kinds(_read_all, lambda config: {"sliding_window": config.window})
FROM_A_LAYER_ON = Kinds(_read_from, _write_from)
EVERY_OTHER = Kinds(_read_other, _write_other)
ALL_BUT_EVERY_NTH = Kinds(_read_nth, _write_nth)
WHERE_UNROTATED = Kinds(_read_unrotated, _write_unrotated)
