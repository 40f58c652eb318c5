"""Step-by-step distillation: why an answer is right, as a second target (Hsieh et al. 2023, arXiv 2305.02301).

A record gives two examples: its query with the answer, as in any training, and a marker and the query with the
rationale. The marker says which of the two is asked; without it the student answers at once, as it is used.
"""

import os
from collections.abc import Sequence

import numpy as np

from limbeck.inference.engine import Engine
from limbeck.inference.job import BulkRequest
from limbeck.inference.requests import GenerateRequest, Generation, Sampling
from limbeck.inference.stored import stored_results
from limbeck.model.errors import UserError, nearest
from limbeck.model.tokenizer import Tokenizer
from limbeck.model.tokenizer.join import joined
from limbeck.prompting.predict import query_text
from limbeck.tasks.task import Record, Task
from limbeck.train.examples import Example

RATIONALE = "rationale"  # the field of what a teacher writes

def rationale_examples(
    task: Task,
    records: Sequence[Record],
    tokenizer: Tokenizer,
    field: str,
    weight: float = 1.0,
    prompt: str = "Explain: ",
) -> list[Example]:
    """Examples that ask, by the marker `prompt` before the task's own, for the rationale in the records' `field`.

    To be packed beside `train.examples.completions` of the same records. `counts` holds `weight` for each token of the
    rationale and of what ends it, where an answer's has 1: the paper's lambda, but that the loss is the mean by weight
    over a batch. Records whose rationale is empty or missing give none. Raises UserError where no record has the field,
    for a weight that is not above 0 and for an empty marker.
    """
    if weight <= 0:
        raise UserError(f"weight={weight} of the rationales: must be more than 0, or leave them out")
    if not prompt:
        raise UserError("the marker before a rationale is empty, so one prompt would have two answers: give one")
    names = dict.fromkeys(name for record in records for name in record)
    if records and field not in names:
        raise UserError(f"no record has a field {field!r} among {', '.join(names)}{nearest(field, names)}")
    examples = []
    for record in records:
        if rationale := record.get(field, "").strip():
            texts = (prompt + task.prompt(record), task.target(record, rationale) + task.template.separator)
            [(ids, given)] = joined(tokenizer, [texts])
            weights = np.zeros(len(ids), np.float32)
            weights[given:] = weight
            examples.append(Example(np.asarray(ids, np.int32), weights, f"{task.place(record)}, {field}"))
    return examples


def written_rationales(
    task: Task,
    teacher: Engine,
    records: Sequence[Record],
    store: str | os.PathLike[str],
    *,
    field: str = RATIONALE,
    ask: str = " because",
    new_tokens: int = 64,
) -> list[Record]:
    """The records with what the teacher writes, greedily, after query, answer and `ask`, in their `field`.

    A rationale ends at the template's separator; a record whose rationale is empty or does not end is dropped. What was
    written is kept in the prediction store of that path. Raises UserError where that is another model's or cannot be
    written.
    """
    sampling, stop = Sampling(new_tokens), (task.template.separator,)
    asked = []
    for record in records:
        ids = teacher.tokenizer.prompt(task.prompt(record) + task.target(record) + ask)
        asked.append(BulkRequest(query_text(task, record), GenerateRequest(tuple(ids), sampling, stop)))
    written = stored_results(teacher, asked, store)
    return [
        {**record, field: generation.text.strip()}
        for record, generation in zip(records, written, strict=True)
        if isinstance(generation, Generation) and generation.stopped and generation.text.strip()
    ]
