"""What trains: path patterns, element masks, and the names that the quick ways of tuning go by."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from limbeck.model.errors import UserError, nearest
from limbeck.model.params import Params, count, split


@dataclasses.dataclass(frozen=True)
class Selection:
    """`patterns` name the leaves that train; `masks` (by path, 0 or 1, of a leaf's shape) narrow it to entries."""

    patterns: tuple[str, ...] = (".*",)
    masks: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


def bias_norm() -> Selection:
    """Biases and norms only (BitFit, Ben Zaken et al. 2021, arXiv 2106.10199, with the norms' scales)."""
    return Selection((r".*norm/scale|.*/bias",))


def last_blocks(depth: int, blocks: int = 1) -> Selection:
    """The last blocks and the final norm."""
    layers = "|".join(str(layer) for layer in range(depth - blocks, depth))
    return Selection((rf"blocks/({layers})/.*", r"norm/.*"))


def lora_only() -> Selection:
    """The low-rank leaves that `add_lora` added."""
    return Selection((r".*/lora_[ab]",))


def apply_selection(selection: Selection, params: Params) -> tuple[Params, Params]:
    """(trainable, frozen). Raises UserError for a dead pattern or a mask that fits no trainable leaf."""
    trainable, frozen = split(params, selection.patterns)
    for path, mask in selection.masks.items():
        if path not in trainable:
            raise UserError(f"mask for {path!r}: no such trainable parameter{nearest(path, trainable)}")
        if mask.shape != trainable[path].shape:
            raise UserError(f"mask for {path!r} has shape {mask.shape}, the parameter {trainable[path].shape}")
    return trainable, frozen


def describe(trainable: Params, frozen: Params) -> str:
    """One line: how many parameters train, of how many, and in which leaves."""
    moving, total = count(trainable), count(trainable) + count(frozen)
    return f"{moving:,} of {total:,} parameters train ({moving / total:.2%}), in {len(trainable)} leaves"


def moved(before: Mapping[str, jax.Array], after: Mapping[str, jax.Array]) -> dict[str, bool]:
    """For each leaf that both have, whether any bit of it changed.

    Both in the same layout (see `params.join`); what training keeps in float32 is compared in float32.
    """
    shared: Sequence[str] = sorted(before.keys() & after.keys())
    return {
        path: np.asarray(before[path]).astype(after[path].dtype).tobytes() != np.asarray(after[path]).tobytes()
        for path in shared
    }
