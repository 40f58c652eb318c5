"""The card of a set that a teacher wrote: README.md in the sections that Hugging Face gives a data set's card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.evaluation.data_audit.tables import audit_tables
from limbeck.model.files import disk_errors, write_atomic
from limbeck.model.markdown import escaped, table
from limbeck.model.pretrained.card import Table
from limbeck.model.pretrained.lineage import Lineage
from limbeck.tasks.task import Kind, Record

_CATEGORIES: dict[Kind, str] = {
    "generation": "text-generation",
    "classification": "text-classification",
    "multi_label": "text-classification",
    "regression": "text-classification",
}
_PERSONAL, _WRITTEN, _SHIFT = "Personal data by its form", "What the teacher wrote", "Label rates, teacher and data"


class WrittenSet(NamedTuple):
    """Records that a teacher wrote for a kind of task, the settings by which it did, what `audit_distilled` found."""

    name: str
    kind: Kind
    records: Sequence[Record]
    teacher: Lineage
    how: Mapping[str, Any]
    found: Mapping[str, Any]


def write_data_set(folder: str | Path, wrote: WrittenSet) -> None:
    """Writes train.jsonl, card.json and, last, README.md of what a teacher wrote; equal sets give equal bytes.

    Raises UserError on a full disk or a place that cannot be written.
    """
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "train.jsonl", (json.dumps(each, ensure_ascii=False) + "\n" for each in wrote.records))
    teacher = wrote.teacher[0].digest
    told = {"name": wrote.name, "teacher": teacher, "how": dict(wrote.how), "audit": wrote.found}
    write_atomic(folder / "card.json", json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    write_atomic(folder / "README.md", _card(wrote))


def _card(wrote: WrittenSet) -> str:
    name, kind, records, teacher, how, found = wrote
    metadata = {
        "pretty_name": name,
        "task_categories": [_CATEGORIES[kind]],
        "size_categories": [_size(len(records))],
        "annotations_creators": ["machine-generated"],
        "tags": ["limbeck", "synthetic", "distillation"],
        "configs": [{"config_name": "default", "data_files": "train.jsonl"}],
    }
    own = teacher[0]
    behind = ", ".join(f"{each.name} ({each.made})" for each in teacher[1:]) or "no other model"
    tables = {each.title: each for each in audit_tables(found)}
    apart = (_PERSONAL, _WRITTEN, _SHIFT)
    fields = ", ".join(f"`{escaped(each)}`" for each in records[0]) if records else "none"
    parts = [
        "---\n" + "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()),
        f"---\n\n# {escaped(name)}",
        "## Dataset Details\n\n### Dataset Description",
        f"{len(records):,} records that a model wrote for a smaller one to learn from; nobody has checked them.",
        "- **License:** not stated; the licences of the teacher and of the data that it read bind it",
        "## Uses\n\n### Direct Use",
        "Training a student of that teacher, for that task.",
        "### Out-of-Scope Use",
        "As a reference of what is true: where the teacher is wrong, so is this.",
        "## Dataset Structure",
        f"`train.jsonl`, one record a line, with the fields {fields}.",
        "## Dataset Creation\n\n### Source Data",
        escaped(f"{_queries(found['distilled'])}, by these settings: {_said(how)}"),
        _shown(tables.get(_WRITTEN)),
        "### Annotations",
        escaped(f"By {own.name}: {own.made} {own.method}, {own.digest}; made of {behind}."),
        "### Personal and Sensitive Information",
        _shown(tables.get(_PERSONAL)),
        "## Bias, Risks, and Limitations",
        "A student learns the teacher's mistakes and biases with its skill. Label rates by group, teacher and data:",
        _shown(tables.get(_SHIFT)),
        *(f"### {escaped(title)}\n\n{_shown(each)}" for title, each in tables.items() if title not in apart),
        "### Recommendations",
        "Look at the shifts above before a student is trained, and measure the student beside one without its teacher.",
        "## Dataset Card Contact\n\nnot stated",
    ]
    return "\n\n".join(parts).replace("\n\n---\n", "\n---\n", 1) + "\n"


def _size(records: int) -> str:
    """The class of sizes that the hub knows."""
    for limit, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if records < limit:
            return name
    return "n>1M"


def _queries(distilled: Mapping[str, Any]) -> str:
    if "given" not in distilled:
        return "What the teacher wrote by itself"
    return "Queries of the task" + (", and what the teacher wrote by itself" if distilled["own_queries"] else "")


def _said(how: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in how.items()) or "none"


def _shown(each: Table | None) -> str:
    if each is None:
        return "not measured"
    return table(each.header, each.rows) + (f"\n\n{escaped(each.note)}" if each.note else "")
