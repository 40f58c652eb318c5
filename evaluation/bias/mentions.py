"""Who a text speaks of: words of groups, such as the words for women and for men, counted as whole words in any script.

A group is known by its words alone. Words are compared in Unicode's form NFC and without regard to case; what is
attached to a word counts as another word (Arabic "والمرأة", Korean "여자는"), unless the list has that form too. Of
words that overlap the longest counts, within one dimension. Dimension key: `N` texts.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path

import numpy as np

from limbeck.evaluation.data_audit.normal import folded
from limbeck.model.errors import UserError
from limbeck.tasks.scripts import JOINERS, TIBETAN, UNSPACED

GroupWords = Mapping[str, Mapping[str, frozenset[str]]]  # dimension -> group -> words: gender -> female -> she

_UNSPACED = re.compile(f"(?![{TIBETAN}])[{UNSPACED}]")  # the points of Tibetan end a word, as spaces do


def load_group_words() -> GroupWords:
    """The built-in words: gender (female, male) in English and Persian, age (young, old) in English.

    Persian pronouns have no gender, and "مرد" is "man" and "died" alike: shares of two languages do not compare.
    """
    text = (files("limbeck.evaluation.bias") / "group_words.tsv").read_text(encoding="utf-8")
    return _group_words("group_words.tsv", _rows("group_words.tsv", text))


def read_group_words(path: str | PathLike[str]) -> GroupWords:
    """The words of a tab-separated file in UTF-8 whose first line is `dimension`, `group`, `word`.

    A word may be several ("old man"). Raises UserError, by file and row: what is not of that form, a word without a
    letter, and one that stands in two groups of a dimension.
    """
    return _group_words(str(path), tab_rows(path))


def group_counts(texts: Sequence[str], words: GroupWords) -> dict[str, np.ndarray]:
    """How often each text speaks of each group: "dimension/group" -> int64 counts [N], in the order of `words`."""
    folded = [fold(text) for text in texts]
    counts = {}
    for dimension, groups in words.items():
        columns: dict[str, list[int]] = {}
        for column, listed in enumerate(groups.values()):
            for word in {fold(word) for word in listed}:
                columns.setdefault(word, []).append(column)
        found = np.zeros((len(groups), len(texts)), np.int64)
        whole = whole_words(columns)
        for i, text in enumerate(folded):
            for match in whole.finditer(text):
                for column in columns[match[0]]:
                    found[column, i] += 1
        counts |= {f"{dimension}/{group}": row for group, row in zip(groups, found, strict=True)}
    return counts


def fold(text: str) -> str:
    """The form in which words are compared: NFC, no case, one kind of apostrophe, one space for any white space."""
    return folded(text).replace("’", "'")


def whole_words(words: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    """What finds any of these words as a whole word, the longest that fits; in texts in the same form as they are.

    Marks and joiners belong to the word that they stand in. A word of a script that is written without spaces is
    found wherever its letters stand. No words at all are found nowhere.
    """
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    spaced = [re.escape(word).replace(r"\ ", r"\s+") for word in longest_first if not _UNSPACED.search(word)]
    unspaced = [re.escape(word) for word in longest_first if _UNSPACED.search(word)]
    letter = rf"[\w{_marks()}]"
    starts = rf"\b(?<![{_marks()}])(?<!{letter}[{JOINERS}])"  # \b is seen at once, and takes marks for gaps
    ends = rf"(?![{JOINERS}]*{letter})"
    kinds = [rf"{starts}(?:{'|'.join(spaced)}){ends}"] if spaced else []
    kinds += unspaced
    return re.compile("|".join(kinds) or r"(?!)", flags)


def tab_rows(path: str | PathLike[str]) -> list[tuple[str, list[str]]]:
    """("FILE, row N", its cells without white space around them) of a tab-separated file; empty lines are left out.

    Raises UserError for a file that cannot be read or is not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a tab-separated file") from error
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, row {row} is not UTF-8 text: save the file as UTF-8") from error
    return list(_rows(str(path), text))


def check_word(place: str, word: str) -> None:
    """Raises UserError, naming `place`, for what cannot be looked for as a word, such as '?' or 'she,'."""
    letter = rf"[\w{_marks()}]"
    if not re.fullmatch(rf"\w(?:.*(?:{letter}|['’]))?", word):
        raise UserError(f"{place}: {word!r} is no word: it begins and ends in a letter or a figure")


def _rows(name: str, text: str) -> Iterator[tuple[str, list[str]]]:
    for row, line in enumerate(text.split("\n"), 1):  # not by splitlines: U+2028 is no end of line
        if line.strip():
            yield f"{name}, row {row}", [unicodedata.normalize("NFC", cell.strip()) for cell in line.split("\t")]


def _group_words(name: str, rows: Iterable[tuple[str, list[str]]]) -> GroupWords:
    columns = ["dimension", "group", "word"]
    rows = iter(rows)
    place, header = next(rows, (f"{name}, row 1", []))
    if header != columns:
        raise UserError(f"{place} is {header}: the first line is {', '.join(columns)}, with tabs between them")
    words: dict[str, dict[str, set[str]]] = {}
    group_of: dict[tuple[str, str], str] = {}
    for place, cells in rows:
        if len(cells) != 3 or not all(cells):
            raise UserError(f"{place} is {cells}: {', '.join(columns)}, with tabs between them and none empty")
        dimension, group, word = cells
        if "/" in dimension:
            raise UserError(f"{place}: dimension {dimension!r} has '/' in it, which parts it from its group: rename it")
        check_word(place, word)
        taken = group_of.setdefault((dimension, fold(word)), group)
        if taken != group:
            raise UserError(f"{place}: {word!r} is in group {taken!r} of {dimension!r} already: take it out of one")
        words.setdefault(dimension, {}).setdefault(group, set()).add(word)
    if not words:
        raise UserError(f"{name} has no words: add rows of {', '.join(columns)}, with tabs between them")
    return {dimension: {group: frozenset(of) for group, of in groups.items()} for dimension, groups in words.items()}


@functools.cache
def _marks() -> str:
    """All combining marks, for a class of characters: the vowels of Arabic, Hebrew and Hindi are none of `\\w`."""
    codes = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))  # there are none elsewhere
    return "".join(chr(code) for code in codes if unicodedata.category(chr(code)).startswith("M"))
