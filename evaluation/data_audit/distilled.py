"""The audit of what a teacher wrote: its answers to given queries, drawn once or more, and queries of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from limbeck.evaluation.bias.mentions import GroupWords, group_counts
from limbeck.evaluation.data_audit.audit import SHOWN, audit_task
from limbeck.evaluation.data_audit.items import task_items
from limbeck.evaluation.data_audit.labels import label_shift, told
from limbeck.evaluation.data_audit.normal import folded
from limbeck.evaluation.data_audit.overlap import NGRAM
from limbeck.tasks.intervals import mean, share
from limbeck.tasks.task import Record, Task


def audit_distilled(
    task: Task,
    gold_records: Sequence[Record],
    teacher_records: Sequence[Record],
    *,
    words: GroupWords,
    filtered: Sequence[tuple[str, int]] = (),
    ngram: int = NGRAM,
) -> dict[str, Any]:
    """`audit_task` of what the teacher wrote, in the place of the training records, and how it differs from the data.

    A teacher's record answers the gold one of its id, or of ID if its own is "ID/n", the n-th answer drawn; every
    other is a query of its own. "distilled" has the counts, the share of answers that agree with the data (to the
    letter but for case and white space), and, where answers are labels, the shift of each label's rate by group; of
    a teacher with queries of its own alone no more than their number, for it was given none. The same task gives test
    records, so that leaks into what the teacher wrote are told. Raises UserError where the teacher wrote nothing, or
    what is no answer of the task.
    """
    gold = {record["id"]: record for record in gold_records}
    answers: dict[str, list[Record]] = {}
    own: list[Record] = []
    for record in teacher_records:
        source = _source(record["id"], gold)
        if source is None:
            own.append(record)
        else:
            answers.setdefault(source, []).append(record)
    distilled = {**_answered(gold, answers), "own_queries": len(own)}
    answered = {identity: record for identity, record in gold.items() if identity in answers}
    agreement = [
        sum(folded(task.answer(each)) == folded(task.answer(record)) for each in answers[identity])
        / len(answers[identity])
        for identity, record in answered.items()
    ]
    if agreement:
        distilled["agreement"] = told(share(agreement) if set(agreement) <= {0, 1} else mean(agreement))
    written = replace(task, splits={**task.splits, "train": tuple(teacher_records)})
    if agreement and task.options:
        texts = [item.text for item in task_items(task, list(answered.values()))]
        distilled["label_shift"] = label_shift(
            [task.labels(record) for record in answered.values()],
            [[task.labels(each) for each in answers[identity]] for identity in answered],
            task.options,
            group_counts(texts, words),
        )
    audit = audit_task(written, words=words, filtered=filtered, ngram=ngram)
    return {"distilled": distilled, **audit}


def _answered(gold: Mapping[str, Record], answers: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """What became of the given queries; nothing where none has an answer, as none was asked."""
    if not answers:
        return {}
    missing = [identity for identity in gold if identity not in answers]
    return {
        "given": len(gold),
        "answered": len(answers),
        "answers": sum(map(len, answers.values())),
        "dropped": {"count": len(missing), "where": missing[:SHOWN]},
    }


def _source(identity: str, gold: Mapping[str, Record]) -> str | None:
    if identity in gold:
        return identity
    source, _, drawn = identity.rpartition("/")
    return source if drawn.isdecimal() and source in gold else None
