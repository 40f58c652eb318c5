"""Options of records compared: their log-likelihoods, what is taken off them, and the answer that comes of it.

Dimension key: `N` records, `O` options, `X` records and prompts without content.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from limbeck.inference.engine import Engine
from limbeck.inference.requests import ScoreRequest
from limbeck.model.progress import progress
from limbeck.prompting import calibration
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.prompts import Prompt, blank, premise
from limbeck.prompting.scores import OptionScores, best, option_scores, view
from limbeck.tasks.task import Record, Task

_PORTION = 512  # requests between two moves of the progress bar
_RANDOM_TEXTS = 20  # without content, for calibration="domain": as many as Fei et al. take

Request = TypeVar("Request")
Result = TypeVar("Result")
Make = Callable[[Sequence[Record], Sequence[Record]], list[Prompt]]  # records, and those whose examples they have


class Compared(NamedTuple):
    """An answer, and the parts of `OptionScores` of each option with the "score" by which it was found."""

    answer: str
    scores: dict[str, tuple[float, ...]]


def compare(
    task: Task,
    engine: Engine,
    prompt: PromptConfig,
    records: Sequence[Record],
    prompts: Sequence[Prompt],
    make: Make,
) -> list[Compared]:
    """The best option of each record; `make` gives the prompts without content that calibration compares with."""
    assert task.options is not None
    blanks, others = _blanks(task, prompt, records)
    table = _table(task, engine, prompt, [*records, *blanks], [*prompts, *make(blanks, others)])
    score_NO = _calibrated(task, prompt, [*records, *blanks], len(records), view(table, prompt.view))
    found = []
    for row, index in enumerate(best(score_NO).tolist()):
        parts = {name.removesuffix("_NO"): part[row] for name, part in table._asdict().items() if part is not None}
        stored = {name: tuple(part.tolist()) for name, part in (*parts.items(), ("score", score_NO[row]))}
        found.append(Compared(task.options[index], stored))
    return found


def portions(
    task: Task, prompt: PromptConfig, ask: Callable[[list[Request]], list[Result]], requests: Sequence[Request]
) -> list[Result]:
    """What is asked, with a progress bar."""
    results: list[Result] = []
    with progress(f"{task.name}, {prompt.shots} examples", len(requests), "request") as advance:
        for start in range(0, len(requests), _PORTION):
            portion = list(requests[start : start + _PORTION])
            results += ask(portion)
            advance(len(portion))
    return results


def _table(
    task: Task, engine: Engine, prompt: PromptConfig, records: Sequence[Record], prompts: Sequence[Prompt]
) -> OptionScores:
    """Of each prompt, and of its options alone and after the task's premise where the view needs one of them."""

    def logprobs(requests: Sequence[ScoreRequest]) -> list[tuple[float, ...]]:
        distinct = list(dict.fromkeys(requests))
        found = dict(zip(distinct, portions(task, prompt, engine.score, distinct), strict=True))
        return [found[request].logprobs for request in requests]

    given = logprobs([ScoreRequest(each.ids, each.options) for each in prompts])
    alone = domain = None
    if prompt.view in ("pmi", "domain_pmi"):  # both, so that every view can be had of what is stored
        room = engine.config.max_len - engine.prefix("")
        nothing = tuple(engine.tokenizer.prompt(""))
        premises = [premise(task, engine.tokenizer, prompt, record, room) for record in records]
        alone = logprobs([ScoreRequest(nothing, each.options) for each in prompts])
        domain = logprobs([ScoreRequest(each.ids, each.options) for each in premises])
    tokens = [[len(option) for option in each.options] for each in prompts]
    return option_scores(given, tokens, [each.option_texts for each in prompts], alone, domain)


def _blanks(task: Task, prompt: PromptConfig, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Records without content, of each group of the records: what calibration compares with; and whose examples it has.

    Fixed examples are the records' own, also where a random text is an example's query: it is not asked for an answer.
    """
    if prompt.calibration == "contextual":
        texts = calibration.CONTENT_FREE
    elif prompt.calibration == "domain":
        texts = calibration.domain_texts(task, _RANDOM_TEXTS, prompt.seed)
    else:
        return [], []
    groups = {_group(task, record): record for record in records}
    said = [
        (text, f"without content/{group}/{number}", like)
        for group, like in groups.items()
        for number, text in enumerate(texts)
    ]
    blanks = [blank(task, prompt, text, identity, like) for text, identity, like in said]
    if prompt.pick != "fixed":
        return blanks, blanks
    return blanks, [blank(task, prompt, identity, identity, like) for _, identity, like in said]


def _calibrated(
    task: Task, prompt: PromptConfig, records: Sequence[Record], count: int, score_XO: np.ndarray
) -> np.ndarray:
    """score_NO of the first `count` records; the others are the blanks, each for the records of its group."""
    if prompt.calibration == "batch":
        return calibration.batch(score_XO[:count])
    if prompt.calibration == "none":
        return score_XO
    score_NO = score_XO[:count].copy()
    groups = [_group(task, record) for record in records]
    for group in set(groups):
        own = np.array([each == group for each in groups])
        asked, blanks = own[:count], own[count:]
        score_NO[asked] = calibration.contextual(score_XO[:count][asked], score_XO[count:][blanks])
    return score_NO


def _group(task: Task, record: Record) -> str:
    return record[task.group_field] if task.group_field else ""
