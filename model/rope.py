"""Rotary positions (Su et al. 2021, arXiv 2104.09864), and the ways in which published models stretch them.

`R` is half the number of a head's dimensions that turn: the pairs are (i, i + R). Frequencies are worked out in float64
and kept in float32, as are the angles (`turn` and `rotate` in layers.py).
"""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np

from limbeck.model.errors import UserError, one_of

Scaling = Literal["none", "linear", "llama3", "yarn", "longrope"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """How fast each pair of dimensions turns with the position. Raises UserError for settings that make no sense."""

    theta: float = 10_000.0
    share: float = 1.0  # of a head's dimensions that turn, the first ones; the others carry no position
    scaling: Scaling = "none"
    factor: float = 1.0  # linear, llama3, yarn: how many times longer than in pretraining a text may be
    original_max_len: int = 0  # llama3, yarn, longrope: how long texts were in pretraining
    low_frequency: float = 1.0  # llama3: turns within original_max_len below which a pair is slowed in full ...
    high_frequency: float = 4.0  # ... and above which it is left alone
    beta_fast: float = 32.0  # yarn: turns within original_max_len above which a pair is left alone ...
    beta_slow: float = 1.0  # ... and below which it is slowed in full
    truncate: bool = True  # yarn: round the bounds of that range outwards to whole pairs
    attention_factor: float = 1.0  # yarn, longrope: multiplies cosine and sine
    short_factor: tuple[float, ...] = ()  # longrope: what slows each pair in texts of up to original_max_len ...
    long_factor: tuple[float, ...] = ()  # ... and in longer ones

    def __post_init__(self) -> None:
        one_of("rope scaling", self.scaling, get_args(Scaling))
        for name in ("theta", "share", "factor", "attention_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"rope {name}={getattr(self, name)}: must be a positive number")
        if self.share > 1:
            raise UserError(f"rope share={self.share}: at most 1, the whole head")
        if self.scaling in ("llama3", "yarn", "longrope") and self.original_max_len < 1:
            raise UserError(f"rope scaling {self.scaling!r} needs original_max_len, the length of texts in pretraining")
        if self.scaling == "llama3" and not 0 < self.low_frequency < self.high_frequency:
            given = f"low_frequency={self.low_frequency}, high_frequency={self.high_frequency}"
            raise UserError(f"rope {given}: must be positive and rise")


def rotary_dims(rope: Rope, head_dim: int) -> int:
    """How many dimensions of a head turn; raises UserError unless they are a positive even number."""
    dims = int(head_dim * rope.share)
    if dims < 2 or dims % 2:
        raise UserError(
            f"rope share={rope.share} of head_dim={head_dim} is {dims} dimensions: pairs turn, so make it even"
        )
    return dims


def frequencies(rope: Rope, head_dim: int, long: bool = False) -> np.ndarray:
    """Radians a position for each pair, float32 `[R]`; `long` is for texts above `original_max_len` (longrope)."""
    dims = rotary_dims(rope, head_dim)
    plain_R = rope.theta ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    if rope.scaling == "linear":
        frequency_R = plain_R / rope.factor
    elif rope.scaling == "llama3":
        frequency_R = _llama3(rope, plain_R)
    elif rope.scaling == "yarn":
        frequency_R = _yarn(rope, plain_R, dims)
    elif rope.scaling == "longrope":
        name = "long_factor" if long else "short_factor"
        factors = getattr(rope, name)
        if len(factors) != dims // 2:
            raise UserError(f"rope {name} has {len(factors)} numbers, but {dims // 2} pairs of a head turn")
        frequency_R = plain_R / np.asarray(factors, np.float64)
    else:
        frequency_R = plain_R
    return frequency_R.astype(np.float32)


def _llama3(rope: Rope, plain_R: np.ndarray) -> np.ndarray:
    """Slows pairs by how often they turn within the pretraining length (Llama 3.1's report, arXiv 2407.21783)."""
    turns_R = rope.original_max_len * plain_R / (2 * math.pi)
    kept_R = np.clip((turns_R - rope.low_frequency) / (rope.high_frequency - rope.low_frequency), 0, 1)
    return plain_R * (kept_R + (1 - kept_R) / rope.factor)


def _yarn(rope: Rope, plain_R: np.ndarray, dims: int) -> np.ndarray:
    """Peng et al. 2023, arXiv 2309.00071, section 3.2: a ramp over the pairs between two numbers of turns."""

    def pair_with(turns: float) -> float:
        return dims * math.log(rope.original_max_len / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    span = high - low or 0.001  # the published implementation's, where the ramp has no length
    slowed_R = np.clip((np.arange(dims // 2) - low) / span, 0, 1)
    return plain_R * ((1 - slowed_R) + slowed_R / rope.factor)
