"""What training on text reads from an experiment file; jax-free, so that a mistyped field stops at once."""

import dataclasses
from typing import Literal, get_args

from limbeck.model.config import Dtype, Remat
from limbeck.model.errors import UserError, one_of
from limbeck.train.config import FitConfig, MethodConfig


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
    """A foundation from scratch on text, or one that is trained further, on text or on chats."""

    fit: FitConfig
    texts: tuple[str, ...] = ()  # files and folders of text, as `tasks.texts.read_texts` takes them
    tasks: tuple[tuple[str, str], ...] = ()  # whose training queries are text too: (path, description in JSON or "")
    solved: tuple[tuple[str, str], ...] = ()  # whose training records are text, several solved ones a document
    ruled: tuple[str, ...] = ()  # texts whose words are put through rules of spelling, several to a document
    chats: tuple[str, ...] = ()  # files and folders of conversations: what the assistant says counts
    weights: tuple[float, ...] = ()  # shares of the sources above in this order; empty: by their tokens
    root: str = "."  # what the paths above begin at
    model: str = "tiny"  # name of a size, for random parameters; or file or folder of a foundation
    tokenizer: str = ""  # of random parameters: file or folder of one; empty: a byte-level BPE learned from the text
    vocab_size: int = 4096  # of the learned one
    max_len: int = 256  # positions of random parameters; `fit.length` is how many tokens a training row has
    tuning: str = "full"  # what trains: a way of tuning (train/methods.py), or a pattern over leaves
    method: MethodConfig = MethodConfig()
    held_out: float = 0.05  # share of the text that is validated on
    prompts: tuple[str, ...] = ("",)  # continued at every evaluation
    z_loss: float = 0.0
    dtype: Dtype = "float32"  # of activations; what trains is kept in float32
    remat: Remat = "none"
    on_bad_row: Literal["error", "skip"] = "error"
    seed: int = 0
    wandb: str = ""  # project; empty: nothing leaves the machine
    profile: bool = False  # trace a few steps into the run's folder

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, get_args(Dtype))
        one_of("remat", self.remat, get_args(Remat))
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out={self.held_out}: must lie between 0 and 1, such as 0.05")
        sources = sum(map(len, (self.texts, self.tasks, self.solved, self.ruled, self.chats)))
        if not sources:
            raise UserError("texts is empty: name at least one file or folder of text, a task, or chats")
        if self.weights and len(self.weights) != sources:
            raise UserError(
                f"weights {self.weights} are {len(self.weights)}, the texts, tasks, solved, ruled and chats {sources}"
            )
