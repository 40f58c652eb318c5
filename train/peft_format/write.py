"""A model's added and trained leaves as the config and the tensors of one of PEFT's adapters."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import block_path
from limbeck.model.prefix import fold_prefix, fold_prompt
from limbeck.train.peft_format.base import Changed, Leaves, changed_leaves, leaves_of, write_base
from limbeck.train.peft_format.config import PROMPTS, Json, ranks_and_alphas, targets
from limbeck.train.peft_format.names import OUTSIDE, Layers, Site, by_layer, family_of, put_together, short_names, sites
from limbeck.train.peft_format.tensors import SHARED
from limbeck.train.peft_format.vera import write_vera

_KIND_OF = {
    **{f"lora_{leaf}": "LORA" for leaf in ("a", "b", "scale", "bias", "magnitude")},
    **{f"vera_{leaf}": "VERA" for leaf in "db"},
    **{f"ia3_{leaf}": "IA3" for leaf in ("in", "out")},
    **{f"prefix_{leaf}": "PREFIX_TUNING" for leaf in "kv"},
}
_OUTSIDE_KINDS = {"vera": "VERA", "prompt": "PROMPT_TUNING", "prefix": "PREFIX_TUNING"}
_BARE = ("prompt_embeddings", *SHARED)  # tensors that belong to no module


class Written(NamedTuple):
    """A config, the tensors by name, and how the ranks of fused modules are divided among ours."""

    config: Json
    tensors: dict[str, np.ndarray]
    fused_ranks: dict[str, list[int]]


def kind_of_leaf(path: str) -> str | None:
    """Which of PEFT's kinds an added leaf belongs to; None of a leaf of the base model, or one that PEFT has not."""
    parsed = block_path(path)
    module, _, leaf = (parsed[1] if parsed else path).rpartition("/")
    if leaf in _KIND_OF and (parsed or module == "embed"):
        return _KIND_OF[leaf]
    return None if parsed else _OUTSIDE_KINDS.get(module.partition("/")[0])


def write_adapter(config: ModelConfig, base: Mapping[str, jax.Array], params: Mapping[str, jax.Array]) -> Written:
    """The adapter that makes the model `base` what `params` are.

    Raises UserError for leaves that PEFT has no way to say, no added ones at all, or those of two methods.
    """
    params = fold_prompt(fold_prefix(params))
    added = {path: kind for path in params if (kind := kind_of_leaf(path))}
    kinds = sorted(set(added.values()))
    if len(kinds) != 1:
        has = f"has leaves of {' and '.join(kinds)}" if kinds else "has no added leaf that PEFT knows"
        raise UserError(f"the model {has}: an adapter folder holds one of LoRA, VeRA, (IA)3, a prompt or a prefix")
    kind, found, every = kinds[0], by_layer(params, added), sites(config)
    before = leaves_of(base)
    after = leaves_of({path: leaf for path, leaf in params.items() if path not in added})
    changed = changed_leaves(config, before, after)
    adapted: dict[Site, list[dict[str, np.ndarray] | None]] = {}
    for site in every.values():
        leaves = [found.get(module, {}).get(site.layer) for module in site.modules]
        if kind not in PROMPTS and any(leaves) and (site.dense or site.modules == ("embed",)):
            adapted[site] = leaves
    if kind == "LORA":
        own = _lora(adapted, every, before, after, changed)
    elif kind == "VERA":
        vectors = {site: leaves for site, leaves in adapted.items() if site.dense}
        own = Written(*write_vera(vectors, found["vera"][OUTSIDE]), {})
    elif kind == "IA3":
        own = _ia3(adapted, every)
    else:
        own = _virtual(config, kind, found)
    whole = write_base(config, after, changed, every, set(adapted), kind)
    described: Json = {
        "peft_type": kind,
        "task_type": "SEQ_CLS" if config.labels else "CAUSAL_LM",
        "inference_mode": True,
        **own.config,
        **whole.config,
    }
    if adapted:
        described |= targets(kind, adapted, every.values()) | {"fan_in_fan_out": family_of(config).input_first}
    start = "base_model." if kind in PROMPTS else "base_model.model."
    tensors = own.tensors | whole.tensors
    return Written(
        described,
        {name if name in _BARE else start + name: np.ascontiguousarray(x) for name, x in tensors.items()},
        own.fused_ranks,
    )


