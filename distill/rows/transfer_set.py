"""What the teacher writes as data to train on: its answers to the user's queries, and queries of its own."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

from limbeck.inference.engine import Engine
from limbeck.inference.job import BulkRequest
from limbeck.inference.requests import GenerateRequest, Generation, Result, Sampling
from limbeck.inference.stored import stored_results
from limbeck.model.errors import UserError
from limbeck.model.progress import progress
from limbeck.prompting.predict import make_requests, predict, query_text, read_answer
from limbeck.tasks.task import Record, Task, check_answer
from limbeck.tasks.template import fields

_BATCH = 512  # prompts of one or two tokens: wide batches cost little


def write_transfer_set(task: Task, teacher: Engine, tokens: int, seed: int) -> list[Record]:
    """Distinct queries that the teacher writes, each with its own answer; about `tokens` tokens are written.

    The teacher begins a text as the task's template does and is sampled at temperature 1 until the field is full; no
    label and no test record is read, so what the student learns of them came through the teacher. Where the template's
    query has several fields nothing is written: they would have to fit one another.
    """
    names = fields(task.template.query)
    if len(names) != 1:
        return []
    before, after = task.template.query.split("{" + names[0] + "}")
    sampling, count = own_queries(task, teacher, tokens, seed)
    prompt = tuple(teacher.tokenizer.prompt(before))
    stop = tuple(dict.fromkeys(text for text in (after, "\n") if text))
    writer = Engine(teacher.config, teacher.params, teacher.tokenizer, _BATCH)
    texts: set[str] = set()
    with progress("transfer set", count, "draft") as advance:
        for start in range(0, count, 4 * _BATCH):
            samples = range(start, min(start + 4 * _BATCH, count))
            drafts = writer.generate([GenerateRequest(prompt, sampling, stop, sample) for sample in samples])
            texts |= {draft.text.strip() for draft in drafts if draft.stopped} - {""}
            advance(len(samples), note=f"{len(texts)} distinct")
    group = {task.group_field: ""} if task.group_field else {}
    records = [
        {"id": f"written/{i}", **group, names[0]: text, task.answer_field: ""} for i, text in enumerate(sorted(texts))
    ]
    return answered(task, teacher, records)


def own_queries(task: Task, teacher: Engine, tokens: int, seed: int) -> tuple[Sampling, int]:
    """How a query of the teacher's own is drawn, none longer than the longest there is, and how often.

    Never where the template's query has several fields.
    """
    names = fields(task.template.query)
    if len(names) != 1:
        return Sampling(), 0
    longest = max(len(teacher.tokenizer.encode(record[names[0]])) for record in task.splits["train"])
    sampling = Sampling(min(longest + 1, teacher.config.max_len // 2), temperature=1.0, seed=seed)
    return sampling, max(1, tokens // sampling.max_new_tokens)


def answered(task: Task, teacher: Engine, records: Sequence[Record]) -> list[Record]:
    """The records with the answers that the teacher finds likeliest.

    One that it leaves empty, does not end, or that is no answer of the task is dropped.
    """
    if task.kind == "classification":
        answers = predict(task, teacher, records).answers if records else ()
        return [{**record, task.answer_field: answer} for record, answer in zip(records, answers, strict=True)]
    requests = _requests(task, teacher, records)
    written: list[Generation] = []
    with progress("answers", len(requests), "record") as advance:
        for start in range(0, len(requests), _BATCH):
            portion = requests[start : start + _BATCH]
            written += teacher.generate(portion)
            advance(len(portion))
    return _ended(task, records, written)


def sampled(
    task: Task,
    teacher: Engine,
    records: Sequence[Record],
    store: str | os.PathLike[str],
    *,
    samples: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Record]:
    """Each record `samples` times, with answers drawn from the teacher: data to train on (Kim & Rush 2016, 1606.07947).

    An answer that is drawn twice is there twice, so that answers come as often as the teacher gives them; one that is
    empty, has no end, or is none of the task is dropped. The n-th draw of record ID has the id "ID/n". What was drawn
    is kept in the prediction store of that path, so a run that is killed goes on where it was.

    Raises UserError for a classification, whose options are scored and not written, for settings that cannot be, and
    where the store is another model's or cannot be written.
    """
    if task.kind == "classification":
        raise UserError(
            f"task {task.name!r} is a classification, whose options are scored, not written: take the teacher's "
            "likeliest ones (`answered`), or distil their probabilities"
        )
    if samples < 1 or temperature <= 0:
        raise UserError(f"samples={samples}, temperature={temperature}: must be at least 1, and more than 0")
    asked, drawn = [], []
    for record, request in zip(records, _requests(task, teacher, records), strict=True):
        sampling = replace(request.sampling, temperature=temperature, seed=seed)
        for sample in range(samples):
            asked.append(BulkRequest(query_text(task, record), replace(request, sampling=sampling, sample=sample)))
            drawn.append({**record, "id": f"{record['id']}/{sample}"})
    return _ended(task, drawn, stored_results(teacher, asked, store))


def _requests(task: Task, teacher: Engine, records: Sequence[Record]) -> list[GenerateRequest]:
    return [each for each in make_requests(task, teacher, records)[0] if isinstance(each, GenerateRequest)]


def _ended(task: Task, records: Sequence[Record], written: Sequence[Result | None]) -> list[Record]:
    """The records with what was written as their answers, where that is an answer and has an end."""
    kept = []
    for record, generation in zip(records, written, strict=True):
        answer = read_answer(task, generation) if isinstance(generation, Generation) and generation.stopped else ""
        with contextlib.suppress(UserError):
            check_answer(answer, task.place(record), task.kind, task.options, task.template.separator)
            if answer:
                kept.append({**record, task.answer_field: answer})
    return kept
