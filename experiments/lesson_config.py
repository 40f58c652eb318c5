"""What the lesson reads from an experiment file; jax-free, so that a mistyped field stops at once."""

import dataclasses

from limbeck.distill.config import Objective
from limbeck.model.config import ModelConfig
from limbeck.train.config import FitConfig, OptimConfig


@dataclasses.dataclass(frozen=True)
class LessonConfig:
    """One foundation model, adapted in every way there is; the tokenizer decides the models' vocab_size."""

    base: ModelConfig
    student: ModelConfig
    pretrain: FitConfig
    full: FitConfig
    lora: FitConfig
    bias_norm: FitConfig
    last_block: FitConfig
    distil: FitConfig  # of the distilled student and, without the teacher, of the same student alone
    task: str = "world"  # a built-in task, a file or a folder
    seed: int = 0
    documents: int = 70_000  # of the built-in world's text, for pretraining
    shots: int = 4  # examples of the few-shot prompt
    lora_rank: int = 16
    lora_targets: str = r"blocks/(attn|mlp)/.*/kernel"
    distil_objective: Objective = "forward_kl"
    distil_temperature: float = 1.0
    distil_hard_weight: float = 0.0
    distil_task_share: float = 0.75  # of a batch's rows; the others are foundation text
    transfer_tokens: int = 120_000  # that the teacher writes as queries of its own


def tuning(steps: int, learning_rate: float, batch_size: int = 16, length: int = 64) -> FitConfig:
    """A short tuning run."""
    return FitConfig(steps, batch_size, length, OptimConfig(learning_rate=learning_rate))
