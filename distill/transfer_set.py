"""The teacher's own queries: data to distil on where there is no more of the user's."""

from collections.abc import Sequence

from limbeck.inference.engine import Engine
from limbeck.inference.requests import GenerateRequest, Sampling
from limbeck.model.progress import progress
from limbeck.prompting.predict import predict
from limbeck.tasks.task import Record, Task, fields

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
    encode = teacher.tokenizer.encode
    longest = max(len(encode(record[names[0]])) for record in task.splits["train"])
    room = teacher.config.max_len // 2
    sampling = Sampling(min(longest + 1, room), temperature=1.0, seed=seed)
    prompt = tuple(teacher.tokenizer.prompt(before))
    stop = tuple(dict.fromkeys(text for text in (after, "\n") if text))
    writer = Engine(teacher.config, teacher.params, teacher.tokenizer, _BATCH)
    count = max(1, tokens // sampling.max_new_tokens)
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


def answered(task: Task, teacher: Engine, records: Sequence[Record]) -> list[Record]:
    """The records with the teacher's answers; one that it leaves empty or does not end is dropped."""
    answers = predict(task, teacher, records).answers if records else ()
    return [
        {**record, task.answer_field: answer}
        for record, answer in zip(records, answers, strict=True)
        if answer and task.template.separator not in answer
    ]
