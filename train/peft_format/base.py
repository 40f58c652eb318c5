"""The base model's leaves that an adapter has in full: PEFT's `modules_to_save`, trained biases, resized embeddings."""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params, block_path
from limbeck.train.peft_format.config import Json, names
from limbeck.train.peft_format.names import OUTSIDE, Site, put_together, short_names, take_apart
from limbeck.train.peft_format.tensors import BASE, Found, read

_QUANTISED = re.compile(r"kernel_(int8|nf4|scale)")


def read_base(config: ModelConfig, params: Mapping[str, jax.Array], found: Found, json: Json, place: object) -> Params:
    """The base's leaves that the adapter has in full: trained modules and biases; those of other numbers alone."""
    new: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for site, tensors in found.modules.items():
        for leaf in site.leaves:
            suffix = "bias" if leaf == "bias" else "weight"
            for name in (suffix, f"base_layer.{suffix}"):
                if name not in tensors:
                    continue
                shape = (site.fan_out,)
                if leaf in ("kernel", "embedding"):
                    first = leaf == "embedding" or site.input_first
                    shape = (site.fan_in, site.fan_out) if first else (site.fan_out, site.fan_in)
                x = read(tensors[name], shape, place)
                ours = x.T if leaf == "kernel" and not site.input_first else x
                for module, part in zip(site.modules, take_apart(site, ours), strict=True):
                    new.setdefault((module, leaf), {})[site.layer] = np.ascontiguousarray(part)
        for name in tensors.keys() & set(BASE):
            if name.removeprefix("base_layer.") == "bias" and "bias" not in site.leaves:
                raise UserError(f"{place}: {site.name} has a bias, the base model has none there")
    out: Params = {}
    for (module, leaf), layers in new.items():
        path = f"{module}/{leaf}"
        if OUTSIDE in layers:
            here = params.get(path)
            if here is None or not _equal(here, layers[OUTSIDE]):
                out[path] = jnp.asarray(layers[OUTSIDE])
        else:
            out |= _replaced_layers(params, path, layers, place)
    return _tied(config, params, out, json, found)


def _replaced_layers(
    params: Mapping[str, jax.Array], name: str, layers: Mapping[int, np.ndarray], place: object
) -> Params:
    out: Params = {}
    left = set(layers)
    for path, leaf in params.items():
        parsed = block_path(path)
        if parsed is None or parsed[1] != name:
            continue
        start, stop = parsed[0] or (0, leaf.shape[0])
        here = sorted(left & set(range(start, stop)))
        left -= set(here)
        if any(not _equal(leaf[layer - start], layers[layer]) for layer in here):
            stack = [
                layers[layer] if layer in layers else np.asarray(leaf[layer - start]) for layer in range(start, stop)
            ]
            kind = np.result_type(*{x.dtype for x in stack})
            out[path] = jnp.asarray(np.stack([x.astype(kind) for x in stack]))
    if left:
        raise UserError(f"{place}: blocks/{min(left)}/{name} was trained, the base model has no such leaf")
    return out


def _tied(config: ModelConfig, params: Mapping[str, jax.Array], new: Params, json: Json, found: Found) -> Params:
    """What becomes of a head that is the embedding, where the adapter has one of them or both in full.

    A module to be saved is a copy that its twin does not follow, unless the file has both.
    """
    if not config.tied_embedding or config.labels or "head/kernel" in params:
        return new
    if "head/kernel" not in new:
        copied = [site for site, tensors in found.modules.items() if site.modules == ("embed",) and "weight" in tensors]
        listed = any(site.name.endswith(name) for site in copied for name in names(json, "modules_to_save", ""))
        if "embed/embedding" in new and listed:
            new["head/kernel"] = params["embed/embedding"].T
    elif _equal(new.get("embed/embedding", params["embed/embedding"]).T, np.asarray(new["head/kernel"])):
        del new["head/kernel"]
    return new


Changed = set[tuple[str, int, str]]  # (our module, layer, leaf)


@dataclasses.dataclass(frozen=True)
class Leaves:
    """A model's leaves, each layer's by itself, however the stack is cut; `places` says where in `params` they are."""

    params: Mapping[str, jax.Array]
    places: Mapping[tuple[str, int, str], tuple[str, int | None]]

    def get(self, module: str, layer: int, leaf: str) -> np.ndarray | None:
        """One layer's part of a leaf, or None where there is none."""
        path, index = self.places.get((module, layer, leaf), (None, None))
        if path is None:
            return None
        x = np.asarray(self.params[path])
        return x if index is None else x[index]

    def needed(self, module: str, layer: int, leaf: str) -> np.ndarray:
        """The same. Raises UserError where there is none."""
        x = self.get(module, layer, leaf)
        if x is None:
            where = module if layer == OUTSIDE else f"{module} of layer {layer}"
            raise UserError(f"the {leaf} of {where} is needed and not there: give the whole model, not quantised")
        return x


