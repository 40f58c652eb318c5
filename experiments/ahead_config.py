"""What answering ahead of time reads from an experiment file; jax-free, so that a mistake stops at once."""

import dataclasses

from limbeck.experiments.tuning_config import TuningConfig
from limbeck.model.errors import UserError


@dataclasses.dataclass(frozen=True)
class AheadConfig:
    """A model that is tuned for a task, its answers to a list of queries, and the traffic that asks for them."""

    tuning: TuningConfig
    unlisted: float = 0.05  # share of all queries that nobody thought of when the list was made
    traffic: int = 2000  # live queries, each in one of the ways in which people write
    normalisation: str = "nfc_casefold"  # what of those is the same query

    def __post_init__(self) -> None:
        if not 0 <= self.unlisted < 1 or self.traffic < 1:
            raise UserError(f"unlisted={self.unlisted}, traffic={self.traffic}: from 0 to below 1, and at least 1")
