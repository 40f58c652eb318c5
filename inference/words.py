"""What a store holds, in words: its answers, and what its manifest says of them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from limbeck.inference.lookup import NORMALISATIONS

_NAMES = {"normalisation": "spelling", "options": "answers", "dtype": "computed in", "answers": "kind of task"}
_FIRST, _LAST = ("options", "normalisation", "model"), ("dtype", "task", "weights", "tokenizer")
_LISTED = 12  # options that are named one by one
_HEX = frozenset("0123456789abcdef")


def reader(manifest: Mapping[str, str]) -> Callable[[dict[str, Any]], str]:
    """What puts the payloads of a store with this manifest into words: a text, the likeliest option, a number.

    Of equally likely options it is the first; where a query may have several labels, it is those that are likelier
    than not. An embedding is its numbers.
    """
    options, several = options_of(manifest), _settings(manifest).get("answers") == "multi_label"

    def answer(payload: dict[str, Any]) -> str:
        if "text" in payload:
            return payload["text"].strip()
        values = payload["logprobs"] if "logprobs" in payload else payload["values"]
        if options and len(options) == len(values):
            if several and "values" in payload:
                from limbeck.tasks.label_metrics import join_labels  # with numpy, which other look-ups do without

                likely = (option for option, value in zip(options, values, strict=True) if value > 0)
                return join_labels(likely, options)
            return options[max(range(len(values)), key=values.__getitem__)]
        return f"{values[0]:.6g}" if len(values) == 1 else json.dumps(values)

    return answer


def options_of(manifest: Mapping[str, str]) -> list[str] | None:
    """The answers among which a store's task chooses, or None where it writes them."""
    return json.loads(manifest.get("options", "null"))


def about(manifest: Mapping[str, str]) -> list[tuple[str, str]]:
    """A manifest as (name, words): first what people ask first, then the job's settings; digests are cut short."""
    job = {name: value if isinstance(value, str) else _json(value) for name, value in _settings(manifest).items()}
    told = job | dict(manifest)
    between = [name for name in told if name not in (*_FIRST, *_LAST, "job")]
    words = [(name, _words(name, told[name])) for name in (*_FIRST, *between, *_LAST) if name in told]
    return [(_NAMES.get(name, name.replace("_", " ")), value) for name, value in words if value]


def _words(name: str, value: str) -> str:
    if name == "normalisation":
        return NORMALISATIONS.get(value, value)
    parsed = _parsed(value)
    if parsed is None or parsed == [] or parsed == {}:
        return ""
    if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
        more = len(parsed) - _LISTED
        return ", ".join(parsed[:_LISTED]) + (f" and {more} more" if more > 0 else "")
    return f"{value[:12]}…" if len(value) == 64 and _HEX.issuperset(value) else value


def _settings(manifest: Mapping[str, str]) -> dict[str, Any]:
    found = _parsed(manifest.get("job", "{}"))
    return found if isinstance(found, dict) else {}


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
