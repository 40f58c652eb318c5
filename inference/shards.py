"""A job on many machines: each answers the requests of its shard into its own store, and a merge joins the stores."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from limbeck.inference.store import PredictionStore, compared
from limbeck.model.errors import UserError
from limbeck.model.progress import progress

_LINKS = 20_000  # links of a commit


class Merged(NamedTuple):
    """Rows of the parts that the target lacked, rows that it had; requests that have failed, of all."""

    new: int
    there: int
    failed: int


def shard_of(key: str, count: int) -> int:
    """The shard, 0 to count - 1, of a prediction's key, a hex digest.

    Shards are about equal; each is a range of keys, so that parts merged in order are appended.
    """
    return int(key[:16], 16) * count >> 64


def merge(target: str | os.PathLike[str], parts: Sequence[str | os.PathLike[str]]) -> Merged:
    """Takes what the stores `parts` hold into the store `target`, which is made if need be; parts are only read.

    The first wins: what the target holds stays, then comes the first part. Every row is checked. A merge that was
    killed is run again, and so is one whose parts have grown. Raises UserError for a part of other weights, another
    tokenizer, other settings, before anything is written; for a damaged part; and as `PredictionStore` does.
    """
    with contextlib.ExitStack() as opened:
        stores = [opened.enter_context(PredictionStore(part, read_only=True)) for part in parts]
        stores = [store for store in stores if _filled(store)] or stores  # a worker without work has no digests
        if not stores:
            raise UserError(f"nothing to merge into {target}: name one or more stores")
        for store in stores:
            _check_same(store, stores[0])
        manifest = None if Path(target).exists() else stores[0].manifest
        into = opened.enter_context(PredictionStore(target, manifest=manifest))
        if _filled(into):
            _check_same(stores[0], into)
        into.require(compared(stores[0].manifest))
        new, total = 0, sum(store.count("predictions") for store in stores)
        advance = opened.enter_context(progress("merge", total, "row"))
        for store in stores:
            for texts in store.texts():
                new += into.take(texts, (), ())
                advance(len(texts), note=f"{new} new")
            links = store.links()
            while some := list(itertools.islice(links, _LINKS)):
                into.take((), some, ())
            into.take((), (), store.failures())
        return Merged(new, total - new, into.count("failures"))


def _filled(store: PredictionStore) -> bool:
    return any(store.count(table) for table in ("predictions", "queries", "failures"))


def _check_same(part: PredictionStore, other: PredictionStore) -> None:
    """Raises UserError unless the two were made with the same values."""
    left, right = compared(part.manifest), compared(other.manifest)
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            raise UserError(
                f"{part.path} and {other.path} were made with different {name} "
                f"({left.get(name, '(none)')[:16]} and {right.get(name, '(none)')[:16]}): merge parts of one job"
            )
