"""Every way of tuning but `entries` on one task: quality, what trains, memory and time of a step, bytes to keep.

Data:     as of sst2, or any task: --tuning.task FOLDER
Command:  limbeck run peft_menu --tuning.task FOLDER/sst2 --tuning.model runs/foundation/model
"""

import dataclasses

from limbeck.experiments.configs import sst2
from limbeck.experiments.menu_config import MenuConfig

config = MenuConfig(
    tuning=dataclasses.replace(sst2.config, fit=dataclasses.replace(sst2.config.fit, evaluate_every=100)),
    methods=(
        "full", "attention", "last_blocks", "first_blocks", "embeddings", "head", "norms", "bias", "bias_norm",
        "lora", "rslora", "lora_plus", "lora_orthogonal", "pissa", "dora", "qlora", "vera", "ia3", "houlsby",
        "pfeiffer", "prompt", "p_tuning", "prefix", "fisher", "gradient", "movement", "magnitude", "random",
    ),
    settings=(("vera", {"rank": 64}),),
)  # fmt: skip
main = "limbeck.experiments.menu:run"
