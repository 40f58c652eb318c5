"""The whole lesson on the built-in world: pretrain, prompt, tune, distil, predict in bulk, probe for bias, report.

Command:  make quickstart     or     limbeck run quickstart
"""

import dataclasses

from limbeck.experiments.lesson_config import LessonConfig, tuning
from limbeck.experiments.sweep import axis
from limbeck.model.config import ModelConfig
from limbeck.train.config import FitConfig, OptimConfig

BASE = ModelConfig(
    vocab_size=5120,  # at most: the tokenizer of the built-in world ends at some 4,700
    width=128,
    depth=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    mlp_dim=256,
    max_len=256,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    scan=False,
)
STUDENT = ModelConfig(
    vocab_size=5120,
    width=56,
    depth=1,
    num_heads=4,
    num_kv_heads=4,
    head_dim=14,
    mlp_dim=128,
    max_len=256,
    scan=False,
)
# Muon reaches in 400 steps what AdamW does not in 800, and small batches are worth more than big ones (LOG.md).
MUON = OptimConfig("muon", learning_rate=4e-3, weight_decay=0.1, decays=(".*",), final=0.05)

config = LessonConfig(
    base=BASE,
    student=STUDENT,
    pretrain=FitConfig(steps=1100, batch_size=32, length=64, optim=MUON),
    full=tuning(steps=60, learning_rate=5e-4),
    lora=tuning(steps=60, learning_rate=3e-3),
    bias_norm=tuning(steps=60, learning_rate=3e-3),
    last_block=tuning(steps=60, learning_rate=1e-3),
    distil=FitConfig(steps=600, batch_size=16, length=64, optim=dataclasses.replace(MUON, learning_rate=8e-3)),
)
main = "limbeck.experiments.lesson:run"


def sweep() -> list[dict]:
    """Three seeds."""
    return axis("seed", range(3))
