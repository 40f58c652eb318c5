"""What tuning one model for one task reads from an experiment file; jax-free, so that a mistake stops at once."""

import dataclasses
from typing import Literal, get_args

from limbeck.model.config import Remat
from limbeck.model.errors import UserError, one_of
from limbeck.train.config import FitConfig, MethodConfig


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """A foundation tuned for a task: as a head's answers, or as text."""

    task: str  # as `tasks.sources.load_task` takes it
    model: str  # file or folder of a foundation; or the name of a size, for random parameters
    fit: FitConfig
    description: str = ""  # what a task.json says, in JSON, for data that has none
    head: bool = True  # False: the answer is text, also of a classification, as in prompting
    tuning: str = "full"  # what trains: a way of tuning (train/methods.py), or a pattern over leaves
    method: MethodConfig = MethodConfig()
    remat: Remat = "none"  # what the backward pass computes again, to save memory
    smoothing: float = 0.0  # of labels
    held_out: float = 0.1  # share of the training records to validate on where there is no validation split
    vocab_size: int = 4096  # of the tokenizer, and
    max_len: int = 256  # positions of the model, where its parameters are random
    on_bad_row: Literal["error", "skip"] = "error"
    seed: int = 0
    wandb: str = ""  # project; empty: nothing leaves the machine
    profile: bool = False  # trace a few steps into the run's folder

    def __post_init__(self) -> None:
        one_of("remat", self.remat, get_args(Remat))
        for name in ("task", "model"):
            if not getattr(self, name):
                raise UserError(f"{name} is not said: give --{name}, a file or a folder")
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must lie between 0 and 1, such as 0.1")
