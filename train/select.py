"""What trains: path patterns, and the names that the quick ways of tuning go by."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from limbeck.model.chosen import CHOSEN, INDEX
from limbeck.model.params import Params, count, merge, split


@dataclasses.dataclass(frozen=True)
class Selection:
    """`patterns` name the leaves that train; single entries of a leaf are leaves of their own (`model/chosen.py`)."""

    patterns: tuple[str, ...] = (".*",)


def bias_norm() -> Selection:
    """Biases and norms only (BitFit, Ben Zaken et al. 2021, arXiv 2106.10199, with the norms' scales)."""
    return Selection((r".*norm/scale|.*/bias",))


def first_blocks(blocks: int) -> Selection:
    """The first blocks alone."""
    return Selection((rf"blocks/({'|'.join(map(str, range(blocks)))})/.*",))


def last_blocks(depth: int, blocks: int = 1) -> Selection:
    """The last blocks and the final norm."""
    layers = "|".join(str(layer) for layer in range(depth - blocks, depth))
    return Selection((rf"blocks/({layers})/.*", r"norm/.*"))


def lora_only() -> Selection:
    """The low-rank leaves that `add_lora` added."""
    return Selection((r".*/lora_[ab]",))


def chosen_only() -> Selection:
    """The entries that `model.chosen.choose` took out of their leaves."""
    return Selection((r".*_chosen",))


def apply_selection(selection: Selection, params: Params) -> tuple[Params, Params]:
    """(trainable, frozen). Raises UserError for a dead pattern."""
    return split(params, selection.patterns)


def describe(trainable: Params, frozen: Params) -> str:
    """One line: how many parameters train, of how many, and in which leaves."""
    moving, total = count(trainable), _total(trainable, frozen)
    return f"{moving:,} of {total:,} parameters train ({moving / total:.2%}), in {len(trainable)} leaves"


def table(trainable: Params, frozen: Params) -> str:
    """What trains, a line for each leaf: its path, its shape, how many parameters, and their share of the model."""
    total = _total(trainable, frozen)
    shapes = {path: " x ".join(map(str, leaf.shape)) or "1" for path, leaf in sorted(trainable.items())}
    path_width, shape_width = (max(map(len, column), default=0) for column in (shapes, shapes.values()))
    return "\n".join(
        f"  {path:{path_width}}  {shape:>{shape_width}}  {(size := trainable[path].size):>13,}  {size / total:8.3%}"
        for path, shape in shapes.items()
    )


def _total(trainable: Params, frozen: Params) -> int:
    """The model's parameters: an entry that stands apart from its leaf counts once, its place not at all."""
    model = {path: leaf for path, leaf in merge(trainable, frozen).items() if not path.endswith((CHOSEN, INDEX))}
    return count(model)


def moved(before: Mapping[str, jax.Array], after: Mapping[str, jax.Array]) -> dict[str, bool]:
    """For each leaf that both have, whether any bit of it changed.

    Both in the same layout (see `params.join`); what training keeps in float32 is compared in float32.
    """
    shared: Sequence[str] = sorted(before.keys() & after.keys())
    return {
        path: np.asarray(before[path]).astype(after[path].dtype).tobytes() != np.asarray(after[path]).tobytes()
        for path in shared
    }
