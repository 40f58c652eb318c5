"""Where a module of ours is in the modules that PEFT wraps, and the fused outputs of several taken apart.

PEFT knows a module by its dotted name in the model that transformers builds (`model.layers.3.self_attn.q_proj`). Some
families keep several of our modules in one of theirs, side by side along the output (`attn.c_attn` of GPT-2).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import block_path
from limbeck.model.pretrained.config_json import write_config
from limbeck.model.pretrained.families import FAMILIES, Family
from limbeck.model.transformer import shapes

Layers = dict[str, dict[int, dict[str, np.ndarray]]]  # module, layer, leaf; what is outside of the layers is in OUTSIDE
OUTSIDE = -1
_HEAD = "lm_head"  # in the memory of transformers 5, whatever it is in a family's files


class Site(NamedTuple):
    """One module of theirs; `modules` are ours, with how many outputs each has in `sizes`.

    `leaves` are the base model's (`kernel`, `bias`, `scale`, `embedding`), and `suffix` is the name inside the layer.
    """

    name: str
    suffix: str
    layer: int  # OUTSIDE of the layers: -1
    modules: tuple[str, ...]
    sizes: tuple[int, ...]
    fan_in: int  # 0 of a norm
    leaves: tuple[str, ...]
    input_first: bool  # the kernel is stored [in, out]
    heads: int  # of so many heads one after the other each has an output of all modules; 0 for whole modules in a row

    @property
    def fan_out(self) -> int:
        return sum(self.sizes)

    @property
    def dense(self) -> bool:
        """Whether an adapter can stand beside it: a dense module inside of a layer."""
        return self.layer != OUTSIDE and "kernel" in self.leaves


def family_of(config: ModelConfig) -> Family:
    """The family whose names the model goes by. Raises UserError where no published family can say the model."""
    name = config.family or write_config(dataclasses.replace(config, dtype="float32"))["model_type"]
    if name not in FAMILIES:
        raise UserError(
            "no published family can say this model, so its modules have no names that PEFT knows: "
            "save the whole model with save_pretrained"
        )
    return FAMILIES[name]


def sites(config: ModelConfig) -> dict[str, Site]:
    """Every module of theirs by its name. Raises UserError as `family_of` does."""
    family = family_of(config)
    inside: dict[str, dict[str, tuple[int, ...]]] = {}
    outside: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, leaf in shapes(config).items():
        parsed = block_path(path)
        module, _, name = (parsed[1] if parsed else path).rpartition("/")
        (inside if parsed else outside).setdefault(module, {})[name] = leaf.shape[1:] if parsed else leaf.shape
    if not config.labels:  # also where it is tied: another head can be put in its place
        outside.setdefault("head", {"kernel": (config.width, config.vocab_size)})
    found: dict[str, Site] = {}
    for group, suffix in {**family.modules, "head": _HEAD}.items():
        modules, first = tuple(group.split("+")), group.partition("+")[0]
        for where, layers in ((inside, range(config.depth)), (outside, (OUTSIDE,))):
            if first not in where:
                continue
            leaves = where[first]
            kernel = leaves.get("kernel") or leaves.get("embedding") or (0,)
            sizes = tuple(next(iter(where[module].values()))[-1] for module in modules)
            fused_by_head = config.num_heads if family.fused_by_head and len(modules) > 1 else 0
            for layer in layers:
                prefix = "" if first in ("head", "score") else family.prefix
                stem = prefix if layer == OUTSIDE else prefix + family.layers.format(layer)
                site = Site(
                    stem + suffix,
                    suffix,
                    layer,
                    modules,
                    sizes,
                    kernel[0],
                    tuple(sorted(leaves, reverse=True)),
                    "kernel" in leaves and family.input_first and layer != OUTSIDE,
                    fused_by_head,
                )
                found[site.name] = site
    return found


def with_other_names(by_name: Mapping[str, Site], family: Family) -> dict[str, Site]:
    """The same, also without the prefix that a model without a head has not, and the head as the family's files say."""
    other = {name.removeprefix(family.prefix): site for name, site in by_name.items()} | dict(by_name)
    return other | ({family.modules["head"]: by_name[_HEAD]} if _HEAD in by_name else {})


def take_apart(site: Site, x: np.ndarray) -> list[np.ndarray]:
    """What each of our modules has of `x`, whose last axis is their outputs."""
    if site.heads:
        by_head = x.reshape(*x.shape[:-1], site.heads, len(site.modules), -1)
        return [by_head[..., slot, :].reshape(*x.shape[:-1], -1) for slot in range(len(site.modules))]
    return np.split(x, np.cumsum(site.sizes)[:-1], -1)


def put_together(site: Site, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `take_apart`."""
    if site.heads:
        parts = [part.reshape(*part.shape[:-1], site.heads, -1) for part in parts]
        together = np.stack(parts, -2)
        return together.reshape(*together.shape[:-3], -1)
    return np.concatenate(parts, -1)


def by_layer(params: Mapping[str, jax.Array], paths: Iterable[str]) -> Layers:
    """The leaves at `paths`, each layer's by itself, however the stack is cut."""
    found: Layers = {}
    for path in paths:
        parsed = block_path(path)
        if parsed is None:
            module, _, leaf = path.rpartition("/")
            found.setdefault(module, {}).setdefault(OUTSIDE, {})[leaf] = np.asarray(params[path])
            continue
        stack = np.asarray(params[path])
        start = parsed[0][0] if parsed[0] else 0
        module, _, leaf = parsed[1].rpartition("/")
        for layer, x in enumerate(stack, start):
            found.setdefault(module, {}).setdefault(layer, {})[leaf] = x
    return found


def stacked(found: Layers, depth: int) -> dict[str, np.ndarray]:
    """The inverse of `by_layer`: neighbouring layers with leaves of the same shapes are one leaf."""
    out: dict[str, np.ndarray] = {}
    for module, layers in found.items():
        if OUTSIDE in layers:
            out |= {f"{module}/{leaf}": x for leaf, x in layers[OUTSIDE].items()}
        numbers = sorted(layer for layer in layers if layer != OUTSIDE)
        like = {layer: {(leaf, x.shape, x.dtype) for leaf, x in layers[layer].items()} for layer in numbers}
        while numbers:
            start, stop = numbers[0], numbers[0] + 1
            while stop in layers and like[stop] == like[start]:
                stop += 1
            stem = "blocks" if (start, stop) == (0, depth) else f"blocks/{start}:{stop}"
            for leaf in layers[start]:
                out[f"{stem}/{module}/{leaf}"] = np.stack([layers[layer][leaf] for layer in range(start, stop)])
            numbers = [layer for layer in numbers if layer >= stop]
    return out


def short_names(chosen: Sequence[Site], others: Iterable[Site]) -> list[str]:
    """Names that end the names of the chosen modules and of none of `others`, as few as can be."""
    avoid = [site.name for site in others]
    found: dict[str, None] = {}
    for site in chosen:
        parts = site.name.split(".")
        names = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        found[next((name for name in names if not any(other.endswith(name) for other in avoid)), site.name)] = None
    return list(found)
