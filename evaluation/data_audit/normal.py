"""The forms in which two texts count as the same: folded to the letter, or as words alone."""

import re
import unicodedata

from limbeck.tasks.scripts import JOINERS, UNSPACED

_UNSPACED = re.compile(f"[{UNSPACED}]")


def folded(text: str) -> str:
    """The text in NFC without case, each stretch of white space one space: equal for two that read the same."""
    return " ".join(_caseless(text).split())


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation: letters, digits, their marks, and the joiners inside words.

    Each character of a script that writes no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, ...) is a word.
    """
    return [word for word in _caseless(text).translate(_TABLE).split() if word.strip(JOINERS)]


def _caseless(text: str) -> str:
    # Case folding can undo NFC, as of the Greek letters with iota below.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class _Characters(dict[int, str]):
    """What becomes of each character, found out when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = unicodedata.category(character)[0] in "LMN" or character in JOINERS
        spaced = f" {character} " if _UNSPACED.match(character) else character
        self[code] = spaced if kept else " "
        return self[code]


_TABLE = _Characters()
