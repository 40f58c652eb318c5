"""What every method of a comparison was asked and said, record by record: one JSONL file a method."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from limbeck.evaluation.quantities import one_line
from limbeck.model.errors import UserError, nearest
from limbeck.model.files import write_atomic
from limbeck.tasks.label_metrics import normalise

_FOLDER = "asked"


def write_asked(run: Path, method: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keeps a method's rows, each with the "id" of its record, in `run`/asked/METHOD.jsonl."""
    (run / _FOLDER).mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_atomic(run / _FOLDER / f"{method}.jsonl", "".join(lines))


def read_asked(run: str | Path, record: str) -> dict[str, dict[str, Any]]:
    """{method: its row} of the record of that id, or of that number in the file, counted from 0.

    Raises UserError for a run that kept none, and for a record that none of its methods was asked.
    """
    files = sorted((Path(run) / _FOLDER).glob("*.jsonl"))
    if not files:
        raise UserError(f"{run} keeps no records: a run of `adapt` does")
    found, ids = {}, []
    for path in files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_id = {row["id"]: row for row in rows}
        ids = ids or list(by_id)
        if record in by_id:
            found[path.stem] = by_id[record]
        elif record.isdecimal() and int(record) < len(rows):
            found[path.stem] = rows[int(record)]
    if not found:
        raise UserError(f"{run} has no record {record!r}: ids such as {', '.join(ids[:3])}{nearest(record, ids)}")
    return found


def record_view(run: str | Path, record: str) -> RenderableType:
    """What `read_asked` finds, for a terminal: every method's answer, what it is worth to it, and the prompts."""
    rows = read_asked(run, record)
    first = next(iter(rows.values()))
    answers = Table(box=None, pad_edge=False, title=Text(f"record {first['id']}"), title_justify="left")
    for column in ("method", "answer", "", "examples", "options, by what they scored", "prompt"):
        answers.add_column(column)
    for method, row in rows.items():
        scores = row.get("scores", {}).get("score", ())
        options = sorted(zip(scores, row.get("option_texts", ()), strict=True), reverse=True)[:4]
        cells = (
            method,
            one_line(row["answer"], 60),
            "right" if normalise(row["answer"]) == normalise(row["right"]) else "wrong",
            ", ".join(row.get("shown", ())),
            ", ".join(f"{one_line(text)} {score:.2f}" for score, text in options),
            row.get("prompt_sha256", "")[:12],
        )
        answers.add_row(*map(Text, cells))
    prompts = [
        Panel(Text(row["text"]), title=Text(f"{method}, {len(row['prompt_ids'])} tokens"), title_align="left")
        for method, row in rows.items()
        if "text" in row
    ]
    return Group(answers, Text(f"right: {one_line(first['right'])}"), *prompts)
