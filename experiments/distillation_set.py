"""The set that a teacher wrote for its students, as a folder of its own: records, audit, card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.distill.rows.transfer_set import own_queries
from limbeck.evaluation.bias.mentions import load_group_words
from limbeck.evaluation.data_audit.card import WrittenSet, write_data_set
from limbeck.evaluation.data_audit.distilled import audit_distilled
from limbeck.experiments.rundir import stage
from limbeck.inference.engine import Engine
from limbeck.model.pretrained.lineage import Lineage
from limbeck.tasks.task import Record, Task


def audited_set(
    rundir: Path, task: Task, records: Sequence[Record], how: Mapping[str, Any], teacher: Engine, lineage: Lineage
) -> None:
    """Audits the records that a teacher wrote and writes them to `distillation_set/` of the run, once.

    `how` are the settings by which it was asked, "transfer_tokens" among them where it wrote queries of its own.
    """
    gold = task.splits["train"]

    def written() -> str:
        filtered = []
        if how.get("transfer_tokens"):
            _, asked = own_queries(task, teacher, how["transfer_tokens"], 0)
            own = sum(record["id"].startswith("written/") for record in records)
            filtered = [("drafts of queries: no end, empty, written before, or without an answer", asked - own)]
        found = audit_distilled(task, gold, records, words=load_group_words(), filtered=filtered)
        name = f"{task.name}, written by {lineage[0].name}"
        write_data_set(rundir / "distillation_set", WrittenSet(name, task.kind, records, lineage, how, found))
        return "distillation_set"

    stage(rundir, "distillation_set", written)
