"""What the training room reads from an experiment file."""

import dataclasses
from typing import Literal, get_args

from limbeck.model.errors import UserError, one_of

Schedule = Literal["cosine", "linear", "constant"]
Optimizer = Literal["adamw", "adafactor", "lion", "muon", "sgd"]
Keep = Literal["last", "best"]
Base = Literal["as_is", "bfloat16", "int8", "nf4"]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule: a linear warm-up, then a decay to `final` times the learning rate."""

    name: Optimizer = "adamw"
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: float = 0.05  # share of the steps
    final: float = 0.1
    weight_decay: float = 0.0
    # Patterns of what decays: of leaves or single layers, as a Selection's, but one that matches nothing is no mistake.
    decays: tuple[str, ...] = (".*/kernel", ".*/embedding", ".*/lora_[ab]")
    rates: tuple[tuple[str, float], ...] = ()  # (pattern, factor on the learning rate of what it matches first)
    clip: float | None = 1.0  # global norm of the gradient
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    average: float | None = None  # decay of the moving average of the parameters that takes their place at the end
    skip: int = 0  # steps that may be left out for a loss or gradient that is no number, before the run stops

    def __post_init__(self) -> None:
        one_of("optimizer", self.name, get_args(Optimizer))
        one_of("schedule", self.schedule, get_args(Schedule))
        if self.average is not None and not 0 < self.average < 1:
            raise UserError(f"average={self.average}: must lie between 0 and 1, such as 0.999")
        if self.skip < 0:
            raise UserError(f"skip={self.skip}: must be at least 0")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """What a way of tuning may be told; each reads what it has a use for (`methods.METHODS` says which there are)."""

    rank: int = 8  # of low-rank adapters, of VeRA's matrices; units of a bottleneck
    alpha: float | None = None  # low-rank adapters are multiplied by alpha / rank; None: by 1
    targets: str = ""  # pattern of the leaves that adapters go beside or entries are chosen of; empty: the method's own
    blocks: int = 1  # how many first or last ones train
    share: float = 0.01  # of a leaf's entries that are chosen
    entries: str = ""  # file of chosen entries, of the method `entries`
    length: int = 16  # virtual tokens
    text: str = ""  # that virtual tokens begin as; empty: the method's own beginning
    examples: int = 64  # rows whose gradients say which entries are chosen
    base: Base = "as_is"  # what is frozen: as it was loaded, or in fewer bits

    def __post_init__(self) -> None:
        one_of("base", self.base, get_args(Base))
        if not 0 < self.share <= 1:
            raise UserError(f"share={self.share}: must lie above 0 and be at most 1, such as 0.01")
        for name in ("rank", "blocks", "length", "examples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How long and in what portions to train. `length` is tokens in a row, `batch_size` rows in a step."""

    steps: int = 1000
    batch_size: int = 32
    length: int = 128
    optim: OptimConfig = OptimConfig()
    accumulate: int = 1  # portions in which a batch is run, one after the other, to save memory
    log_every: int = 20
    checkpoint_every: int = 200
    evaluate_every: int | None = None  # and after the last step; None: only then
    patience: int | None = None  # evaluations without a better score after which the run ends; None: it does not
    keep: Keep = "last"  # the parameters that the run gives: of its last step, or of its best evaluation

    def __post_init__(self) -> None:
        one_of("keep", self.keep, get_args(Keep))
        counts = ("steps", "batch_size", "length", "accumulate", "log_every", "checkpoint_every")
        for name in (*counts, "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}, and every portion "
                "has as many rows"
            )
        if self.patience is not None and self.evaluate_every is None:
            raise UserError(f"patience={self.patience} counts evaluations: say evaluate_every as well")
