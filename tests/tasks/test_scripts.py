"""Which characters are of a script without spaces: by the names that Unicode gives them."""

import re
import sys
import unicodedata

from limbeck.tasks.scripts import UNSPACED

SCRIPTS = (
    "BOPOMOFO ", "CJK COMPATIBILITY IDEOGRAPH", "CJK UNIFIED IDEOGRAPH", "HALFWIDTH KATAKANA", "HENTAIGANA ",
    "HIRAGANA ", "KATAKANA", "KHMER ", "LAO ", "MYANMAR ", "THAI ", "TIBETAN ", "YI ",
)  # fmt: skip


def test_letters_and_digits_of_these_scripts_and_no_others_are_unspaced():
    unspaced = re.compile(f"[{UNSPACED}]")
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] in "LN":
            name = unicodedata.name(chr(code), "")
            assert bool(unspaced.match(chr(code))) == name.startswith(SCRIPTS), (hex(code), name)