def leaves_of(params: Mapping[str, jax.Array]) -> Leaves:
    """The leaves by module, layer and name."""
    places: dict[tuple[str, int, str], tuple[str, int | None]] = {}
    for path, leaf in params.items():
        parsed = block_path(path)
        module, _, name = (parsed[1] if parsed else path).rpartition("/")
        if parsed is None:
            places[module, OUTSIDE, name] = (path, None)
            continue
        start, stop = parsed[0] or (0, leaf.shape[0])
        places |= {(module, layer, name): (path, layer - start) for layer in range(start, stop)}
    return Leaves(params, places)


def changed_leaves(config: ModelConfig, base: Leaves, new: Leaves) -> Changed:
    """Which of the leaves in `new`, none of them added, are not bit for bit those of `base`.

    Raises UserError for one that neither the base has nor PEFT has a place for.
    """
    changed: Changed = set()
    for key, place in new.places.items():
        old = base.places.get(key)
        if old and new.params[place[0]] is base.params[old[0]] and place[1] == old[1] or _QUANTISED.fullmatch(key[2]):
            continue
        if old is None and key[0] not in ("head", "score"):
            raise UserError(f"PEFT has no place for {place[0]}: save the whole model with save_pretrained")
        before = base.get(*key)
        if before is None and key[0] == "head" and config.tied_embedding:
            before = base.needed("embed", OUTSIDE, "embedding").T
        if before is None or not _equal(new.needed(*key), before):
            changed.add(key)
    return changed


class Whole(NamedTuple):
    """The part of a config, and the tensors, that say which of the base's leaves are other ones."""

    config: Json
    tensors: dict[str, np.ndarray]


def write_base(
    config: ModelConfig, new: Leaves, changed: Changed, every: Mapping[str, Site], adapted: set[Site], kind: str
) -> Whole:
    """The changed leaves: biases alone as such, and other modules whole, with what of them has not changed.

    The head of a classifier is there in any case. A tied head is written beside its embedding, which PEFT would train
    without it. Raises UserError for a module that has an adapter too.
    """
    whole: list[Site] = []
    biases: list[Site] = []
    for site in every.values():
        leaves = {leaf for module, layer, leaf in changed if module in site.modules and layer == site.layer}
        if config.labels and site.modules == ("score",):
            leaves.add("kernel")
        if leaves == {"bias"} and site.dense and kind in ("LORA", "VERA"):
            biases.append(site)
        elif leaves and site in adapted:
            raise UserError(
                f"{site.name} was trained beside its adapter, and PEFT has one or the other: train one of them, or "
                "save the whole model with save_pretrained"
            )
        elif leaves:
            whole.append(site)
    tied = config.tied_embedding and not config.labels and ("head", OUTSIDE, "kernel") not in new.places
    if tied and any(site.modules == ("embed",) for site in whole):
        whole += [site for site in every.values() if site.modules == ("head",)]
    tensors: dict[str, np.ndarray] = {}
    for site in whole:
        for leaf in site.leaves:
            tensors[f"{site.name}.{'bias' if leaf == 'bias' else 'weight'}"] = _theirs(site, leaf, new)
    for site in biases:
        tensors[f"{site.name}{'.base_layer' * (site in adapted)}.bias"] = _theirs(site, "bias", new)
    described: Json = {}
    if whole:
        described["modules_to_save"] = short_names(whole, (site for site in every.values() if site not in whole))
    if biases:
        described["bias"] = f"{kind.lower()}_only" if adapted.issuperset(biases) else "all"
    return Whole(described, tensors)


def _theirs(site: Site, leaf: str, new: Leaves) -> np.ndarray:
    if site.modules == ("head",) and new.get("head", OUTSIDE, "kernel") is None:
        return new.needed("embed", OUTSIDE, "embedding")
    x = put_together(site, [new.needed(module, site.layer, leaf) for module in site.modules])
    return x.T if leaf == "kernel" and not site.input_first else x


def _equal(here: jax.Array | np.ndarray, there: np.ndarray) -> bool:
    """Whether two arrays are the same, their type included."""
    mine = np.asarray(here)
    return mine.dtype == there.dtype and mine.shape == there.shape and mine.tobytes() == there.tobytes()
