"""What an experiment file says of a student; jax-free, so that a mistake stops at once."""

import dataclasses
from typing import Literal, get_args

from limbeck.model.errors import UserError, nearest, one_of

Pick = Literal["first", "last", "spread"]
STARTS = ("random", "layers", "pruned")
SIZES = ("width", "depth", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """How big a student is and what it starts from.

    Its size is `params`, or the numbers that are given; what is None is as the teacher's. `start` is "random",
    "layers" (some of the teacher's), "pruned" (the teacher's most important heads, channels and layers), or the folder
    of another model. Raises UserError for settings that contradict each other.
    """

    params: float | None = None  # share of the teacher's parameters; the shape is then proposed
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    start: str = "random"
    pick: Pick = "spread"  # layers: which of the teacher's, if `layers` does not list them
    layers: tuple[int, ...] = ()
    cuts: int = 1  # pruned: with what is left measured anew before each

    def __post_init__(self) -> None:
        one_of("pick", self.pick, get_args(Pick))
        sizes = self.sizes()
        if self.folder and "/" not in self.start and (hint := nearest(self.start, STARTS)):
            raise UserError(f"start={self.start!r}: one of {', '.join(STARTS)}, or a model's folder{hint}")
        if self.params is not None and not 0 < self.params <= 1:
            raise UserError(f"params={self.params}: a share of the teacher's, above 0 and at most 1, such as 0.25")
        if self.params is not None and sizes:
            raise UserError(f"params={self.params} proposes a shape, and {_said(sizes)} is one: say only one of them")
        if self.cuts < 1:
            raise UserError(f"cuts={self.cuts}: must be at least 1")
        if self.cuts > 1 and self.start != "pruned":
            raise UserError(f'cuts={self.cuts} are of start="pruned", but start={self.start!r}')
        if self.layers and self.start != "layers":
            raise UserError(f'layers={self.layers} are of start="layers", but start={self.start!r}')
        if self.layers and (self.params is not None or sizes):
            raise UserError(f"layers={self.layers} are the student's whole size: leave out params and the other sizes")
        if self.start == "layers" and (other := {name: sizes[name] for name in sizes if name != "depth"}):
            raise UserError(f'{_said(other)}: with start="layers" a student differs from its teacher in depth alone')
        if self.start == "pruned" and self.head_dim is not None:
            raise UserError(f"head_dim={self.head_dim}: pruning takes whole heads; leave it out")
        if self.folder and (self.params is not None or sizes):
            raise UserError(f"start={self.start!r} is a model with a size of its own: leave out params and sizes")

    def check_smaller(self) -> None:
        """Raises UserError for a student that would be its teacher."""
        if self.start in ("layers", "pruned") and self.params is None and not self.sizes() and not self.layers:
            raise UserError(f"start={self.start!r} in all of the teacher's sizes is the teacher: give params=0.5, say")

    @property
    def folder(self) -> str:
        """Where another pretrained model is that the student starts from; empty if it starts otherwise."""
        return "" if self.start in STARTS else self.start

    def sizes(self) -> dict[str, int]:
        """The sizes that are given."""
        return {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}


def _said(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())
