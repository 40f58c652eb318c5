"""Leaves that are added beside a model's kernels, and folding them back in.

What the model computes with them is in `model/added.py`. A new model equals the old one until the added leaves move.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from limbeck.model.added import column_norms
from limbeck.model.errors import UserError, one_of
from limbeck.model.params import Params, block_path, cut, first_match, join, runs

LowRankStart = Literal["gaussian", "orthogonal", "pissa"]

_LOW_RANK = ("lora_a", "lora_b", "lora_scale", "lora_bias", "lora_magnitude")
_ADDED = (*_LOW_RANK, "vera_d", "vera_b", "ia3_in", "ia3_out")


class _Place(NamedTuple):
    """A kernel [L, in, out] of consecutive layers that an adapter goes beside."""

    stem: str
    kernel: jax.Array


def add_lora(
    params: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    rank: int,
    alpha: float | None = None,
    targets: str = r"blocks/attn/(q|v)/kernel",
    start: LowRankStart = "gaussian",
    stabilized: bool = False,
    magnitude: bool = False,
) -> Params:
    """The parameters with `lora_a` [L, in, R], `lora_b` [L, R, out] and `lora_scale` [L] beside each target kernel.

    Hu et al. 2021 (arXiv 2106.09685): a is random, b is zero, the scale is alpha / rank (alpha defaults to rank).
    `start="orthogonal"`: the columns of a are orthonormal. `"pissa"` (Meng et al. 2024, arXiv 2404.02948): a and b are
    the kernel's principal part, which is taken out of the frozen kernel. `stabilized`: the scale is alpha / sqrt(rank)
    (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732). `magnitude`: DoRA (Liu et al. 2024, arXiv 2402.09353), the columns'
    norms are `lora_magnitude` [L, out]. `targets` is a pattern over leaves or layers. Raises UserError for a rank that
    no target kernel has, a target that matches nothing, or one that is no dense module's kernel.
    """
    one_of("start", start, ("gaussian", "orthogonal", "pissa"))
    _check_rank(rank)
    scale = (rank if alpha is None else alpha) / (rank**0.5 if stabilized else rank)
    if start == "pissa" and scale <= 0:
        raise UserError(f"alpha={alpha}: pissa divides the kernel's principal part by the scale, which must be above 0")
    out = dict(params)
    for place in list(_places(params, targets)):
        layers, fan_in, fan_out = place.kernel.shape
        if start != "gaussian" and rank > min(fan_in, fan_out):
            raise UserError(f"rank={rank}: {place.stem}kernel is [{fan_in}, {fan_out}], too small for start={start!r}")
        key, leaf_key = jax.random.split(key)
        a = jax.random.normal(leaf_key, (layers, fan_in, rank))
        b = jnp.zeros((layers, rank, fan_out))
        if start == "gaussian":
            a = fan_in**-0.5 * a
        elif start == "orthogonal":
            a = jnp.linalg.qr(a)[0]
        else:
            kernel = place.kernel.astype(jnp.float32)
            left, singular, right = jnp.linalg.svd(kernel, full_matrices=False)
            root = jnp.sqrt(singular[:, :rank] / scale)
            a, b = left[:, :, :rank] * root[:, None], root[:, :, None] * right[:, :rank]
            out = _replaced(out, place, (kernel - scale * a @ b).astype(place.kernel.dtype))
        leaves = {"lora_a": a, "lora_b": b, "lora_scale": jnp.full((layers,), scale)}
        if magnitude:
            leaves["lora_magnitude"] = column_norms(out.get(place.stem + "kernel", place.kernel), leaves)
        out |= {place.stem + name: leaf for name, leaf in leaves.items()}
    return out


def add_vera(
    params: Mapping[str, jax.Array], key: jax.Array, *, rank: int, targets: str = r"blocks/attn/(q|v)/kernel"
) -> Params:
    """The parameters with two vectors beside each target kernel, and two random matrices that all of them share.

    Kopiczko et al. 2023 (arXiv 2310.11454): `vera_d` [L, R] begins at 0.1, `vera_b` [L, out] at 0; `vera/a` [in, R]
    and `vera/p` [R, out] of the largest target stay as they are, uniform as Kaiming's. Raises UserError as `add_lora`.
    """
    _check_rank(rank)
    out, places = dict(params), list(_places(params, targets))
    for place in places:
        layers, _, fan_out = place.kernel.shape
        out[f"{place.stem}vera_d"] = jnp.full((layers, rank), 0.1)
        out[f"{place.stem}vera_b"] = jnp.zeros((layers, fan_out))
    widest, longest = (max(place.kernel.shape[axis] for place in places) for axis in (1, 2))
    for name, shape, leaf_key in zip("ap", ((widest, rank), (rank, longest)), jax.random.split(key), strict=True):
        bound = (3 / shape[0]) ** 0.5
        out[f"vera/{name}"] = jax.random.uniform(leaf_key, shape, minval=-bound, maxval=bound)
    return out


def add_ia3(
    params: Mapping[str, jax.Array],
    *,
    outputs: str = r"blocks/attn/(k|v)/kernel",
    inputs: str | None = r"blocks/mlp/down/kernel",
) -> Params:
    """The parameters with a factor, at first 1, for each output of some modules and each input of others.

    Liu et al. 2022 (arXiv 2205.05638): keys, values, and what goes into the MLP's second product: `ia3_out` [L, out],
    `ia3_in` [L, in]. Raises UserError for a pattern that matches nothing or leaves that are no dense module's kernel.
    """
    out = dict(params)
    for place in _places(params, outputs):
        out[f"{place.stem}ia3_out"] = jnp.ones((place.kernel.shape[0], place.kernel.shape[2]))
    for place in _places(params, inputs) if inputs else ():
        out[f"{place.stem}ia3_in"] = jnp.ones(place.kernel.shape[:2])
    return out


def add_bottleneck(
    params: Mapping[str, jax.Array], key: jax.Array, *, rank: int, halves: tuple[str, ...] = ("attn", "mlp")
) -> Params:
    """The parameters with a small network of R units after the named halves of each block, at first adding nothing.

    After both halves: Houlsby et al. 2019 (arXiv 1902.00751); after the MLP alone: Pfeiffer et al. 2021 (arXiv
    2005.00247). Leaves: `blocks/attn_adapter/{down,up}/{kernel,bias}`, and of `mlp_adapter` likewise.
    """
    _check_rank(rank)
    layers, width = runs(params)[-1].stop, params["embed/embedding"].shape[1]
    out = dict(params)
    for half in halves:
        key, leaf_key = jax.random.split(key)
        out[f"blocks/{half}_adapter/down/kernel"] = width**-0.5 * jax.random.normal(leaf_key, (layers, width, rank))
        out[f"blocks/{half}_adapter/down/bias"] = jnp.zeros((layers, rank))
        out[f"blocks/{half}_adapter/up/kernel"] = jnp.zeros((layers, rank, width))
        out[f"blocks/{half}_adapter/up/bias"] = jnp.zeros((layers, width))
    return out


def add_biases(params: Mapping[str, jax.Array]) -> Params:
    """The parameters with `bias` [L, out], at first 0, beside every dense kernel of the blocks that has none."""
    out = dict(params)
    for place in _places(params, r"blocks/(attn|mlp)/\w+/kernel"):
        out.setdefault(f"{place.stem}bias", jnp.zeros((place.kernel.shape[0], place.kernel.shape[2])))
    return out


def fold_lora(params: Mapping[str, jax.Array]) -> Params:
    """The plain model that computes the same as one with LoRA, DoRA, VeRA or (IA)3 leaves.

    Worked out in float32 and cast once. Leaves that no kernel can take in (bottlenecks, prompts) stay as they are, and
    so do those beside an embedding that is the head as well, for the head is without them. Raises UserError for an
    adapter's bias beside a module that has none, and for a quantised kernel.
    """
    # An adapter that only some layers have is folded into these; `join` makes the stack whole again.
    pieces = cut(params, ())
    out = {path: leaf for path, leaf in pieces.items() if path.rpartition("/")[2] not in _ADDED}
    shared = {f"vera_{name}": out.pop(f"vera/{name}") for name in "ap" if f"vera/{name}" in out}
    if "embed/lora_a" in pieces:
        low_rank = {f"embed/lora_{part}": pieces[f"embed/lora_{part}"] for part in ("a", "b", "scale")}
        if pieces.keys() & {"head/kernel", "score/kernel"}:
            a, b, scale = (leaf.astype(jnp.float32) for leaf in low_rank.values())
            embedding = pieces["embed/embedding"]
            out["embed/embedding"] = (embedding.astype(jnp.float32) + scale * a @ b).astype(embedding.dtype)
        else:
            out |= low_rank
    for stem in sorted({path.rpartition("/")[0] + "/" for path in pieces.keys() - out.keys()} - {"vera/", "embed/"}):
        leaves = shared | {name: pieces[stem + name] for name in _ADDED if stem + name in pieces}
        if stem + "kernel" not in pieces:
            raise UserError(f"{stem}kernel is quantised: make the base plain first, then fold")
        kernel, bias = pieces[stem + "kernel"], pieces.get(stem + "bias")
        folded, folded_bias = _folded(kernel, bias, {name: leaf.astype(jnp.float32) for name, leaf in leaves.items()})
        out[stem + "kernel"] = folded.astype(kernel.dtype)
        if bias is not None and folded_bias is not None:
            out[stem + "bias"] = folded_bias.astype(bias.dtype)
        elif folded_bias is not None:
            raise UserError(f"{stem}lora_bias: there is no {stem}bias to fold it into; keep the adapter as it is")
    return join(out)


def _folded(
    kernel: jax.Array, bias: jax.Array | None, leaves: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array | None]:
    """(kernel [L, in, out], bias [L, out] or None) of what `added.beside` computes as one product, in float32."""
    original, kernel = kernel, kernel.astype(jnp.float32)
    bias = None if bias is None else bias.astype(jnp.float32)
    if "lora_a" in leaves:
        scale = leaves["lora_scale"][:, None, None]
        kernel = kernel + scale * jnp.matmul(leaves["lora_a"], leaves["lora_b"])
        own = leaves["lora_bias"] * scale[:, 0] if "lora_bias" in leaves else None
        if "lora_magnitude" in leaves:
            ratio = leaves["lora_magnitude"] / column_norms(original, leaves)
            kernel, own = kernel * ratio[:, None], None if own is None else own * ratio
        bias = bias if own is None else own if bias is None else bias + own
    if "vera_d" in leaves:
        a, p = leaves["vera_a"][: kernel.shape[1]], leaves["vera_p"][:, : kernel.shape[2]]
        kernel = kernel + jnp.einsum("ir,lr,ro,lo->lio", a, leaves["vera_d"], p, leaves["vera_b"])
    # The module's input is multiplied before any product, so what stands beside the kernel takes the factors too.
    if "ia3_in" in leaves:
        kernel = kernel * leaves["ia3_in"][:, :, None]
    if "ia3_out" in leaves:
        kernel = kernel * leaves["ia3_out"][:, None]
        bias = None if bias is None else bias * leaves["ia3_out"]
    return kernel, bias


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise UserError(f"rank={rank}: must be at least 1")


def _places(params: Mapping[str, jax.Array], targets: str) -> Iterator[_Place]:
    """The kernels that a pattern names, each in runs of the consecutive layers that it names."""
    for path, hits in sorted(first_match([targets], params).items()):
        named = [layer for layer, hit in enumerate(hits) if hit is not None]
        if not named:
            continue
        parsed = block_path(path)
        if parsed is None or not re.fullmatch(r"(attn|mlp)/\w+/kernel", parsed[1]):
            raise UserError(f"target {path!r}: low-rank adapters go beside the kernels inside the blocks")
        leaf, first = params[path], parsed[0][0] if parsed[0] else 0
        ends = [layer + 1 for layer in named if layer + 1 not in named]
        starts = [layer for layer in named if layer - 1 not in named]
        for start, end in zip(starts, ends, strict=True):
            if end - start == leaf.shape[0]:
                yield _Place(path.removesuffix("kernel"), leaf)
            else:
                span = f"{first + start}:{first + end}"
                yield _Place(f"blocks/{span}/{parsed[1]}".removesuffix("kernel"), leaf[start:end])


def _replaced(params: Params, place: _Place, kernel: jax.Array) -> Params:
    """The parameters with other values in a place; the stack is cut there, if the place is not a whole leaf."""
    span = block_path(place.stem + "kernel")
    assert span
    return {**cut(params, span[0] or ()), place.stem + "kernel": kernel}
