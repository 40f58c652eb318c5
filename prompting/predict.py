"""A task's records answered by a model that is not moved: options are compared, or answers written; and what was asked.

Dimension key: `N` records, `O` options.
"""

import dataclasses
import hashlib
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Generation, Sampling, ScoreRequest, Scores
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import Tokenizer
from limbeck.prompting import votes
from limbeck.prompting.compare import Make, compare, portions
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import Chooser, chooser
from limbeck.prompting.prompts import Prompt, answer_text, make_prompt, scored, words
from limbeck.prompting.scores import OptionScores, best, option_scores
from limbeck.tasks.label_metrics import normalise
from limbeck.tasks.number_metrics import number
from limbeck.tasks.task import Record, Task
from limbeck.tasks.template import fields, read_back


class Asked(NamedTuple):
    """One record as it was put to the model and what came back; `_asdict()` goes into JSON.

    Where options were compared, `scores` has of each what `OptionScores` holds ("alone" and "domain" where the view
    needs one of them) and "score", by which the answer was found. Where answers were written, `generations` are their
    texts, `logprobs` and `tokens` what they are worth, `read` the answers that were found in them.
    """

    id: str
    prompt_sha256: str  # of the text in UTF-8
    prompt_ids: tuple[int, ...]
    text: str
    shown: tuple[str, ...]
    dropped: int
    option_texts: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    generations: tuple[str, ...]
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    read: tuple[str, ...]
    answer: str
    right: str


@dataclass(frozen=True)
class Predictions:
    """An answer for each record, the tokens of each prompt, how many examples did not fit, and what was asked."""

    answers: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    dropped: int
    asked: tuple[Asked, ...]


def predict(
    task: Task, engine: Engine, records: Sequence[Record], prompt: PromptConfig = PromptConfig()
) -> Predictions:
    """Answers every record as `prompt` says. Raises UserError for what the task or the model does not allow."""
    if not records:
        return Predictions((), (), 0, ())
    make = _maker(task, engine, prompt)
    prompts = make(records, records)
    if scored(task, prompt):
        found = compare(task, engine, prompt, records, prompts, make)
        asked = [
            _asked(task, record, each, one.answer, scores=one.scores)
            for record, each, one in zip(records, prompts, found, strict=True)
        ]
    else:
        asked = _written(task, engine, prompt, records, prompts)
    return Predictions(
        tuple(each.answer for each in asked),
        tuple(len(each.prompt_ids) for each in asked),
        sum(each.dropped for each in asked),
        tuple(asked),
    )


def make_requests(
    task: Task, engine: Engine, records: Sequence[Record], prompt: PromptConfig = PromptConfig()
) -> tuple[list[GenerateRequest | ScoreRequest], int]:
    """(what is asked about each record, how many examples were left out).

    Of several samples it is the first; what is asked besides, to calibrate or to compare with, is not among them.
    Raises UserError as `make_prompt` does.
    """
    prompts = _maker(task, engine, prompt)(records, records)
    new_tokens = answer_tokens(task, engine.tokenizer, prompt)
    return [_request(each, prompt, new_tokens) for each in prompts], sum(each.dropped for each in prompts)


def examples_for(task: Task, engine: Engine, prompt: PromptConfig) -> Chooser:
    """Which examples stand before records. What similar ones are looked up in is made once and stays with the engine.

    Raises UserError as `chooser` does.
    """
    room = engine.config.max_len - engine.prefix("")

    def embed(texts: Sequence[str]) -> np.ndarray:  # of as much as the model can read: what is similar, not a prompt
        return engine.embed([engine.tokenizer.prompt(text)[:room] for text in texts])

    listed = prompt.form == "multiple_choice"
    own = dataclasses.replace(prompt, query=words(task, prompt).query) if listed else prompt
    return chooser(task, own, embed if prompt.pick in ("nearest", "diverse") else None, kept=engine.indexes)


