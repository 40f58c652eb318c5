"""The tensors of one of PEFT's adapters as leaves beside, or in the place of, those of a base model."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import Params
from limbeck.model.pretrained.stored_tensor import StoredTensor
from limbeck.train.peft_format.base import read_base
from limbeck.train.peft_format.config import Json, check_config, flag, rank_and_scale, whole
from limbeck.train.peft_format.names import OUTSIDE, Layers, Site, stacked, take_apart
from limbeck.train.peft_format.tensors import Found, adapted, complete, find, float32, read
from limbeck.train.peft_format.vera import read_vera


def read_adapter(
    config: ModelConfig,
    params: Mapping[str, jax.Array],
    json: Json,
    stored: Mapping[str, StoredTensor],
    fused_ranks: Mapping[str, list[int]],
    place: object,
) -> Params:
    """The leaves that the adapter adds to `params` or puts in their place.

    `fused_ranks` says of a fused module whose low-rank factors are several side by side how many ranks each of our
    modules has of them. Raises UserError for an option or a tensor that is unknown, missing or of another shape.
    """
    kind = check_config(json, place)
    found = find(config, kind, stored, place)
    if kind == "LORA":
        added = _lora(found, json, fused_ranks, place)
    elif kind == "VERA":
        added = read_vera(found, json, place)
    elif kind == "IA3":
        added = _ia3(found, place)
    elif kind == "PREFIX_TUNING":
        added = _prefix(config, _prompt(found, json, config.depth * 2 * config.num_kv_heads * config.head_dim, place))
    else:
        prompt_PD = _prompt(found, json, config.width, place)
        added = {"prompt": {OUTSIDE: {"embedding": float32(prompt_PD)}}}
    out = {path: jnp.asarray(leaf) for path, leaf in stacked(added, config.depth).items()}
    return out | read_base(config, params, found, json, place)


def _lora(found: Found, json: Json, fused_ranks: Mapping[str, list[int]], place: object) -> Layers:
    added: Layers = {}
    dora, biased = flag(json, "use_dora", False, place), flag(json, "lora_bias", False, place)
    for site, tensors in adapted(found, place, embedding=True).items():
        rank, factor = rank_and_scale(json, site.name, place)
        scale = np.asarray(factor, np.float32)
        if not site.dense:
            embedding = _lora_embedding(site, tensors, rank, json, place)
            added["embed"] = {OUTSIDE: {**embedding, "lora_scale": scale.reshape(1)}}
            continue
        magnitude, bias = ("lora_magnitude_vector",) * dora, ("lora_B.bias",) * biased
        complete(tensors, ("lora_A.weight", "lora_B.weight", *magnitude, *bias), site, place)
        a = read(tensors["lora_A.weight"], (rank, site.fan_in), place).T
        b = take_apart(site, read(tensors["lora_B.weight"], (site.fan_out, rank), place).T)
        outputs = {
            leaf: take_apart(site, read(tensors[suffix], (site.fan_out,), place))
            for leaf, names in (("lora_magnitude", magnitude), ("lora_bias", bias))
            for suffix in names
        }
        ranks = _own_ranks(site, fused_ranks.get(site.name), b, place)
        for index, (module, mine) in enumerate(zip(site.modules, ranks, strict=True)):
            if mine.stop > mine.start:
                leaves = {"lora_a": float32(a[:, mine]), "lora_b": float32(b[index][mine]), "lora_scale": scale}
                leaves |= {leaf: float32(parts[index]) for leaf, parts in outputs.items()}
                added.setdefault(module, {})[site.layer] = leaves
    return added


def _own_ranks(site: Site, ranks: list[int] | None, b: list[np.ndarray], place: object) -> list[slice]:
    """Which of the ranks belong to each of our modules: all to all, or as the folder says and the zeros confirm."""
    rank = b[0].shape[0]
    if ranks is None:
        return [slice(0, rank)] * len(site.modules)
    if len(ranks) != len(site.modules) or min(ranks) < 0 or sum(ranks) != rank:
        raise UserError(f"{place}: the manifest divides the {rank} ranks of {site.name} as {ranks}: write it again")
    stops = np.cumsum(ranks)
    own = [slice(int(stop) - count, int(stop)) for count, stop in zip(ranks, stops, strict=True)]
    for mine, factor in zip(own, b, strict=True):
        if factor[: mine.start].any() or factor[mine.stop :].any():
            raise UserError(f"{place}: {site.name} is not divided as the manifest says: remove it, or write it again")
    return own


def _lora_embedding(
    site: Site, tensors: Mapping[str, StoredTensor], rank: int, json: Json, place: object
) -> dict[str, np.ndarray]:
    if flag(json, "use_dora", False, place):
        raise UserError(f"{place}: use_dora with an adapter of {site.name} is not supported: train it without")
    complete(tensors, ("lora_embedding_A", "lora_embedding_B"), site, place)
    a = read(tensors["lora_embedding_A"], (rank, site.fan_in), place).T
    b = read(tensors["lora_embedding_B"], (site.fan_out, rank), place).T
    return {"lora_a": float32(a), "lora_b": float32(b)}


def _ia3(found: Found, place: object) -> Layers:
    added: Layers = {}
    for site, tensors in adapted(found, place).items():
        complete(tensors, ("ia3_l",), site, place)
        on_input = tensors["ia3_l"].shape == (1, site.fan_in)
        shape = (1, site.fan_in) if on_input else (site.fan_out, 1)
        flat = float32(read(tensors["ia3_l"], shape, place).reshape(-1))
        parts = [flat] * len(site.modules) if on_input else take_apart(site, flat)
        for module, part in zip(site.modules, parts, strict=True):
            added.setdefault(module, {})[site.layer] = {"ia3_in" if on_input else "ia3_out": part}
    return added


def _prompt(found: Found, json: Json, width: int, place: object) -> np.ndarray:
    if "prompt_embeddings" not in found.shared:
        raise UserError(f"{place}: prompt_embeddings is missing")
    count = whole(json, "num_virtual_tokens", None, place)
    return read(found.shared["prompt_embeddings"], (count, width), place)


def _prefix(config: ModelConfig, flat: np.ndarray) -> Layers:
    by_layer = float32(flat).reshape(len(flat), config.depth, 2, config.num_kv_heads, config.head_dim)
    leaves = {"prefix_k": by_layer[:, :, 0], "prefix_v": by_layer[:, :, 1]}
    return {"attn": {layer: {name: x[:, layer] for name, x in leaves.items()} for layer in range(config.depth)}}
