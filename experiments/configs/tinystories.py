"""A foundation pretrained on a few hundred TinyStories (Eldan & Li 2023, arXiv 2305.07759).

Data:     JSONL with a field "text"; FOLDER/tinystories/train.jsonl
Command:  limbeck run tinystories --root FOLDER
"""

import dataclasses

from limbeck.experiments.configs import shakespeare

config = dataclasses.replace(
    shakespeare.config,
    texts=("tinystories",),
    held_out=0.1,
    prompts=("Once upon a time", "Lily and Tom"),
    fit=dataclasses.replace(shakespeare.config.fit, steps=400),
)
main = "limbeck.experiments.pretraining:run"
