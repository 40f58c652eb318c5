"""Markdown out of text that may hold anything: one line, no markup of Markdown's or HTML's, tables."""

import re
from collections.abc import Iterable, Sequence


def one_line(text: str, width: int | None = None) -> str:
    """`text` without line breaks and control characters (terminals obey them), cut to `width` characters."""
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text).strip()
    return line if width is None or len(line) <= width else line[: width - 1].rstrip() + "…"


def escaped(text: str) -> str:
    """`text` on one line, in which nothing is markup."""
    return re.sub(r"([\\`*\[\]<>|~&#]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of such texts, the first column to the left and the others to the right."""
    marks = ["---", *("---:" for _ in header[1:])]
    lines = [list(map(escaped, header)), marks, *(list(map(escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
