"""How alike two sentences are, 0 to 5: the STS benchmark (Cer et al. 2017, arXiv 1708.00055), a regression.

Data:     5,749 / 1,500 / 1,379 records {"sentence1", "sentence2", "score"} in train, validation and test.jsonl
Command:  limbeck run stsb --task FOLDER/stsb --model runs/foundation/model
"""

import dataclasses
import json

from limbeck.experiments.configs import sst2

DESCRIPTION = json.dumps({
    "kind": "regression",
    "output": "score",
    "template": {"query": "{sentence1}\n{sentence2}\nscore:"},
})  # fmt: skip

config = dataclasses.replace(
    sst2.config,
    task="data/stsb",
    description=DESCRIPTION,
    fit=dataclasses.replace(sst2.config.fit, steps=600, length=192),  # the longest pair has 178 tokens
)
main = "limbeck.experiments.tuning:run"
