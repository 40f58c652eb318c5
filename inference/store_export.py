"""A prediction store as one Parquet file, for programs that know no stores: the same content is the same bytes."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.inference import store_file
from limbeck.inference.store_rows import payload_of
from limbeck.inference.words import reader
from limbeck.model.errors import UserError
from limbeck.model.progress import progress

_COLUMNS = {
    "key": pa.string(),
    "query": pa.string(),  # that asked first
    "queries": pa.list_(pa.string()),  # that find it, as they are looked up
    "kind": pa.string(),
    "text": pa.string(),  # of a generation
    "answer": pa.string(),  # in words, as a look-up prints it
    "payload": pa.string(),  # all of it, as JSON
}
_KINDS = {"text": "generate", "logprobs": "score", "values": "values"}  # by what a payload has
_ASKED = ("classify", "regress", "embed")  # kinds of a job that all come out as values


def write_parquet(
    path: Path,
    manifest: dict[str, str],
    texts: Iterable[list[tuple[str, str, str]]],
    links: Iterator[tuple[str, str]],
    count: int,
) -> None:
    """Writes `count` predictions, a row group for each list: `texts` and `links` as a store gives them, by key.

    The columns are key, query (that asked first), queries (all that find it, normalised), kind ("generate", "score",
    "classify", "regress", "embed"), text, answer (in words, as a look-up prints it) and payload (JSON). `manifest` goes
    into the file's metadata, as JSON under "limbeck". It replaces an older export, in one step. Raises UserError for
    anything else at that path, a damaged row, and a place that cannot be written.
    """
    if path.exists() and not _is_export(path):
        raise UserError(f"{path} exists and is no export of a store: name another file")
    store_file.make_folder(path.parent)
    about = json.dumps(manifest, ensure_ascii=False, sort_keys=True)
    schema = pa.schema(_COLUMNS, metadata={"limbeck": about})
    row, queries = _row_of(manifest), _Following(links)
    with (
        store_file.whole(path, mode=0o644) as temporary,
        progress("export", count, "row") as advance,
        pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["kind"]) as writer,  # pyright: ignore
    ):
        for some in texts:
            rows = [row(key, query, queries.of(key), payload) for key, query, payload in some]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            advance(len(rows))


class _Following:
    """Queries by key, off pairs in order of key, for keys that are asked for in that order."""

    def __init__(self, links: Iterator[tuple[str, str]]) -> None:
        self._groups = itertools.groupby(links, key=lambda link: link[1])
        self._next: tuple[str, list[str]] | None = None
        self._advance()

    def of(self, key: str) -> list[str]:
        while self._next and self._next[0] < key:
            self._advance()
        return self._next[1] if self._next and self._next[0] == key else []

    def _advance(self) -> None:
        key, links = next(self._groups, (None, ()))
        self._next = None if key is None else (key, [query for query, _ in links])


def _row_of(manifest: dict[str, str]) -> Callable[[str, str, list[str], str], dict[str, Any]]:
    answer = reader(manifest)
    asked = json.loads(manifest.get("job", "{}")).get("kind")

    def row(key: str, query: str, queries: list[str], text: str) -> dict[str, Any]:
        payload = payload_of(text)
        kind = next((kind for name, kind in _KINDS.items() if name in payload), None)
        kind = asked if kind == "values" and asked in _ASKED else kind
        said = answer(payload) if kind and kind != "embed" else None
        row = {"key": key, "query": query, "queries": queries, "kind": kind, "text": payload.get("text")}
        return row | {"answer": said, "payload": text}

    return row


def _is_export(path: Path) -> bool:
    try:
        return b"limbeck" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False
