"""Which characters are of a script without spaces: by the names that Unicode gives them."""

import re
import sys
import unicodedata

from limbeck.evaluation.bias.mentions import whole_words
from limbeck.evaluation.data_audit import normal
from limbeck.tasks import text_metrics
from limbeck.tasks.scripts import JOINERS, TIBETAN, UNSPACED

SCRIPTS = (
    "BOPOMOFO LETTER ", "CJK COMPATIBILITY IDEOGRAPH", "CJK UNIFIED IDEOGRAPH", "HALFWIDTH KATAKANA", "HENTAIGANA ",
    "HIRAGANA ", "KATAKANA", "KHMER ", "LAO ", "MYANMAR ", "THAI ", "TIBETAN ", "YI ",
)  # fmt: skip


def letters():
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] in "LN":
            yield chr(code)


def test_letters_and_digits_of_these_scripts_and_no_others_are_unspaced():
    found = {letter for letter in letters() if re.match(f"[{UNSPACED}]", letter)}
    newer = ("MYANMAR EXTENDED-C", "MYANMAR PAO", "MYANMAR EASTERN PWO")  # of Unicode 16
    for letter in letters():
        name = unicodedata.name(letter, "")
        if not name.startswith(newer):
            assert (letter in found) == name.startswith(SCRIPTS), (hex(ord(letter)), name)


def test_every_reader_parts_the_same_letters():
    for letter in letters():
        if unicodedata.name(letter, "") and re.match(f"[{UNSPACED}]", unicodedata.normalize("NFC", letter)):
            twice = letter * 2
            assert len(normal.words(twice)) == len(text_metrics.words(twice)) >= 2, hex(ord(letter))
            assert bool(whole_words([letter]).search(twice)) != bool(re.match(f"[{TIBETAN}]", letter)), hex(ord(letter))


def test_joiners_join():
    for joiner in JOINERS:
        word = f"می{joiner}روم"
        assert normal.words(word) == text_metrics.words(word) == [word]
        assert not whole_words(["روم"]).search(word)