def answer_tokens(task: Task, tokenizer: Tokenizer, prompt: PromptConfig = PromptConfig()) -> int:
    """How many tokens an answer may take: the longest of the training split with its separator, and one more.

    Raises UserError where those answers do not say how long it is, for they have no reasons in them, and for one with
    the separator in it, at which what is written ends, and for a target that answers cannot be read back by.
    """
    own = words(task, prompt)
    if len(fields(own.target)) > 1 and not (prompt.extract or scored(task, prompt)):
        read_back(own.target, "")  # whether an answer can be read back is seen before one is written
    texts = {answer_text(task, prompt, record): record for record in task.splits["train"]}
    if not (scored(task, prompt) or prompt.chat):
        for text, record in texts.items():
            if own.separator in text.removesuffix(own.separator):
                raise UserError(
                    f"{task.place(record)}: {text!r:.60} has the separator {own.separator!r} in it, at which a written "
                    "answer ends: give another by separator="
                )
    if prompt.max_new_tokens is not None:
        return prompt.max_new_tokens
    if prompt.reasoning and set(fields(own.target)) == {task.answer_field}:
        raise UserError(f"reasoning={prompt.reasoning!r}: say by max_new_tokens= how long the model may reason")
    return max(len(ids) for ids in tokenizer.encode_batch(sorted(texts))) + 1


def query_text(task: Task, record: Record) -> str:
    """What a look-up asks by: the text of the query's fields."""
    return " ".join(record[name] for name in fields(task.template.query))


def read_answer(task: Task, result: Generation | Scores, prompt: PromptConfig = PromptConfig()) -> str:
    """The answer in the task's words: what is written, or the likeliest option (the first of equals).

    Of a written answer it is what `prompt.extract` finds, "" if it finds nothing or, in a classification, no option;
    without one what the target's template reads back, and the whole text where it is of another form.
    """
    if isinstance(result, Scores):
        assert task.options is not None
        return task.options[max(range(len(task.options)), key=lambda i: result.logprobs[i])]
    text, own = result.text, words(task, prompt)
    if prompt.extract:
        found = [match[1] or "" for match in re.finditer(prompt.extract, text)]
        text = found[-1] if found else ""
    elif len(fields(own.target)) > 1:
        text = (read_back(own.target.strip(), text.strip()) or {task.answer_field: text})[task.answer_field]
    text = text.strip()
    return _option(task, words(task, prompt).options, text) if task.kind == "classification" else text


def stored_scores(asked: Sequence[Asked]) -> OptionScores:
    """The table of which every view can be had, out of what was stored of records whose options were compared.

    Raises UserError where answers were written.
    """
    if not asked or not all(each.scores for each in asked):
        raise UserError("no options were compared here: answers were written, or no record was asked")
    columns = {name: [each.scores[name] for each in asked] for name in asked[0].scores}
    texts = [each.option_texts for each in asked]
    return option_scores(columns["logprob"], columns["tokens"], texts, columns.get("alone"), columns.get("domain"))


def ensemble(task: Task, asked: Sequence[Sequence[Asked]]) -> tuple[str, ...]:
    """The answers of several prompts together, each of which was asked about the same records.

    Where all of them compared options it is the likeliest by the mean of what they find probable; where numbers were
    written, the median of those that are; else the commonest answer, of equals the earlier prompt's.
    """
    if all(each.scores for one in asked for each in one):
        assert task.options is not None
        tables = [[each.scores["score"] for each in one] for one in asked]
        return tuple(task.options[index] for index in best(votes.ensemble(tables)))
    answers_NP = list(zip(*([each.answer for each in one] for one in asked), strict=True))  # P prompts
    if task.kind != "regression":
        return votes.majority(answers_NP)
    return tuple(_median([value for said in answers if (value := number(said)) is not None]) for answers in answers_NP)


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.6g}" if values else ""


