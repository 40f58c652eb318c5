"""In which scripts and languages texts are."""

import collections
import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from limbeck.model.progress import progress

UNSURE = "unsure"
_SURE = 0.5  # of a language's probability
_READ = 1000  # characters of a text, which are plenty to tell its language by
_REST_OF_NAME = re.compile(
    r" (CAPITAL|SMALL|FINAL|LETTER|SYLLABLE|SYLLABICS|LIGATURE|IDEOGRAPH|UNIFIED|COMPATIBILITY|VOWEL|CHARACTER).*"
)


def script_shares(texts: Iterable[str]) -> dict[str, float]:
    """Of all letters, the share in each script by its name in Unicode ("Latin", "Arabic", "Han"), the largest first.

    Empty where there are no letters.
    """
    letters: collections.Counter[str] = collections.Counter()
    for text in texts:
        letters.update(text)
    scripts: collections.Counter[str] = collections.Counter()
    for character, count in letters.items():
        if script := _script(character):
            scripts[script] += count
    total = scripts.total()
    return {script: count / total for script, count in _ranked(scripts)}


def languages(texts: Sequence[str]) -> list[str]:
    """The language of each text by its first thousand characters, as ISO 639 has it ("en", "fa").

    "unsure" where none is likelier than all others together, as of a word or two; "zxx" is no language. By
    py3langid: naive Bayes over sequences of bytes (Lui & Baldwin 2012, langid.py).
    """
    told = []
    with progress("languages", len(texts), "text") as advance:
        for text in texts:
            # A lone surrogate is no text that any language could be told by.
            language, probability = _identifier().classify(text[:_READ].encode("utf-8", "replace").decode())
            told.append(language if probability >= _SURE else UNSURE)
            advance()
    return told


def _ranked(counts: collections.Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


@functools.cache
def _script(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character)[:1]
    if not unicodedata.category(plain).startswith("L"):
        return ""
    name = _REST_OF_NAME.sub("", unicodedata.name(plain, "unknown"))
    return "Han" if name == "CJK" else name.title()


@functools.cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
