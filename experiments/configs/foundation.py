"""A small English foundation, for the tuning experiments beside it (sst2, ag_news, banking77, stsb).

Text: TinyStories, tiny Shakespeare, GSM8K's questions, and the training queries of the four tasks and of SMS spam,
without their answers. None of a task's test records is in it.

Command:  limbeck run foundation --root FOLDER      where FOLDER/tinystories, FOLDER/sst2 and so on are
"""

import json

from limbeck.experiments.configs import ag_news, banking77, stsb
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.train.config import FitConfig, OptimConfig

config = PretrainingConfig(
    texts=("tinystories", "tinyshakespeare/input.txt"),
    tasks=(
        ("sst2", ""),
        ("ag_news_7600", ag_news.DESCRIPTION),
        ("banking77", banking77.DESCRIPTION),
        ("stsb", stsb.DESCRIPTION),
        ("sms_spam", ""),
        ("gsm8k", json.dumps({"input": "question", "output": "answer", "template": {"separator": "<end>"}})),
    ),
    model="tiny",
    vocab_size=4096,
    held_out=0.02,
    prompts=("Once upon a time", "The film", "What is"),
    fit=FitConfig(
        steps=1600,
        batch_size=32,
        length=128,
        optim=OptimConfig("muon", learning_rate=4e-3, weight_decay=0.1, decays=(".*",), final=0.05),
        evaluate_every=250,
    ),
)
main = "limbeck.experiments.pretraining:run"
