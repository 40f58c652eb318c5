"""What a bank's customer wants: Banking77 (Casanueva et al. 2020, arXiv 2003.04807) with a head of 77 labels.

Data:     10,003 / 3,080 records {"text", "label"} in train and test.jsonl
Command:  limbeck run banking77 --task FOLDER/banking77 --model runs/foundation/model
"""

import dataclasses
import json

from limbeck.experiments.configs import sst2

DESCRIPTION = json.dumps({"input": "text", "output": "label", "options": "from_train"})

config = dataclasses.replace(
    sst2.config,
    task="data/banking77",
    description=DESCRIPTION,
    fit=dataclasses.replace(
        sst2.config.fit, steps=1000, optim=dataclasses.replace(sst2.config.fit.optim, learning_rate=1e-3)
    ),
)
main = "limbeck.experiments.tuning:run"
