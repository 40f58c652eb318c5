"""The worked example of answers ahead of time: a country's name in any of sixty languages, and which country it is.

A small model is tuned on four fifths of the names and answers all that are listed in bulk; live queries, typed as
people type, are looked up; what was in no list is asked of the model.

Data:     15,687 records {"language", "country", "name"} (CLDR's, by umpirsky/country-list), or any list like it
Command:  limbeck run synonyms --tuning.task FOLDER/country_names/all.jsonl
"""

import json

from limbeck.experiments.ahead_config import AheadConfig
from limbeck.experiments.tuning_config import TuningConfig
from limbeck.train.config import FitConfig, OptimConfig

config = AheadConfig(
    tuning=TuningConfig(
        task="data/country_names/all.jsonl",
        model="tiny",
        description=json.dumps({"input": "name", "output": "country", "options": "from_train"}),
        vocab_size=1024,
        max_len=128,
        smoothing=0.1,
        fit=FitConfig(
            steps=600,
            batch_size=32,
            length=128,
            optim=OptimConfig("muon", learning_rate=4e-3, weight_decay=0.1, decays=(".*",), final=0.05),
            evaluate_every=150,
            keep="best",
        ),
    )
)
main = "limbeck.experiments.ahead:run"
