"""What is said about a data set that cannot be seen in it: a task.json beside it, or the same keys from Python."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.model.errors import UserError, one_of
from limbeck.tasks.task import KINDS, SPLITS
from limbeck.tasks.template import Template, read_back

Description = Mapping[str, Any]

_KEYS: dict[str, tuple[Any, ...]] = {
    "kind": (str,),  # generation, classification, multi_label or regression
    "input": (str,),  # the field that is asked
    "output": (str,),  # the field that answers
    "template": (Mapping,),  # query, target, separator, instruction: any of them
    "parts": (Mapping,),  # a field -> the template that it is read back by: {"answer": "{steps}\\n#### {final}"}
    "options": (list, tuple, str),  # the answers to choose from, or "from_train"
    "splits": (Mapping,),  # our split -> file in this folder, or split of the data set
    "rationale": (str,),  # the field that says why an answer is right, where a row does
    "group": (str,),  # demonstrations come from the query's own group
    "metric": (str,),
    "tfds": (str,),  # the rows come from this TFDS data set, not from this folder
}
_CALLED = {Mapping: "an object", list: "a list", str: "a string"}


def described(folder: Path) -> Description:
    """What the folder's task.json says, checked; empty when there is none."""
    path = folder / "task.json"
    if not path.is_file():
        return {}
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; it must be one JSON object in UTF-8") from error
    if not isinstance(description, dict):
        raise UserError(f'{path} must be one JSON object, such as {{"input": "text", "output": "label"}}')
    return checked(description, str(path))


def checked(description: Description, place: str) -> Description:
    """The description itself, if each key is known and its value of the right kind; UserError otherwise."""
    for key, value in description.items():
        one_of(f"key in {place}:", key, _KEYS)
        if not isinstance(value, _KEYS[key]):
            kinds = " or ".join(_CALLED[kind] for kind in _KEYS[key] if kind in _CALLED)
            raise UserError(f"{place}: {key!r} is {value!r:.40}: it must be {kinds}")
        if not value:
            raise UserError(f"{place}: {key!r} is empty: fill it in or leave it out")
        parts = value.values() if isinstance(value, Mapping) else () if isinstance(value, str) else value
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{place}: {key!r} must hold strings only, not {value!r:.40}")
    for key in description.get("template", {}):
        one_of(f"template key in {place}:", key, Template.__dataclass_fields__)
    for text in description.get("parts", {}).values():
        read_back(text, "")  # what is wrong with a template is wrong with it whatever is read
    for split in description.get("splits", {}):
        one_of(f"split in {place}:", split, SPLITS)
    if "kind" in description:
        one_of(f"kind in {place}:", description["kind"], KINDS)
    if isinstance(description.get("options"), str):
        one_of(f"options in {place}:", description["options"], ["from_train"])
    return description
