"""The audit of data: a task or texts to train on, and what a teacher wrote for its students, with that set's card."""

from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.evaluation.bias.mentions import GroupWords, load_group_words, read_group_words
from limbeck.evaluation.data_audit.audit import audit_task, audit_texts
from limbeck.evaluation.data_audit.tables import audit_tables
from limbeck.evaluation.report import terminal_table, write_report
from limbeck.experiments.audit_config import AuditConfig
from limbeck.experiments.audit_probes import some, task_of, texts_of
from limbeck.experiments.machine import provenance
from limbeck.experiments.rundir import stage
from limbeck.model.errors import UserError
from limbeck.model.pretrained.card import Table


def audit_data(config: AuditConfig, rundir: Path) -> int:
    """Audits a task, or texts where that is all they are; a report; exit status 0."""
    (source,) = config.what
    found = stage(rundir, "audit", lambda: _found(config, source))
    tables = audit_tables(found)
    data = {
        "title": f"Limbeck: an audit of {source}",
        **provenance(rundir, config.seed),
        "tables": [each._asdict() for each in tables],
    }
    write_report(rundir, data)
    Console().print(terminal_table(data))
    print(f"the report is {rundir / 'report.html'}")
    return 0


def data_tables(config: AuditConfig) -> list[Table]:
    """The audit of what models are said to be trained on: a task, texts, or both."""
    words = _words(config)
    found = [audit_task(task_of(config, config.task), words=words)] if config.task else []
    if config.training:
        texts, held_out = (some(texts_of(path), config) for path in (config.training, config.held_out))
        found.append(audit_texts(texts, held_out, words=words))
    return [table for each in found for table in audit_tables(each)]


def _words(config: AuditConfig) -> GroupWords:
    return read_group_words(config.words) if config.words else load_group_words()


def _found(config: AuditConfig, source: str) -> dict[str, Any]:
    words = _words(config)
    try:
        task = task_of(config, source)
    except UserError as no_task:
        # Text alone is a source of documents, and no task; where it is neither, what a task lacks is what to mend.
        if config.description:
            raise
        try:
            texts = texts_of(source)
        except UserError:
            raise no_task from None
        held_out = texts_of(config.held_out) if config.held_out else []
        return audit_texts(some(texts, config), some(held_out, config), words=words)
    return audit_task(task, words=words)