def _maker(task: Task, engine: Engine, prompt: PromptConfig) -> Make:
    """A function of records: their prompts; and of others in whose place they are, to which the examples belong."""
    if task.kind != "classification" and (prompt.view != "sum" or prompt.calibration != "none"):
        raise UserError(
            f"view={prompt.view!r}, calibration={prompt.calibration!r}: for options that are compared, and task "
            f"{task.name!r} is a {task.kind}"
        )
    new_tokens = answer_tokens(task, engine.tokenizer, prompt)
    room = engine.config.max_len - engine.prefix("")
    choose = examples_for(task, engine, prompt)
    return lambda records, others: [
        make_prompt(task, engine.tokenizer, prompt, record, examples, room, new_tokens)
        for record, examples in zip(records, choose.many(others), strict=True)
    ]


def _request(prompt: Prompt, config: PromptConfig, new_tokens: int) -> GenerateRequest | ScoreRequest:
    if prompt.options:
        return ScoreRequest(prompt.ids, prompt.options)
    return _written_request(prompt, config, new_tokens, 0)


def _written_request(prompt: Prompt, config: PromptConfig, new_tokens: int, sample: int) -> GenerateRequest:
    sampling = Sampling(new_tokens)
    if config.samples > 1:
        sampling = Sampling(new_tokens, temperature=config.temperature, seed=config.seed)
    return GenerateRequest(prompt.ids, sampling, prompt.stop, sample)


def _written(
    task: Task, engine: Engine, prompt: PromptConfig, records: Sequence[Record], prompts: list[Prompt]
) -> list[Asked]:
    new_tokens = answer_tokens(task, engine.tokenizer, prompt)
    samples = range(prompt.samples)
    requests = [_written_request(each, prompt, new_tokens, sample) for each in prompts for sample in samples]
    generations = portions(task, prompt, engine.generate, requests)
    asked = []
    for row, (record, each) in enumerate(zip(records, prompts, strict=True)):
        said = generations[row * prompt.samples : (row + 1) * prompt.samples]
        read = tuple(read_answer(task, one, prompt) for one in said)
        logprobs, tokens = tuple(one.logprob for one in said), tuple(len(one.tokens) for one in said)
        if prompt.vote == "majority":
            [answer] = votes.majority([read])
        else:  # by the token, as Wang et al. 2022 have it: a longer answer is no worse one
            [answer] = votes.weighted([read], [[p / max(n, 1) for p, n in zip(logprobs, tokens, strict=True)]])
        texts = tuple(one.text for one in said)
        asked.append(_asked(task, record, each, answer, generations=texts, logprobs=logprobs, tokens=tokens, read=read))
    return asked


def _asked(
    task: Task,
    record: Record,
    prompt: Prompt,
    answer: str,
    scores: dict[str, tuple[float, ...]] | None = None,
    generations: tuple[str, ...] = (),
    logprobs: tuple[float, ...] = (),
    tokens: tuple[int, ...] = (),
    read: tuple[str, ...] = (),
) -> Asked:
    return Asked(
        id=record["id"],
        prompt_sha256=hashlib.sha256(prompt.text.encode()).hexdigest(),
        prompt_ids=prompt.ids,
        text=prompt.text,
        shown=prompt.shown,
        dropped=prompt.dropped,
        option_texts=prompt.option_texts,
        scores=scores or {},
        generations=generations,
        logprobs=logprobs,
        tokens=tokens,
        read=read,
        answer=answer,
        right=record.get(task.answer_field, ""),
    )


def _option(task: Task, spoken: Sequence[str], text: str) -> str:
    """The option that a text names, by its words or its letter; "" for none or several."""
    options = task.options or ()
    lettered = re.match(r"[(\[]?([A-Z])[.):\]]", text)
    for said, names in ((text, spoken), (lettered[1] if lettered else "", spoken), (text, options)):
        for fold in (normalise, lambda name: normalise(name).casefold()):
            found = [option for option, name in zip(options, names, strict=True) if fold(name) == fold(said)]
            if said and len(found) == 1:
                return found[0]
    return ""
