"""What the distilling room reads from an experiment file."""

import dataclasses
import math
from typing import Literal, get_args

from limbeck.model.errors import UserError, one_of
from limbeck.train.config import Base

Objective = Literal[
    "forward_kl",
    "reverse_kl",
    "generalized_jsd",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
    "teacher_cross_entropy",
]
Cache = Literal["topk", "topk_tail", "sampled"]


@dataclasses.dataclass(frozen=True)
class DistilConfig:
    """How the student is held against its teacher. Raises UserError for what cannot be computed, and says why."""

    objective: Objective = "forward_kl"
    beta: float = 0.5  # the teacher's share of the mixture in generalized_jsd; 0 is forward KL, 1 reverse KL
    skew: float = 0.1  # in the skewed KLs, the share in the mixture of the one that is held against it
    temperature: float = 1.0
    temperature_end: float | None = None  # of the last step, reached linearly; None: it stays
    hard_weight: float = 0.0  # of the cross-entropy to the targets; the divergence has the rest
    hard_weight_end: float | None = None  # of the last step, reached linearly; None: it stays
    teacher_weights: tuple[float, ...] = ()  # of several teachers, in proportion; empty: all the same
    teacher_base: Base = "as_is"  # a live teacher is kept as it was loaded, or in fewer bits
    cache: Cache | None = None  # what a cached teacher wrote down of each token's distribution; None: it is live

    def __post_init__(self) -> None:
        one_of("divergence", self.objective, get_args(Objective))
        one_of("base of the teacher", self.teacher_base, get_args(Base))
        if not 0 <= self.beta <= 1:
            raise UserError(f"beta {self.beta} is not a mixture: choose 0 (forward KL) to 1 (reverse KL)")
        if not 0 <= self.skew < 1:
            raise UserError(f"skew {self.skew}: choose 0 (the plain KL) to less than 1, such as 0.1")
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name}={value}: must be more than 0, such as 2")
        for name in ("hard_weight", "hard_weight_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name}={value}: must lie from 0 (the teacher alone) to 1 (the targets alone)")
        for weight in self.teacher_weights:
            if not (weight > 0 and math.isfinite(weight)):
                raise UserError(f"teacher_weights: {weight} must be more than 0, or leave that teacher out")
        if self.cache is not None:
            _check_cache(self, one_of("cache", self.cache, get_args(Cache)))


def _check_cache(config: DistilConfig, cache: str) -> None:
    """Raises UserError for an objective or a temperature that what is cached does not say enough for."""
    forward = config.objective in ("forward_kl", "teacher_cross_entropy", "skewed_forward_kl")
    if not forward and (config.objective, config.beta) != ("generalized_jsd", 0):
        raise UserError(
            f"objective={config.objective} weighs whatever the student finds likely, and a cache ({cache}) has only "
            "some of the teacher's distribution: choose forward_kl, teacher_cross_entropy or a live teacher"
        )
    if cache == "sampled" and config.objective == "skewed_forward_kl":
        raise UserError(
            "objective=skewed_forward_kl is not linear in the teacher's probabilities, so samples (cache=sampled) give "
            "a biased gradient: choose forward_kl, teacher_cross_entropy or cache=topk"
        )
    if cache != "topk" and (config.temperature != 1 or config.temperature_end not in (None, 1)):
        raise UserError(
            f"temperature={config.temperature}, temperature_end={config.temperature_end} with cache={cache}: "
            f"{TEMPERATURE_ONE[cache]}: choose temperature=1 or cache=topk"
        )


TEMPERATURE_ONE = {  # why these caches have no other temperature
    "topk_tail": "how the probability outside the k is spread, and so what it would be when softened, is not known",
    "sampled": "the samples were drawn at temperature 1, and how often a token comes at another is not known from them",
}
