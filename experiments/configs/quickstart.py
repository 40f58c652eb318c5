"""The whole lesson on the built-in world: pretrain, prompt, tune, distil, predict in bulk, probe for bias, report.

Command:  make quickstart     or     limbeck run quickstart
"""

from limbeck.experiments.lesson_config import LessonConfig, tuning
from limbeck.experiments.sweep import axis
from limbeck.model.config import ModelConfig
from limbeck.train.config import FitConfig, OptimConfig

BASE = ModelConfig(
    vocab_size=6144,
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
)
STUDENT = ModelConfig(
    vocab_size=6144, width=48, depth=2, num_heads=4, num_kv_heads=4, head_dim=12, mlp_dim=96, max_len=256
)

config = LessonConfig(
    base=BASE,
    student=STUDENT,
    pretrain=FitConfig(steps=700, batch_size=32, optim=OptimConfig(learning_rate=4e-3, weight_decay=0.1, final=0.05)),
    full=tuning(steps=80, learning_rate=1e-3),
    lora=tuning(steps=80, learning_rate=5e-3),
    bias_norm=tuning(steps=80, learning_rate=1e-2),
    last_block=tuning(steps=80, learning_rate=2e-3),
    distil=FitConfig(steps=700, batch_size=32, optim=OptimConfig(learning_rate=8e-3, final=0.05)),
)
main = "limbeck.experiments.lesson:run"


def sweep() -> list[dict]:
    """Three seeds."""
    return axis("seed", range(3))
