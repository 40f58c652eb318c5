"""The one error that is meant for the user, and the nearest-name hint that most of its messages end with."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: one line with the value, the legal values or nearest match, and the remedy."""


def nearest(value: str, legal: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the legal name closest to `value`, or an empty string when none is close."""
    close = difflib.get_close_matches(value, list(legal), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(kind: str, value: str, legal: Iterable[str]) -> str:
    """`value` itself if it is among `legal`; raises UserError that lists them otherwise."""
    legal = list(legal)
    if value not in legal:
        raise UserError(f"unknown {kind} {value!r}: one of {', '.join(legal)}{nearest(str(value), legal)}")
    return value
