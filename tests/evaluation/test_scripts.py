"""The readers of words part the letters of scripts without spaces alike, and join what joiners join."""

import re
import sys
import unicodedata

from limbeck.evaluation.bias.mentions import whole_words
from limbeck.evaluation.data_audit import normal
from limbeck.tasks import text_metrics
from limbeck.tasks.scripts import JOINERS, TIBETAN, UNSPACED


def test_every_reader_parts_the_same_letters():
    for code in range(0, sys.maxunicode, 7):
        letter = unicodedata.normalize("NFC", chr(code))
        if unicodedata.category(letter[0])[0] in "LN" and re.fullmatch(f"[{UNSPACED}]", letter):
            assert normal.words(letter * 2) == text_metrics.words(letter * 2) == [letter, letter], hex(code)
            inside = whole_words([letter]).search(letter * 2)
            assert bool(inside) != bool(re.match(f"[{TIBETAN}]", letter)), hex(code)


def test_joiners_join():
    for joiner in JOINERS:
        word = f"می{joiner}روم"
        assert normal.words(word) == text_metrics.words(word) == [word]
        assert not whole_words(["روم"]).search(word)
