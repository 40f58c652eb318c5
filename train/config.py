"""What the training room reads from an experiment file."""

import dataclasses
from typing import Literal, get_args

from limbeck.model.errors import UserError, one_of

Schedule = Literal["cosine", "linear", "constant"]
Optimizer = Literal["adamw", "muon", "sgd"]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule: a linear warm-up, then a decay to `final` times the learning rate."""

    name: Optimizer = "adamw"
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: float = 0.05  # share of the steps
    final: float = 0.1
    weight_decay: float = 0.0
    decays: tuple[str, ...] = (".*/kernel", ".*/embedding", ".*/lora_[ab]")  # patterns of what decays
    clip: float | None = 1.0  # global norm of the gradient
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        one_of("optimizer", self.name, get_args(Optimizer))
        one_of("schedule", self.schedule, get_args(Schedule))


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How long and in what portions to train. `length` is tokens in a row."""

    steps: int = 1000
    batch_size: int = 32
    length: int = 128
    optim: OptimConfig = OptimConfig()
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "length", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
