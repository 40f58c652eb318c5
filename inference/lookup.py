"""Finding a prediction by its query: exact after a normalisation that the store's manifest names.

A miss is a miss. Where a model is at hand it may be asked then, and what it says is kept: the next look-up finds it.
"""

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.model.errors import UserError

if TYPE_CHECKING:
    from limbeck.inference.store import PredictionStore

Online = Callable[[str], tuple[str, dict[str, Any]]]  # the key and the payload of a query that is predicted now

_ALIKE = "composed and decomposed letters of Unicode are the same, and so is any white space"
NORMALISATIONS = {
    "nfc": f"{_ALIKE}; upper and lower case differ",
    "nfc_casefold": f"{_ALIKE}; upper and lower case are the same",
}


def normalise(query: str, casefold: bool = False) -> str:
    """The form under which a query is stored and found: NFC, no outer white space, inner runs one space.

    casefold also makes upper and lower case the same. Joiners inside words (Persian's zero-width non-joiner)
    carry meaning and stay. Raises UserError for an empty query and for text that is not valid Unicode.
    """
    if not query.isascii():  # ASCII is in every form already
        query = _composed(query, casefold)
    elif casefold:
        query = query.lower()
    text = " ".join(query.split())
    if not text:
        raise UserError(f"the query {query[:80]!r} is empty: give it some text")
    return text


def _composed(query: str, casefold: bool) -> str:
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the query {query[:80]!a} is not valid Unicode text: give it in UTF-8") from error
    if casefold:  # decomposed first: some letters fold only then (Unicode's canonical caseless match)
        query = unicodedata.normalize("NFD", query).casefold()
    return unicodedata.normalize("NFC", query)


def lookup(store: "PredictionStore", query: str, online: Online | None = None) -> dict[str, Any] | None:
    """The payload predicted for `query`, or None: a miss is a miss, never the answer to something similar.

    With `online` a miss is predicted now, and recorded: see `ask`.
    """
    payload = store.find(query)
    return ask(store, query, online) if payload is None and online is not None else payload


def ask(store: "PredictionStore", query: str, online: Online) -> dict[str, Any]:
    """What `online` says to a query that `store` lacks: recorded before it is returned, and asked only once.

    It is kept in the store where that is open for writing, else in a store of its own beside it (`side_store`), which
    `limbeck store merge` takes in. Raises UserError, without asking, where neither can be written.
    """
    with _record(store) as record:
        payload = record.find(query)
        if payload is None:
            key, payload = online(query)
            record.put_many([(key, query, payload)])
            payload = record.find(query)  # as it will be found from now on: that of an older row with the key, too
            assert payload is not None
    return payload


def side_store(path: str | os.PathLike[str]) -> Path:
    """Where answers are recorded that a store for look-ups alone lacks: `a.online.db` beside `a.db`."""
    path = Path(os.path.realpath(path))
    return path.with_name(f"{path.stem}.online{path.suffix}")


@contextlib.contextmanager
def _record(store: "PredictionStore") -> Iterator["PredictionStore"]:
    if not store.read_only:
        yield store
        return
    from limbeck.inference.store import PredictionStore  # which normalises by this file

    with PredictionStore(side_store(store.path), manifest=store.manifest) as side:
        yield side