def _lora(
    adapted: Mapping[Site, Sequence[dict[str, np.ndarray] | None]],
    every: Mapping[str, Site],
    before: Leaves,
    after: Leaves,
    changed: Changed,
) -> Written:
    given = [leaves for parts in adapted.values() for leaves in parts if leaves]
    dora = [site for site, parts in adapted.items() if any(leaves and "lora_magnitude" in leaves for leaves in parts)]
    biased = any("lora_bias" in leaves for leaves in given)
    if dora and (len(dora) < len(adapted) or any("lora_magnitude" not in leaves for leaves in given)):
        raise UserError("some LoRA modules have a magnitude (DoRA) and some have none: PEFT has it for all or for none")
    ranks: dict[Site, tuple[int, float]] = {}
    tensors: dict[str, np.ndarray] = {}
    fused_ranks: dict[str, list[int]] = {}
    for site, parts in adapted.items():
        if not site.dense:
            leaves = parts[0] or {}
            ranks[site] = (leaves["lora_a"].shape[1], leaves["lora_scale"].item())
            tensors[f"{site.name}.lora_embedding_A"] = leaves["lora_a"].T
            tensors[f"{site.name}.lora_embedding_B"] = leaves["lora_b"].T
            continue
        own = [
            _with_difference(leaves, module, site.layer, before, after)
            if leaves and (module, site.layer, "kernel") in changed
            else leaves
            for module, leaves in zip(site.modules, parts, strict=True)
        ]
        changed -= {(module, site.layer, "kernel") for module, leaves in zip(site.modules, own, strict=True) if leaves}
        a, b, scale, counts = _side_by_side(site, own)
        ranks[site] = (a.shape[1], scale)
        tensors[f"{site.name}.lora_A.weight"], tensors[f"{site.name}.lora_B.weight"] = a.T, b.T
        if counts:
            fused_ranks[site.name] = counts
        if biased:
            filled = [_bias_of(leaves, size, scale) for leaves, size in zip(own, site.sizes, strict=True)]
            tensors[f"{site.name}.lora_B.bias"] = put_together(site, filled)
        if dora:
            filled = [
                leaves["lora_magnitude"] if leaves else _norms(before.needed(module, site.layer, "kernel"))
                for module, leaves in zip(site.modules, own, strict=True)
            ]
            tensors[f"{site.name}.lora_magnitude_vector"] = put_together(site, filled)
    described = ranks_and_alphas(ranks, every.values()) | {"use_dora": bool(dora), "lora_bias": biased}
    return Written(described, tensors, fused_ranks)


def _side_by_side(
    site: Site, own: Sequence[dict[str, np.ndarray] | None]
) -> tuple[np.ndarray, np.ndarray, float, list[int]]:
    """(a [in, R], b [R, out], scale, each module's share of R) of a module of theirs.

    Where all of ours have the same a, theirs is that, and the share is left out. Otherwise theirs has the ranks of all,
    and b is zero where another's are.
    """
    having = [leaves for leaves in own if leaves]
    first = having[0]
    scales = {leaves["lora_scale"].item() for leaves in having}
    if len(having) == len(own) and len(scales) == 1 and all(_same(first["lora_a"], x["lora_a"]) for x in having):
        return first["lora_a"], put_together(site, [leaves["lora_b"] for leaves in having]), scales.pop(), []
    # One scale for all: of several, 1, and each b takes its own.
    factors = [np.float32(1) if len(scales) == 1 or not leaves else leaves["lora_scale"] for leaves in own]
    counts = [leaves["lora_a"].shape[1] if leaves else 0 for leaves in own]
    rows: list[np.ndarray] = []
    for index, (leaves, factor) in enumerate(zip(own, factors, strict=True)):
        if leaves:
            blank = [np.zeros((counts[index], size), np.float32) for size in site.sizes]
            blank[index] = leaves["lora_b"] * factor
            rows.append(put_together(site, blank))
    a = np.concatenate([leaves["lora_a"] for leaves in having], 1)
    return a, np.concatenate(rows), scales.pop() if len(scales) == 1 else 1.0, counts


def _bias_of(leaves: Mapping[str, np.ndarray] | None, size: int, scale: float) -> np.ndarray:
    """The bias of a module's b, for the scale that its product has in the file."""
    if not leaves or "lora_bias" not in leaves:
        return np.zeros(size, np.float32)
    own = leaves["lora_scale"]
    return leaves["lora_bias"] if float(own) == scale else leaves["lora_bias"] * (own / np.float32(scale))


