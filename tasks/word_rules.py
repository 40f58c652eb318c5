"""Words put through rules of spelling, in rows: what a small foundation reads so that examples tell it what to do.

    lemon: Lemon
    tree: Tree
    sour: Sour

Nothing but the rows above a word says which rule is meant, as in the word tasks of Todd et al. 2023 (arXiv 2310.15213).
"""

import random
import re
from collections.abc import Callable, Collection, Iterable

_WORD = re.compile(r"[^\W\d_]{3,}")
_VOWELS = "aeiou"


def plural(word: str) -> str:
    """The regular plural of an English noun: berries, boxes, lemons."""
    if word.endswith("y") and word[-2:-1] not in _VOWELS:
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def past(word: str) -> str:
    """The regular past tense of an English verb: carried, baked, picked; a last consonant is not doubled."""
    if word.endswith("y") and word[-2:-1] not in _VOWELS:
        return word[:-1] + "ied"
    return word + ("d" if word.endswith("e") else "ed")


RULES: dict[str, Callable[[str], str]] = {
    "same": str,
    "capitalised": lambda word: word[:1].upper() + word[1:],
    "upper": str.upper,
    "plural": plural,
    "past": past,
    "twice": lambda word: f"{word} {word}",
    "first": lambda word: word[:1],
    "last": lambda word: word[-1:],
    "without_first": lambda word: word[1:],
    "without_last": lambda word: word[:-1],
    "reversed": lambda word: word[::-1],
}


def words_of(texts: Iterable[str], without: Collection[str] = ()) -> list[str]:
    """The words of three letters and more, of any script, in lower case, each once, in the order of their letters."""
    left_out = {word.lower() for word in without}
    found = {word.lower() for text in texts for word in _WORD.findall(text)}
    return sorted(found - left_out)


def ruled_texts(words: list[str], seed: int, shown: int = 8) -> list[str]:
    """Documents of `shown` words each, put through one rule; every word goes through every rule once."""
    documents = []
    for name, rule in RULES.items():
        mixed = random.Random(f"{seed}/{name}").sample(words, len(words))
        rows = [f"{word}: {rule(word)}" for word in mixed]
        documents += ["\n".join(rows[i : i + shown]) for i in range(0, len(rows), shown)]
    return documents
