"""How a record is put to a model that is not trained for it; jax-free, so that a mistake stops at once."""

import dataclasses
import re
from typing import Literal, get_args

from limbeck.model.errors import UserError, one_of

Pick = Literal["random", "fixed", "balanced", "nearest", "bm25", "diverse"]
Order = Literal["as_is", "shuffled", "similar_last"]
Form = Literal["completion", "multiple_choice", "cloze"]
View = Literal["sum", "per_token", "per_character", "per_byte", "pmi", "domain_pmi"]
Calibration = Literal["none", "contextual", "domain", "batch"]
Vote = Literal["majority", "weighted"]


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Words, examples and reading of a prompt; None is as the task's template has it, "" is nothing.

    Raises UserError for settings that contradict each other.
    """

    shots: int = 0  # solved examples before the query, of the training split
    pick: Pick = "random"  # which: drawn for each record, the same for all, as many of each option, or the most similar
    examples: tuple[str, ...] = ()  # fixed: their ids; empty: drawn once
    order: Order = "as_is"
    seed: int = 0  # of what is drawn and shuffled
    form: Form = "completion"  # multiple_choice lists the options and asks for a letter; cloze has the answer inside
    instruction: str | None = None
    query: str | None = None  # cloze: the whole text, with the answer in it; multiple_choice may have {options} in it
    target: str | None = None
    separator: str | None = None
    verbalisers: tuple[tuple[str, str], ...] = ()  # (option, the words that stand for it)
    chat: bool = False  # instruction, examples and query as a conversation, by the tokenizer's own template
    view: View = "sum"  # how the log-likelihoods of options are compared
    calibration: Calibration = "none"  # what an option scores whatever is asked is taken off
    reasoning: str = ""  # what the model goes on from before it answers, such as "Let's think step by step."
    extract: str = ""  # regular expression: the last match's first group is the answer, which is written, not scored
    max_new_tokens: int | None = None  # None: as long as the longest answer of the training split
    samples: int = 1  # answers that are drawn, and vote
    temperature: float = 0.7  # of those, where there are several
    vote: Vote = "majority"
    overflow: Literal["drop", "error"] = "drop"  # examples that do not fit: whole ones are left out and counted

    def __post_init__(self) -> None:
        for name, kind in (("pick", Pick), ("order", Order), ("form", Form), ("view", View),
                           ("calibration", Calibration), ("vote", Vote)):  # fmt: skip
            one_of(name, getattr(self, name), get_args(kind))
        one_of("overflow", self.overflow, ("drop", "error"))
        if self.shots < 0 or self.samples < 1 or self.temperature <= 0:
            raise UserError(
                f"shots={self.shots}, samples={self.samples}, temperature={self.temperature}: "
                "at least 0, at least 1, and more than 0"
            )
        if self.examples and (self.pick != "fixed" or len(self.examples) != self.shots):
            raise UserError(
                f"{len(self.examples)} examples are named, with pick={self.pick!r} and shots={self.shots}: "
                f"set pick='fixed' and shots={len(self.examples)}"
            )
        if self.order == "similar_last" and self.pick not in ("nearest", "bm25", "diverse"):
            raise UserError(f"order='similar_last' needs a pick that knows what is similar, not {self.pick!r}")
        if self.extract:
            try:
                groups = re.compile(self.extract).groups
            except re.error as error:
                raise UserError(f"extract={self.extract!r} is no regular expression: {error}") from error
            if groups < 1:
                raise UserError(f"extract={self.extract!r} has no group: put the answer's part in parentheses")
        if self.reasoning and not self.extract:
            raise UserError(f"reasoning={self.reasoning!r}: say by extract= what of the text is the answer")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: at least 1, or None for the longest answer's")
        if self.form == "cloze" and self.query is None:
            raise UserError("form='cloze' needs query=, the whole text with the answer's field in it")
        if self.form == "cloze" and self.target is not None:
            raise UserError(f"form='cloze' has the answer in its query: leave out target={self.target!r}")
        if self.writes:
            plain = {"view": "sum", "calibration": "none"} | ({"form": "completion"} if self.form == "cloze" else {})
            if named := [f"{name}={getattr(self, name)!r}" for name in plain if getattr(self, name) != plain[name]]:
                raise UserError(
                    f"{', '.join(named)}: for options that are scored; with reasoning, extract or samples answers are "
                    "written"
                )

    @property
    def writes(self) -> bool:
        """Whether the answer is written where its options could be scored."""
        return bool(self.reasoning or self.extract or self.samples > 1)
