"""A small foundation that has read solved records in rows, so that it can be prompted: what `adapt` needs to show more
than a model that never saw such text (stories260k) does.

Text: the training records of fifteen word tasks (Todd et al. 2023, arXiv 2310.15213) eight to a document, TinyStories,
and SST-2's and AG News's training records in the same way. None of a task's test records is in it.

Command:  limbeck run in_context --root FOLDER      where FOLDER/in_context_tasks, FOLDER/tinystories and so on are
"""

import json

from limbeck.experiments.configs import ag_news
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.train.config import FitConfig, OptimConfig

WORDS = json.dumps({"input": "input", "output": "output", "kind": "generation"})
TASKS = (
    "antonym", "capitalize", "country-capital", "country-currency", "english-french", "english-german",
    "english-spanish", "landmark-country", "next_item", "person-occupation", "person-sport", "present-past",
    "product-company", "singular-plural", "synonym",
)  # fmt: skip

config = PretrainingConfig(
    texts=("tinystories",),
    solved=(
        *((f"in_context_tasks/{name}.jsonl", WORDS) for name in TASKS),
        ("sst2", ""),
        ("ag_news_7600", ag_news.DESCRIPTION),
    ),
    weights=(2.0, *(1.0 for _ in TASKS), 2.0, 2.0),
    model="tiny",
    vocab_size=4096,
    max_len=512,
    held_out=0.02,
    prompts=("hot: cold\nbig:", "go: went\nwalk:"),
    fit=FitConfig(
        steps=1000,
        batch_size=32,
        length=128,
        optim=OptimConfig("muon", learning_rate=4e-3, weight_decay=0.1, final=0.05),
        evaluate_every=250,
    ),
)
main = "limbeck.experiments.pretraining:run"
