"""Every way of tuning but `head` and `entries` side by side, on the built-in world: "lemon:" ends in "hesperidium".

Quality, what trains, memory and time of a step, and bytes to keep. Low ranks, so that adapters of a small model are a
small share of it. Each way's learning rate is a factor on full tuning's (train/methods.py); the factors come from this
comparison with `--rates 0.3 1 3`, here and on peft_menu_sst2 and peft_menu_banking77 (LOG.md).

Data:     none; the model is the foundation of `make quickstart`
Command:  limbeck run peft_menu
"""

from limbeck.experiments.menu_config import MenuConfig
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.train.config import FitConfig, MethodConfig, OptimConfig

config = MenuConfig(
    tuning=TuningConfig(
        task="world",
        model="runs/quickstart/models/base",
        head=False,
        fit=FitConfig(
            steps=60,
            batch_size=16,
            length=64,
            optim=OptimConfig(learning_rate=5e-4),
            evaluate_every=20,
            keep="best",
        ),
        method=MethodConfig(rank=2),
    ),
    methods=(
        "full", "attention", "last_blocks", "first_blocks", "embeddings", "norms", "bias", "bias_norm",
        "lora", "lora_qv", "lora_mlp", "lora_8", "rslora", "lora_plus", "lora_orthogonal", "pissa", "dora", "qlora",
        "vera", "ia3", "houlsby", "pfeiffer", "prompt", "p_tuning", "prefix",
        "fisher", "gradient", "movement", "magnitude", "random",
    ),
    settings=(
        ("lora_qv", {"tuning": "lora", "rank": 8, "targets": r"blocks/attn/(q|v)/kernel"}),
        ("lora_mlp", {"tuning": "lora", "rank": 3, "targets": r"blocks/mlp/\w+/kernel"}),
        ("lora_8", {"tuning": "lora", "rank": 8}),
        ("houlsby", {"rank": 8}),
        ("pfeiffer", {"rank": 16}),
        ("vera", {"rank": 64}),
    ),
)  # fmt: skip
main = "limbeck.experiments.menu:run"
