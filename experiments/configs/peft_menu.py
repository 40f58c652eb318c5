"""Every way of tuning but `entries` on one task, each at the best of three learning rates.

Quality, what trains, memory and time of a step, and bytes to keep. Low ranks, so that adapters of a small model are a
small share of it.

Data:     as of sst2, or any task: --tuning.task FOLDER
Command:  limbeck run peft_menu --tuning.task FOLDER/sst2 --tuning.model runs/foundation/model
"""

import dataclasses

from limbeck.experiments.configs import sst2
from limbeck.experiments.menu_config import MenuConfig
from limbeck.train.config import MethodConfig

config = MenuConfig(
    tuning=dataclasses.replace(
        sst2.config,
        fit=dataclasses.replace(sst2.config.fit, steps=200, evaluate_every=100),
        method=MethodConfig(rank=2),
    ),
    methods=(
        "full", "attention", "last_blocks", "first_blocks", "embeddings", "head", "norms", "bias", "bias_norm",
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
    rates=(0.3, 1.0, 3.0),
)  # fmt: skip
main = "limbeck.experiments.menu:run"
