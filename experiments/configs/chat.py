"""A foundation tuned on conversations: what the assistant says counts, in every turn; low-rank adapters train.

Data:     JSONL with a field "messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]
Command:  limbeck run chat --model MODEL --chats FILE      where MODEL's tokenizer has a chat template
"""

from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.train.config import FitConfig, MethodConfig, OptimConfig

config = PretrainingConfig(
    chats=("chats.jsonl",),
    model="model",
    tuning="lora",
    method=MethodConfig(rank=16),
    held_out=0.1,
    fit=FitConfig(
        steps=300,
        batch_size=16,
        length=512,
        optim=OptimConfig(learning_rate=1e-4),  # of full tuning; low-rank adapters take ten times as much
        evaluate_every=50,
        keep="best",
    ),
    on_bad_row="skip",  # conversations longer than a row are counted and listed
)
main = "limbeck.experiments.pretraining:run"
