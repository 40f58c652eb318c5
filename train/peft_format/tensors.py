"""The tensors of one of PEFT's adapters, each under its own module, and of the shape that it has to be."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError, nearest
from limbeck.model.pretrained.stored_tensor import StoredTensor, quoted
from limbeck.train.peft_format.config import PROMPTS
from limbeck.train.peft_format.names import Site, family_of, sites, with_other_names

BASE = ("base_layer.weight", "base_layer.bias", "weight", "bias")
_SUFFIXES = {
    "LORA": (
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_magnitude_vector",
        "lora_embedding_A",
        "lora_embedding_B",
    ),
    "VERA": ("vera_lambda_b", "vera_lambda_d"),
    "IA3": ("ia3_l",),
}
SHARED = ("base_model.vera_A", "base_model.vera_B")


class Found(NamedTuple):
    """What the file has: each module's tensors by their last names, and those that belong to no module."""

    modules: dict[Site, dict[str, StoredTensor]]
    shared: dict[str, StoredTensor]


def find(config: ModelConfig, kind: str, stored: Mapping[str, StoredTensor], place: object) -> Found:
    """The tensors by module. Raises UserError for one that this model and kind of adapter have no place for."""
    legal = with_other_names(sites(config), family_of(config))
    start = "base_model." if kind in PROMPTS else "base_model.model."
    found = Found({}, {})
    for name, tensor in stored.items():
        if name == "prompt_embeddings" and kind in PROMPTS or name in SHARED and kind == "VERA":
            found.shared[name] = tensor
            continue
        suffix = next((s for s in (*_SUFFIXES.get(kind, ()), *BASE) if name.endswith(f".{s}")), None)
        site = legal.get(name[len(start) : -len(suffix) - 1]) if suffix and name.startswith(start) else None
        if site is None or suffix is None:
            if name.endswith("score.weight"):
                raise UserError(
                    f"{place}: {quoted(name)} answers in {tensor.shape[0]} labels, the model has no head for labels: "
                    "give it one with add_head"
                )
            hint = nearest(name.removeprefix(start), legal) if name.startswith(start) else ""
            raise UserError(f"{place}: {quoted(name)} is no tensor of such an adapter of this model{hint}")
        if suffix in found.modules.setdefault(site, {}):
            raise UserError(f"{place}: {quoted(name)} is there twice, under two names: keep one")
        found.modules[site][suffix] = tensor
    return found


def read(tensor: StoredTensor, shape: tuple[int, ...], place: object) -> np.ndarray:
    """A tensor of the shape that it must have for this base model."""
    if tensor.shape != shape:
        raise UserError(
            f"{place}: {tensor.name} has shape {tensor.shape}, this base model and config need {shape}: "
            "the adapter belongs to another base model"
        )
    return tensor.read()


def float32(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.astype(np.float32))


def complete(tensors: Mapping[str, StoredTensor], wanted: tuple[str, ...], site: Site, place: object) -> None:
    """Raises UserError when one of the `wanted` is missing, or another is there that is not the base's."""
    for suffix in wanted:
        if suffix not in tensors:
            raise UserError(f"{place}: {site.name} has {', '.join(sorted(tensors))} but no {suffix}")
    for suffix in tensors.keys() - set(wanted) - set(BASE):
        raise UserError(f"{place}: {site.name} has {suffix}, which its config does not ask for")


def adapted(found: Found, place: object, *, embedding: bool = False) -> dict[Site, dict[str, StoredTensor]]:
    """The modules with tensors that are not the base's; they must be dense and inside of the layers."""
    having = {site: tensors for site, tensors in found.modules.items() if tensors.keys() - set(BASE)}
    for site in having:
        if not site.dense and not (embedding and site.modules == ("embed",)):
            raise UserError(
                f"{place}: {site.name} has an adapter: only the dense modules of the layers and, with LoRA, the "
                "token embedding can have one"
            )
    return having
