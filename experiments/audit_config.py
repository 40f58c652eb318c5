"""What an audit reads from an experiment file or the command line; jax-free."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from limbeck.model.errors import UserError, one_of

Dtype = Literal["", "float32", "bfloat16", "float16"]


def names_of(paths: Sequence[str]) -> list[str]:
    """What a reader would call each: the end of its path, as long as tells it from the others.

    Every run calls its model `model`: that part is left out. Raises UserError for one that is named twice.
    """
    parts = [[part for part in Path(path).resolve().parts if part != "model"] for path in paths]
    if len(set(map(tuple, parts))) < len(paths):
        raise UserError(f"{', '.join(paths)}: name each once")
    length = 1
    while len({tuple(each[-length:]) for each in parts}) < len(parts):
        length += 1
    return ["/".join(each[-length:]) for each in parts]


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """What is audited, models or one set of data, and by what; what is not given is left out and said to be."""

    what: tuple[str, ...] = ()  # models (folders or files), related ones are compared; or one task or text
    pairs: str = ""  # sentence pairs in the form of CrowS-Pairs: .jsonl, .csv
    questions: str = ""  # questions in the form of BBQ: .jsonl
    winobias: str = ""  # the folder of WinoBias
    occupations: str = ""  # a table: occupation, share of women
    frames: str = ""  # sentences for it, one a line, with {occupation} and later {pronoun}; empty: the built-in ones
    task: str = ""  # for groups and counterfactuals; of data: what a task.json beside it would not say
    description: str = ""  # what a task.json says, in JSON, for data that has none
    split: str = "test"  # of the task
    shots: int = 0  # solved examples in its prompts
    swaps: tuple[str, ...] = ()  # files of words to swap, two a line; empty: the built-in list
    words: str = ""  # a table of words by which groups are named; empty: the built-in one
    generations: int = 8  # texts to each built-in beginning, for who is spoken of; 0: none
    training: str = ""  # texts that the models were trained on, for what can be extracted
    held_out: str = ""  # texts like them that they were not trained on; also of data: what must not be in it
    canaries: str = ""  # secrets that were put among the training texts, as `save_canaries` writes them
    ngram: int = 13  # words in a row by which a held-out text is found in training (GPT-3's, arXiv 2005.14165)
    limit: int = 0  # items of each set, and texts; 0: all
    dtype: Dtype = ""  # empty: as stored
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, get_args(Dtype))
        for name, least in (("shots", 0), ("generations", 0), ("limit", 0), ("ngram", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: at least {least}")
        if self.swaps and not self.task:
            raise UserError(f"swaps={self.swaps!r} are of a task's records: name a task, too")
        if self.frames and not self.occupations:
            raise UserError(f"frames={self.frames!r} are sentences about occupations: name a table of them, too")
        if self.training and self.training == self.held_out:
            raise UserError(f"training and held_out are both {self.training}: what was trained on is no control")
        if self.training and not self.held_out:
            raise UserError(f"training={self.training!r}: name held_out too, texts like these that were not trained on")
