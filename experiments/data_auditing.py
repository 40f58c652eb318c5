"""The audit of data: a task, or texts to train on; alone, or as what models are said to have read."""

import contextlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from limbeck.evaluation.bias.mentions import GroupWords, load_group_words, read_group_words
from limbeck.evaluation.data_audit.audit import audit_task, audit_texts
from limbeck.evaluation.data_audit.tables import audit_tables
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.answering import with_validation
from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.audit_probes import some, task_of, texts_of
from limbeck.experiments.machine import provenance
from limbeck.experiments.text_sources import hold_out
from limbeck.model.errors import UserError
from limbeck.model.pretrained.card import Table
from limbeck.model.pretrained.lineage import Lineage, data_of
from limbeck.tasks.sources import open_tables
from limbeck.tasks.task import Task
from limbeck.tasks.template import fields as template_fields
from limbeck.tasks.texts import read_texts

_OF_MODELS = (
    "pairs", "questions", "winobias", "occupations", "frames", "task", "shots", "swaps", "generations", "training",
    "canaries", "dtype",
)  # fmt: skip
_ANSWERS = {"label", "output", "score", "completion"}  # fields by which rows are a task's, and not texts alone


class Audited(NamedTuple):
    """What was found in a task or in texts, and these."""

    tables: list[Table]
    read: Task | Sequence[str]

    def read_by(self, lineage: Lineage) -> bool:
        """Whether the model was trained on this: on all of it, or on all but the share that its run held out."""
        share = lineage[0].config.get("held_out")
        if isinstance(self.read, Task):
            tasks = [self.read, *([with_validation(self.read, share)] if share else [])]
            parts: list[Sequence[Any]] = [task.splits["train"] for task in tasks]
        else:
            parts = [self.read, *([hold_out(self.read, share)[0]] if share else [])]
        return bool({data_of("", part).digest for part in parts} & {each.digest for each in lineage[0].data})


def audit_data(config: AuditConfig, rundir: Path) -> int:
    """Audits a task, or texts where that is all they are; a report; exit status 0."""
    (source,) = config.what
    own = {each.name: each.default for each in fields(AuditConfig)}
    if asked := [name for name in _OF_MODELS if getattr(config, name) != own[name]]:
        raise UserError(f"{asked[0]}={getattr(config, asked[0])!r} is asked of models, and {source} is none")
    words = _words(config)
    if not config.description and _is_text(source):
        found = _audited_texts(config, source, words)
    elif config.held_out or config.limit:
        raise UserError(f"{source} is a task: held_out and limit go with text; what a task holds out are its splits")
    else:
        found = _audited_task(config, source, words)
    data = {
        "title": f"Limbeck: an audit of {source}",
        **provenance(rundir, config.seed),
        "facts": [["read as", _kind(found.read)]],
        "tables": [each._asdict() for each in found.tables],
    }
    write_report(rundir, data)
    console = Console()
    if not console.is_terminal:
        console.width = 200  # so that every row is one line for the next program
    console.print(terminal_table(data))
    print(f"the report is {rundir / 'report.html'}")
    return 0


def _kind(read: Task | Sequence[str]) -> str:
    if not isinstance(read, Task):
        return f"text, {len(read):,} documents"
    sizes = ", ".join(f"{len(records):,} {split}" for split, records in read.splits.items())
    asked = ", ".join(template_fields(read.template.query))
    return f"a {read.kind} of {asked} by {read.answer_field}: {sizes} records"


def data_tables(config: AuditConfig) -> list[Audited]:
    """The audits of what an audit of models names besides: a task, texts, or both."""
    words = _words(config)
    found = [_audited_task(config, config.task, words)] if config.task else []
    return found + ([_audited_texts(config, config.training, words)] if config.training else [])


def _audited_task(config: AuditConfig, source: str, words: GroupWords) -> Audited:
    task = task_of(config, source)
    return Audited(audit_tables(audit_task(task, words=words, ngram=config.ngram)), task)


def _audited_texts(config: AuditConfig, source: str, words: GroupWords) -> Audited:
    documents = read_texts(source).documents
    held_out = texts_of(config.held_out) if config.held_out else []
    kept = some(documents, config)
    texts, places = [each.text for each in kept], [each.place for each in kept]
    found = audit_texts(texts, some(held_out, config), words=words, places=places, ngram=config.ngram)
    return Audited(audit_tables(found), [each.text for each in documents])


def _is_text(source: str) -> bool:
    """Whether a source is text alone: .txt files, or rows with a "text" and no answer to it."""
    path = Path(source)
    if path.suffix == ".txt" or (path.is_dir() and any(path.glob("*.txt"))):
        return True
    with contextlib.suppress(UserError):  # what is wrong with it is said when it is read
        row = next(iter(open_tables(source, {})["train"].rows), None)
        return row is not None and "text" in row.fields and not _ANSWERS & row.fields.keys()
    return False


def _words(config: AuditConfig) -> GroupWords:
    return read_group_words(config.words) if config.words else load_group_words()
