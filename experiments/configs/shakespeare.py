"""Character of a language from one megabyte: a foundation pretrained on tiny Shakespeare.

Data:     https://github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt (public domain), 1,115,394 characters
Command:  limbeck run shakespeare --root FOLDER      where FOLDER/tinyshakespeare/input.txt is
"""

from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.train.config import FitConfig, OptimConfig

config = PretrainingConfig(
    texts=("tinyshakespeare/input.txt",),
    model="tiny",
    vocab_size=1024,
    held_out=0.1,
    prompts=("ROMEO:", "To be, or not to be"),
    fit=FitConfig(
        steps=600,
        batch_size=32,
        length=128,
        optim=OptimConfig("muon", learning_rate=4e-3, weight_decay=0.1, decays=(".*",), final=0.05),
        evaluate_every=100,
        keep="best",
    ),
)
main = "limbeck.experiments.pretraining:run"
