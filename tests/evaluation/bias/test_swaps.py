"""Swapped words: texts of any script and case, the built-in list, files, odd ones among them, WinoBias' own lists."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluation.bias.swaps import load_swaps, read_swaps, swapped
from limbeck.model.errors import UserError

OWN = load_swaps()
ONE_TO_ONE = sorted(w for w, other in OWN.to.items() if OWN.to[other] == w and w not in ("her", "him", "his", "hers"))
CASES = (str, str.upper, lambda word: word[:1].upper() + word[1:])


# Texts


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("The MOTHER, a Mother and her mother's boy.", "The FATHER, a Father and his father's girl."),
        ("She said that he saw himself.", "He said that she saw herself."),
        ("They gave her book to him.", "They gave his book to her."),
        ("They saw her.", "They saw him."),
        ("They saw her and gave her the book; it is hers", "They saw him and gave him the book; it is his"),
        ("Her friend is his", "His friend is hers"),
        ("HIS house, Hers", "HER house, His"),
        ("His and hers", "Hers and his"),
        ("Mr. Lee and MRS Hill, Ma’am!", "Mrs. Lee and MR Hill, Sir!"),
        ("shepherds, theirs, the_man, kingdom, he2, h\u0301e", None),
        ("\u200che\u200c he", "\u200cshe\u200c she"),  # a joiner at the edge joins nothing
        ("h\u0131s and \u0130 kings\u0301", None),
    ],
)
def test_a_text_is_swapped(text, other):
    assert swapped(text, OWN) == (text if other is None else other)


GAPS = (" ", ", ", "\n", "-")


@given(st.lists(st.tuples(st.sampled_from(ONE_TO_ONE), st.sampled_from(CASES), st.sampled_from(GAPS))))
def test_swapping_twice_is_nothing(drawn):
    text = "".join(case(word) + gap for word, case, gap in drawn)
    once = swapped(text, OWN)
    assert swapped(once, OWN) == text
    assert [gap for _, _, gap in drawn] == re.findall(r"[ ,\n-]+", once)
    assert all(a != b for a, b in zip(re.findall(r"[\w']+", text), re.findall(r"[\w']+", once), strict=True))


@given(st.text())
def test_a_text_without_such_words_stays_bitwise(text):
    if OWN.found.search(text) is None:
        assert swapped(text, OWN) == text
    assert swapped(text + "\u0301e\u0301 x", OWN).endswith("\u0301e\u0301 x")


@pytest.mark.parametrize(
    ("rows", "text", "other"),
    [
        ("زن\tمرد", "آن زن، زن\u200cها و مَرد؛ مرد", "آن مرد، زن\u200cها و مَرد؛ زن"),
        ("אישה\tגבר", "(אישה) והאישה, גבר", "(גבר) והאישה, אישה"),
        ("女人\t男人", "那个女人看见男人", "那个男人看见女人"),
        ("Emily\tGreg", "Emily, GREG and emily", "Greg, EMILY and greg"),
        ("young man\toldster", "A Young\nMan and a oldster", "A Oldster and a young man"),
        ("fiancé\tfiancée", "fiance\u0301, FIANCÉE", "fiancée, FIANCÉ"),
    ],
)
def test_words_of_a_file_are_swapped_in_any_script(tmp_path, rows, text, other):
    (tmp_path / "s.txt").write_text(rows, encoding="utf-8")
    swaps = read_swaps(tmp_path / "s.txt")
    assert swapped(text, swaps) == other
    assert [swaps.side[word] for word in swaps.to] == ["a", "b"]


def test_the_built_in_list_has_its_sides():
    assert len(OWN.to) > 120
    for word, other in OWN.to.items():
        assert {OWN.side[word], OWN.side[other]} == {"a", "b"}, word
    women = {word for word in OWN.to if re.search("wom[ae]n|ess$|mother|daughter|^(she|hers?|herself)$", word)}
    assert len(women) > 30 and all(OWN.side[word] == "b" for word in women)


# Files


def test_files_of_pairs_are_read(tmp_path):
    """Spaces, either direction, twice the same, two files, a BOM: what a row says goes before what follows from it."""
    (tmp_path / "a.txt").write_bytes("\ufeffuncle \t aunt \r\n\r\nprinss\tlady\r\nlady\tlord\r\n".encode())
    (tmp_path / "b.txt").write_text("uncle\tmother\naunt\tuncle\nmr.\tmrs.\nzig\tzag")
    swaps = read_swaps(tmp_path / "a.txt", tmp_path / "b.txt")
    assert swaps.to == {
        "uncle": "aunt", "aunt": "uncle", "prinss": "lady", "lady": "lord", "lord": "lady", "mother": "uncle",
        "mr": "mrs", "mrs": "mr", "zig": "zag", "zag": "zig",
    }  # fmt: skip
    assert swaps.side["aunt"] == "b" and swaps.side["prinss"] == "a" and swaps.side["zig"] == "a"
    assert swapped("Her uncle", swaps) == "Her aunt"  # no pronouns in the list, none swapped


def test_sides_come_from_the_words_that_are_known(tmp_path):
    (tmp_path / "s.txt").write_text("actress\tthespian\nbloke\tmother\nx\ty\n")
    side = read_swaps(tmp_path / "s.txt").side
    assert side == {"actress": "b", "thespian": "a", "bloke": "a", "mother": "b", "x": "a", "y": "b"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"he she", "row 1 has 1 columns"),
        (b"he\tshe\nhe\tshe\tit\n", "row 2 has 3 columns"),
        (b"he\t\n", "'' is no word"),
        (b"he\t...", "'..' is no word"),
        (b"\n\nHe\the\n", "row 3: 'He' would become itself"),
        (b"he\tsh\xe9\n", "row 1 is not UTF-8"),
        (b"\n \n", "no words to swap"),
        (b"he\tshe\rthey\tit", "row 1 has 3 columns"),
        ("he\tshe\u2028".encode() + b"\x00?", "is no word"),
    ],
)
def test_a_file_of_pairs_that_is_none_is_named(tmp_path, content, said):
    (tmp_path / "s.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_swaps(tmp_path / "s.txt")
    assert said in str(error.value) and "s.txt" in str(error.value) and str(error.value).isprintable()


def test_no_file_is_none():
    with pytest.raises(UserError, match="no words to swap in no file"):
        read_swaps()


# WinoBias


def lines(path):
    return [re.sub(r"^\d+ |[\[\]]", "", line).strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


@pytest.mark.shared
def test_winobias_lists_are_read_and_swap_gendered_words_alone(shared_data):
    folder = shared_data / "winobias"
    swaps = read_swaps(folder / "generalized_swaps.txt", folder / "extra_gendered_words.txt")
    assert len(swaps.to) > 200 and swaps.to["her"] == "him" and swaps.to["ma'am"] == "sir"
    # Two of its rows have a slip on one side ("mentleman", "chairwomen" to "chairman").
    for word, other in swaps.to.items():
        assert swaps.side[word] != swaps.side[other.casefold()], word
    sided = {side: {word for word in swaps.to if swaps.side[word] == side} for side in "ab"}
    assert {"he", "uncle", "cameramen", "actor", "dudes"} <= sided["a"] and not {"he", "dudes"} & sided["b"]
    assert {"she", "aunt", "camerawomen", "actress", "chicks"} <= sided["b"]
    for split in ("dev", "test"):
        for kind in (1, 2):
            for line in lines(folder / f"pro_stereotyped_type{kind}.txt.{split}"):
                before, after = re.split(r"\b", line), re.split(r"\b", swapped(line, swaps))
                moved = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
                assert moved and all(a.casefold() in swaps.to and b.casefold() in swaps.to for a, b in moved), line


@pytest.mark.shared
def test_the_rule_for_her_is_mostly_right(shared_data):
    """Against the people who wrote WinoBias: a sentence and its opposite, which has the other pronoun."""
    right = asked = 0
    for split in ("dev", "test"):
        for kind in (1, 2):
            pro, anti = (
                lines(shared_data / "winobias" / f"{side}_stereotyped_type{kind}.txt.{split}")
                for side in ("pro", "anti")
            )
            for a, b in zip(pro, anti, strict=True):
                if re.search(r"\bher\b", a) and len(a.split()) == len(b.split()):
                    pairs = zip(swapped(a, OWN).split(), a.split(), b.split(), strict=True)
                    for got, from_, to in pairs:
                        if re.fullmatch(r"her\W*", from_):
                            asked += 1
                            right += got == to
    assert asked > 300 and right / asked > 0.92
