"""A model that is asked what a served store lacks: one query at a time, in a thread of its own, its answer kept."""

import asyncio
import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from limbeck.inference.lookup import Online, ask
from limbeck.inference.store import PredictionStore, compared

_WAITING = 16  # queries that wait for the model; whoever comes then is told to come back


class Busy(Exception):
    """Too many queries wait for the model."""


class Fallback:
    """`online`, for the misses of stores of one kind: those with `manifest`, whose keys and prompts it makes."""

    def __init__(self, online: Online, manifest: Mapping[str, str]) -> None:
        self._online, self._manifest = online, compared(manifest)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="online")
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}

    def fits(self, store: PredictionStore) -> bool:
        """Whether the store is of the kind that the model answers for; one that took its place may not be."""
        return compared(store.manifest) == self._manifest

    async def ask(self, store: PredictionStore, query: str) -> dict[str, Any]:
        """What the model says to a normalised query, recorded; those who ask the same meanwhile share one answer.

        Raises Busy, and UserError for a query that cannot be answered or an answer that cannot be recorded.
        """
        if query not in self._asked:
            if len(self._asked) >= _WAITING:
                raise Busy
            answer = asyncio.get_running_loop().run_in_executor(self._thread, ask, store, query, self._online)
            answer.add_done_callback(lambda _: self._asked.pop(query, None))
            self._asked[query] = answer
        return await asyncio.shield(self._asked[query])  # who goes away takes no one's answer along

    def close(self) -> None:
        """Drops what waits, and waits for what is being answered."""
        with contextlib.suppress(RuntimeError):
            self._thread.shutdown(cancel_futures=True)