def _with_difference(
    leaves: Mapping[str, np.ndarray],
    module: str,
    layer: int,
    base: Leaves,
    new: Leaves,
) -> dict[str, np.ndarray]:
    """LoRA leaves of twice the rank: what was taken out of the kernel when they began (PiSSA) is put into them.

    Raises UserError where the kernel has changed by more than a product of their rank.
    """
    rank, scale = leaves["lora_a"].shape[1], leaves["lora_scale"].item()
    before, after = (where.needed(module, layer, "kernel") for where in (base, new))
    difference = after.astype(np.float64) - before.astype(np.float64)
    left, singular, right = np.linalg.svd(difference, full_matrices=False)
    root = np.sqrt(singular[:rank])
    a, b = left[:, :rank] * root, root[:, None] * right[:rank]
    precision = float(jax.numpy.finfo(after.dtype).eps) * np.abs(before.astype(np.float32)).max()
    if scale <= 0 or np.abs(a @ b - difference).max() > 4 * precision:
        raise UserError(
            f"the kernel of {module} in layer {layer} was trained beside its adapter, which PEFT cannot say: "
            "train one of them, or save the whole model with save_pretrained"
        )
    return {
        **leaves,
        "lora_a": np.concatenate([leaves["lora_a"], a.astype(np.float32)], 1),
        "lora_b": np.concatenate([leaves["lora_b"], (b / scale).astype(np.float32)], 0),
    }


def _ia3(adapted: Mapping[Site, Sequence[dict[str, np.ndarray] | None]], every: Mapping[str, Site]) -> Written:
    tensors: dict[str, np.ndarray] = {}
    on_input: list[Site] = []
    for site, parts in adapted.items():
        kinds = {leaf for leaves in parts for leaf in leaves or ()}
        factors = [leaves.get("ia3_in") if leaves else None for leaves in parts]
        if (
            len(kinds) > 1
            or "ia3_in" in kinds
            and not all(x is not None and factors[0] is not None and _same(x, factors[0]) for x in factors)
        ):
            raise UserError(
                f"{site.name} has factors for its inputs and its outputs, or other ones for a part of it: PEFT has one "
                "vector for the whole module"
            )
        if factors[0] is not None:
            on_input.append(site)
            tensors[f"{site.name}.ia3_l"] = factors[0][None]
        else:
            ones = [np.ones(size, np.float32) for size in site.sizes]
            filled = [leaves["ia3_out"] if leaves else one for leaves, one in zip(parts, ones, strict=True)]
            tensors[f"{site.name}.ia3_l"] = put_together(site, filled)[:, None]
    others = [site for site in every.values() if site not in on_input]
    return Written({"feedforward_modules": short_names(on_input, others)}, tensors, {})


def _virtual(config: ModelConfig, kind: str, found: Layers) -> Written:
    """A prompt, or a prefix as [P, L * 2 * K * H]."""
    described: Json = {
        "num_layers": config.depth,
        "num_transformer_submodules": 1,
        "token_dim": config.width,
        "num_attention_heads": config.num_heads,
    }
    if kind == "PROMPT_TUNING":
        prompt = found["prompt"][OUTSIDE]["embedding"]
        described |= {"prompt_tuning_init": "RANDOM", "num_virtual_tokens": len(prompt)}
        return Written(described, {"prompt_embeddings": prompt}, {})
    layers = found["attn"]
    if len(layers) < config.depth or len({x["prefix_k"].shape for x in layers.values()}) > 1:
        raise UserError("some layers have no prefix, or one of another length: PEFT has one length for all layers")
    both = [np.stack([layers[layer][f"prefix_{name}"] for name in "kv"], 1) for layer in range(config.depth)]
    flat = np.stack(both, 1).reshape(both[0].shape[0], -1)
    described |= {
        "num_virtual_tokens": len(flat),
        "num_attention_heads": config.num_kv_heads,
        "token_dim": config.num_kv_heads * config.head_dim,
        "encoder_hidden_size": config.width,
        "prefix_projection": False,
    }
    return Written(described, {"prompt_embeddings": flat}, {})


def _norms(kernel: np.ndarray) -> np.ndarray:
    """The magnitude with which DoRA changes nothing."""
    return np.linalg.norm(kernel.astype(np.float32), axis=0)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
