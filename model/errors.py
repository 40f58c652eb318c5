"""The one error that is meant for the user, and the nearest-name hint that most of its messages end with."""

import difflib
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class UserError(Exception):
    """A mistake that the user can mend: one line with the value, the legal values or nearest match, and the remedy.

    Line breaks and control characters, such as a file's name or a field's may hold, are shown by their escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], message))


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
