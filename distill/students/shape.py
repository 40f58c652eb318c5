"""The shape of a student: what every axis of a parameter is, how many parameters a shape has, and one for a budget.

Beside the letters of `model/config.py`, here of whole axes: `N` is all query heads (N*H numbers), `K` all key-value
heads (K*H numbers), `T` the positions, `C` the labels of a head. `H` is an axis of its own only in the norms of heads.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from limbeck.model.config import ModelConfig
from limbeck.model.errors import UserError
from limbeck.model.params import block_path
from limbeck.model.pretrained.config_json import write_config
from limbeck.model.pretrained.families import FAMILIES
from limbeck.model.transformer import shapes

NARROWEST = 8
_COARSEST = 128  # wider steps of a size than this gain nothing: a tile of the matrix units
_NORMS = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "norm")
_MODULES = {
    "embed": "VD", "positions": "TD", "head": "DV", "score": "DC",
    "attn/q": "DN", "attn/k": "DK", "attn/v": "DK", "attn/o": "ND",
    "mlp/up": "DF", "mlp/gate": "DF", "mlp/down": "FD",
    **dict.fromkeys(_NORMS, "D"),
}  # fmt: skip


def axes(config: ModelConfig, path: str) -> str:
    """The letters of a parameter's axes. Raises UserError for one that is none of a plain model's."""
    parsed = block_path(path)
    module, _, leaf = (parsed[1] if parsed else path).rpartition("/")
    letters = _MODULES.get(module)
    if module in ("attn/q_norm", "attn/k_norm"):
        letters = "H" if config.qk_norm == "head" else "N" if module == "attn/q_norm" else "K"
    if letters is None or leaf not in ("kernel", "embedding", "bias", "scale"):
        raise UserError(
            f"{path!r} is not of a plain model, and only one can be made smaller: put what tuning added into the "
            "kernels and undo the quantisation first"
        )
    return ("L" if parsed else "") + (letters if leaf in ("kernel", "embedding") else letters[-1])


def sizes(config: ModelConfig) -> dict[str, int]:
    """How long each axis is, by its letter."""
    c = config
    heads = {"N": c.num_heads * c.head_dim, "K": c.num_kv_heads * c.head_dim, "H": c.head_dim}
    return {"L": c.depth, "D": c.width, "F": c.mlp_dim, "V": c.vocab_size, "T": c.max_len, "C": len(c.labels), **heads}


def of_layers(config: ModelConfig, layers: Sequence[int]) -> ModelConfig:
    """The shape of a model of these layers alone, each with its window and its rotation.

    Raises UserError for a layer that there is not, and for layers that are not ascending.
    """
    if not layers or any(not 0 <= layer < config.depth for layer in layers):
        raise UserError(f"layers={tuple(layers)}: name one or more of the teacher's, 0 to {config.depth - 1}")
    if list(layers) != sorted(set(layers)):
        raise UserError(f"layers={tuple(layers)}: list each once, in ascending order")
    everywhere, unrotated = (
        tuple(place for place, layer in enumerate(layers) if layer in those)
        for those in (config.global_layers, config.unrotated_layers)
    )
    window = None if len(everywhere) == len(layers) else config.window
    return dataclasses.replace(
        config,
        depth=len(layers),
        window=window,
        global_layers=everywhere if window else (),
        unrotated_layers=unrotated,
    )


def reshaped(teacher: ModelConfig, **given: int) -> ModelConfig:
    """The teacher's architecture in the given sizes (`width`, `depth`, ...).

    The kinds of its layers are those of the teacher's first ones, so that a period of them stays one; if none of these
    sees everything but some of the teacher's do, the last one does. An embedding that was multiplied by the root of
    the width is so again. Raises UserError for a shape that cannot be built.
    """
    depth = given.get("depth", teacher.depth)
    shape = of_layers(teacher, range(min(depth, teacher.depth))) if depth > 0 else teacher
    fields: dict[str, Any] = dict(given)
    if shape.window and teacher.global_layers and not shape.global_layers:
        fields["global_layers"] = (depth - 1,)
    if math.isclose(teacher.embedding_scale, teacher.width**0.5):
        fields["embedding_scale"] = given.get("width", teacher.width) ** 0.5
    return dataclasses.replace(shape, **fields)


def proposed(teacher: ModelConfig, share: float) -> ModelConfig:
    """A student's shape with at most that share of the teacher's parameters, and as near to it as may be.

    Layers shrink as the square root of the width, as from LLaMA-2 7B to Sheared LLaMA's 1.3B (width 4096 to 2048,
    layers 32 to 24; Xia et al. 2023, arXiv 2310.06694): width costs less quality than depth (Minitron, arXiv
    2407.14679, section 4), depth more time. Heads are as many as the width allows at the teacher's head_dim, which both
    papers keep too: rotary positions and the scale of the scores then stay what they were. Queries share keys as
    before, as far as the numbers go, so that the student can be pruned out of the teacher.
    For each width the MLP takes what the rest leaves of the budget, and of these shapes the one is chosen whose layers,
    heads and MLP are nearest to these proportions. So an embedding that is most of a small model makes the student
    narrow, but does not leave it without layers. Sizes have few significant bits, for the sake of hardware.

    The student has at least 15/16 of its budget wherever some shape has. Raises UserError for a share outside (0, 1]
    and one below the smallest that can be had.
    """
    if not 0 < share <= 1:
        raise UserError(f"params={share}: a share of the teacher's parameters, above 0 and at most 1, such as 0.25")
    leaves = [axes(teacher, path) for path in shapes(teacher)]
    whole = _count(leaves, sizes(teacher))
    budget = math.floor(share * whole)
    found: list[tuple[float, float, ModelConfig]] = []
    smallest = whole
    for shape, off in _shapes(teacher):
        usual = teacher.mlp_dim * shape.width / teacher.width
        least = max(1, round(usual / 4))
        without, one = (_count(leaves, {**sizes(shape), "F": channels}) for channels in (0, 1))
        smallest = min(smallest, without + least * (one - without))
        channels = (budget - without) // (one - without)
        channels = teacher.mlp_dim if channels >= teacher.mlp_dim else _rounded(channels, 6)
        if channels >= least:
            unused = 1 - (without + channels * (one - without)) / budget
            off += abs(math.log(channels / usual))
            found.append((max(0.0, unused - 1 / 16), off, dataclasses.replace(shape, mlp_dim=channels)))
    if not found:
        raise UserError(
            f"params={share}: a student of {budget:,} parameters cannot be had, the smallest has {smallest:,} "
            f"(the embeddings of {teacher.vocab_size:,} tokens are among them): ask for {_up(smallest / whole)} or more"
        )
    return min(found, key=lambda one: one[:2])[2]


def deepest(teacher: ModelConfig, share: float) -> int:
    """How many of the teacher's layers have, with all that is outside of them, at most that share of its parameters.

    Raises UserError where not even one does.
    """
    leaves = [axes(teacher, path) for path in shapes(teacher)]
    whole, without, one = (_count(leaves, {**sizes(teacher), "L": layers}) for layers in (teacher.depth, 0, 1))
    depth = (math.floor(share * whole) - without) // (one - without)
    if depth < 1:
        raise UserError(
            f"params={share}: one of the teacher's layers and its embeddings already are {_up(one / whole)} of its "
            f'parameters: ask for more, or for another start than "layers"'
        )
    return min(depth, teacher.depth)


def between(teacher: ModelConfig, to: ModelConfig, cuts: int) -> list[ModelConfig]:
    """The shapes of so many equal cuts from the teacher's to the student's; the last one is `to`."""

    def part(name: str, cut: int) -> int:
        return _blend(getattr(teacher, name), getattr(to, name), cut / cuts)

    out = []
    for cut in range(1, cuts):
        kv_heads = part("num_kv_heads", cut)
        queries = _blend(teacher.num_heads // teacher.num_kv_heads, to.num_heads // to.num_kv_heads, cut / cuts)
        others = {name: part(name, cut) for name in ("width", "depth", "mlp_dim")}
        out.append(reshaped(teacher, **others, num_kv_heads=kv_heads, num_heads=kv_heads * queries))
    return [*out, to]


def _blend(start: int, stop: int, share: float) -> int:
    return round(start + (stop - start) * share)


def _count(leaves: Sequence[str], size: dict[str, int]) -> int:
    return sum(math.prod(size[letter] for letter in letters) for letters in leaves)


def _shapes(teacher: ModelConfig) -> Iterator[tuple[ModelConfig, float]]:
    """Shapes with the teacher's mlp_dim, of every width and of the depths and heads next to what the rule says, and
    how far each is from the rule: the sum of the logarithms."""
    family = write_config(teacher)["model_type"]
    # Some published families cannot say the size of a head: it is the width over the heads.
    square = family in FAMILIES and "head_dim" not in FAMILIES[family].keys
    step = teacher.head_dim if square else 1
    group = teacher.num_heads // teacher.num_kv_heads
    for width in range(teacher.width, 0, -step):
        if width != teacher.width and not square and (width < NARROWEST or width != _rounded(width, 5)):
            continue
        ratio = width / teacher.width
        heads, layers = teacher.num_heads * ratio, teacher.depth * ratio**0.5
        for depth, kv_heads in itertools.product(_next_to(layers), _next_to(teacher.num_kv_heads * ratio)):
            queries = min(group, max(1, math.floor(heads / kv_heads + 0.5)))
            if square and kv_heads * queries * teacher.head_dim != width:
                continue
            off = abs(math.log(depth / layers)) + abs(math.log(kv_heads * queries / heads))
            given = {"width": width, "depth": depth, "num_kv_heads": kv_heads, "num_heads": kv_heads * queries}
            yield reshaped(teacher, **given), off


def _next_to(size: float) -> set[int]:
    return {max(1, math.floor(size)), max(1, math.ceil(size))}


def _up(share: float) -> float:
    """Up to three significant digits, so that the share that is asked for can be had."""
    digits = 3 - math.ceil(math.log10(share))
    return round(math.ceil(share * 10**digits) / 10**digits, digits)


def _rounded(size: int, bits: int) -> int:
    """Down to so many significant bits, but to no coarser step than `_COARSEST`."""
    return size - size % min(_COARSEST, 2 ** max(0, size.bit_length() - bits)) if size > 0 else 0
