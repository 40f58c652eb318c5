"""Finding a prediction by its query: exact after a normalisation that the store's manifest names."""

import unicodedata
from typing import TYPE_CHECKING, Any

from limbeck.model.errors import UserError

if TYPE_CHECKING:
    from limbeck.inference.store import PredictionStore


def normalise(query: str, casefold: bool = False) -> str:
    """The form under which a query is stored and found: NFC, no outer white space, inner runs one space.

    casefold also makes upper and lower case the same. Joiners inside words (Persian's zero-width non-joiner)
    carry meaning and stay. Raises UserError for an empty query and for text that is not valid Unicode.
    """
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the query {query[:80]!a} is not valid Unicode text: give it in UTF-8") from error
    if casefold:  # decomposed first: some letters fold only then (Unicode's canonical caseless match)
        query = unicodedata.normalize("NFD", query).casefold()
    text = " ".join(unicodedata.normalize("NFC", query).split())
    if not text:
        raise UserError(f"the query {query[:80]!r} is empty: give it some text")
    return text


def lookup(store: "PredictionStore", query: str) -> dict[str, Any] | None:
    """The payload predicted for `query`, or None: a miss is a miss, never the answer to something similar."""
    return store.find(query)
