"""What every method of a comparison was asked and said, record by record: one JSONL file a method."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from limbeck.evaluation.quantities import printable
from limbeck.evaluation.scales import BY_RECORD, counts_hits, digits, figure, words
from limbeck.model.errors import UserError, nearest
from limbeck.model.files import write_atomic
from limbeck.model.markdown import one_line
from limbeck.prompting import votes
from limbeck.prompting.config import PromptConfig
from limbeck.tasks.metrics import METRICS
from limbeck.tasks.number_metrics import number

_FOLDER = "asked"


def changes(prompt: PromptConfig, plain: PromptConfig = PromptConfig()) -> dict[str, Any]:
    """The settings in which a prompt is not as another one, or as one that says nothing."""
    return {name: value for name, value in dataclasses.asdict(prompt).items() if value != getattr(plain, name)}


def in_words(settings: Mapping[str, Any]) -> str:
    """`shots 4; pick 'fixed'; examples train/1, train/8`, for a reader, in the order of `PromptConfig`."""
    order = [field.name for field in dataclasses.fields(PromptConfig)]
    return "; ".join(
        f"{name} {', '.join(map(str, value)) if isinstance(value, list | tuple) else repr(value)}"
        for name, value in sorted(settings.items(), key=lambda each: order.index(each[0]) if each[0] in order else -1)
    )


def write_asked(
    run: Path,
    method: str,
    metric: str,
    rows: Iterable[Mapping[str, Any]],
    prompt: Mapping[str, Any] | None = None,
) -> None:
    """Keeps a method's rows, each with the "id" of its record, "answer" and "right", in `run`/asked/METHOD.jsonl.

    Every line says too what its answer is measured by, and a prompt's settings.
    """
    (run / _FOLDER).mkdir(exist_ok=True)
    same = {"metric": metric, **({} if prompt is None else {"prompt": prompt})}
    lines = [json.dumps({**row, **same}, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_atomic(run / _FOLDER / f"{method}.jsonl", "".join(lines))


def load_asked(run: Path, method: str) -> list[dict[str, Any]]:
    """A method's rows as they were kept, in the order of the records."""
    with (run / _FOLDER / f"{method}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_asked(run: str | Path, record: str) -> dict[str, dict[str, Any]]:
    """{method: its row} of the record of that id, or of that number in the file, counted from 0.

    Raises UserError for a run that kept none, and for a record that none of its methods was asked.
    """
    methods = sorted(path.stem for path in (Path(run) / _FOLDER).glob("*.jsonl"))
    if not methods:
        raise UserError(f"{run} keeps no records: a run of `adapt` does")
    found, ids = {}, []
    for method in methods:
        rows = load_asked(Path(run), method)
        by_id = {row["id"]: row for row in rows}
        ids = ids or list(by_id)
        if record in by_id:
            found[method] = by_id[record]
        elif record.isdecimal() and int(record) < len(rows):
            found[method] = rows[int(record)]
    if not found:
        raise UserError(f"{run} has no record {record!r}: ids such as {', '.join(ids[:3])}{nearest(record, ids)}")
    return found


def record_view(run: str | Path, record: str) -> RenderableType:
    """What `read_asked` finds, for a terminal: every method's answer and what it is worth, then each prompt in full."""
    rows = read_asked(run, record)
    first = next(iter(rows.values()))
    answers = Table(box=None, pad_edge=False)
    for column in ("method", "answer", ""):
        answers.add_column(column)
    for method, row in rows.items():
        answers.add_row(*map(Text, (method, one_line(row["answer"], 60), _worth(row))))
    title = Text(f"record {one_line(first['id'])}, right: {one_line(first['right'])}", style="bold")
    prompts = [part for method, row in rows.items() if "text" in row for part in _prompt_view(method, row)]
    return Group(title, answers, *prompts)


def _worth(row: Mapping[str, Any]) -> str:
    """Of a number how far it is off, of a label whether it is right, of a text what the metric says of it alone."""
    metric: str = row.get("metric", "accuracy")
    answer, right = row["answer"], row["right"]
    if "regression" in METRICS[metric].kinds:
        said, meant = number(answer), number(right)
        return "no number" if said is None or meant is None else f"off by {said - meant:+.4g}"
    alone = BY_RECORD.get(metric, metric)
    value = METRICS[alone].score([answer], [right]).value
    if counts_hits(alone):
        return "right" if value else "wrong"
    return f"{words(alone)} {figure(value, digits(alone, [value]))}"


def _prompt_view(method: str, row: Mapping[str, Any]) -> Iterator[RenderableType]:
    title = Text(f"{method}, {len(row['prompt_ids'])} tokens")
    digest = Text(f"sha256 {row['prompt_sha256'][:12]}", style="dim")
    yield Panel(Text(printable(row["text"])), title=title, title_align="left", subtitle=digest, subtitle_align="right")
    about = Table(box=None, show_header=False, pad_edge=False)
    prompt = row.get("prompt") or {}
    dropped = f" ({row['dropped']} did not fit)" if row.get("dropped") else ""
    scores = (row.get("scores") or {}).get("score", ())
    options = sorted(zip(scores, row.get("option_texts", ()), strict=True), reverse=True)
    said = {
        "asked with": in_words(prompt),
        "examples": ", ".join(row.get("shown", ())) + dropped,
        "options, by score": ", ".join(f"{one_line(text)} {score:.2f}" for score, text in options),
    }
    logprobs = [p / max(n, 1) for p, n in zip(row.get("logprobs", ()), row.get("tokens", ()), strict=True)]
    if len(logprobs) > 1:
        weighted = prompt.get("vote") == "weighted"
        shares = votes.shares(row["read"], logprobs if weighted else [0.0] * len(logprobs))
        told = sorted(shares.items(), key=lambda each: -each[1])
        said["votes"] = ", ".join(f"{one_line(answer)} {share:.0%}" for answer, share in told) or "nothing was read"
    for name, value in said.items():
        if value:
            about.add_row(Text(name, style="dim"), Text(one_line(value)))
    yield about
    if row.get("generations"):
        written = Table(box=None, pad_edge=False)
        for column in ("", "written", "read as", "log-probability a token"):
            written.add_column(column)
        for n, (text, read) in enumerate(zip(row["generations"], row["read"], strict=True), 1):
            written.add_row(str(n), Text(printable(text)), Text(one_line(read)), f"{logprobs[n - 1]:.2f}")
        yield written
