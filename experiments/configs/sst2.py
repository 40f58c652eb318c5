"""Sentiment of film reviews: SST-2 (Socher et al. 2013) with a head of two labels.

Data:     6,920 / 872 / 1,821 records {"text", "label"} in train, validation and test.jsonl
Command:  limbeck run sst2 --task FOLDER/sst2 --model runs/foundation/model
"""

from limbeck.experiments.tuning_config import TuningConfig
from limbeck.train.config import FitConfig, OptimConfig

config = TuningConfig(
    task="data/sst2",
    model="runs/foundation/model",
    smoothing=0.1,
    fit=FitConfig(
        steps=300,
        batch_size=16,
        length=128,
        optim=OptimConfig(learning_rate=5e-4, weight_decay=0.1),
        evaluate_every=50,
        keep="best",
    ),
)
main = "limbeck.experiments.tuning:run"
