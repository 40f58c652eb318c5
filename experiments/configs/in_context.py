"""A small foundation that has read solved records in rows, so that it can be prompted, letter by letter.

Text: words of TinyStories put through rules of spelling, the training records of word tasks (Todd et al. 2023, arXiv
2310.15213), of SST-2, AG News and GSM8K, eight to a document, and TinyStories. None of a task's test records is in it,
nor a rule's answer about a word that one asks for; a tenth of the training records is held out, the same that `adapt`
validates on.

Command:  limbeck run in_context --root FOLDER      where FOLDER/in_context_tasks, FOLDER/tinystories and so on are
"""

import json

from limbeck.experiments.configs import ag_news
from limbeck.experiments.pretraining_config import PretrainingConfig
from limbeck.train.config import FitConfig, OptimConfig

WORDS = json.dumps({"input": "input", "output": "output", "kind": "generation"})
WORD_TASKS = (
    "capitalize", "singular-plural", "present-past", "next_item", "country-capital", "antonym", "english-french",
)  # fmt: skip
GSM8K = json.dumps(
    {
        "output": "final",
        "kind": "generation",
        "parts": {"answer": "{steps}\n#### {final}"},
        "template": {"query": "Q: {question}\nA:", "target": " {steps}\n#### {final}", "separator": "\n\n"},
    }
)

config = PretrainingConfig(
    texts=("tinystories",),
    solved=(
        *((f"in_context_tasks/{name}.jsonl", WORDS) for name in WORD_TASKS),
        ("sst2", ""),
        ("ag_news_7600", ag_news.DESCRIPTION),
        ("gsm8k", GSM8K),
    ),
    ruled=("tinystories",),
    weights=(0.5, *(0.5 for _ in WORD_TASKS), 0.5, 0.5, 0.5, 4),
    model="tiny",
    vocab_size=260,  # of bytes: rules of spelling are about letters, which longer tokens hide
    max_len=1024,
    held_out=0.1,
    prompts=("tree: Tree\nbig:", "tree: trees\nbox:", "go: went\nwalk:"),
    fit=FitConfig(
        steps=1500,
        batch_size=32,
        length=192,
        optim=OptimConfig("muon", learning_rate=4e-3, weight_decay=0.1, decays=(".*",), final=0.05),
        evaluate_every=500,
    ),
)
main = "limbeck.experiments.pretraining:run"
