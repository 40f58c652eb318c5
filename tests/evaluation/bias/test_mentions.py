"""Who a text speaks of: words of any script as whole words, the built-in lists, and files that are none."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluation.bias.mentions import group_counts, load_group_words, read_group_words
from limbeck.evaluation.bias.swaps import load_swaps, swapped
from limbeck.model.errors import UserError

WORDS = load_group_words()


def count(text, *words):
    """How often a text speaks of a group of these words."""
    return int(group_counts([text], {"d": {"g": frozenset(words)}})["d/g"][0])


def write(path, *rows, header="dimension\tgroup\tword"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "words", "times"),
    [
        ("She said: \"SHE, she's here\"; the sheep, he_she and she2 are not.", ["she"], 3),
        ("An old\nman, an Old Man and an old, man", ["old man"], 2),
        ("Yes, ma'am. No, Ma\u2019am!", ["ma'am"], 2),
        ("Straße STRASSE", ["straße"], 2),
        (unicodedata.normalize("NFD", "fiancée Fiancée"), ["fiancée"], 2),
        ("آن زن، زن؟ و زن\u200cها", ["زن"], 2),  # the plural is another word
        ("زن\u200cها و زن‌ها", ["زن\u200cها"], 2),
        ("می\u200cزن", ["زن"], 0),
        ("المرأة والمرأة (المرأة)", ["المرأة"], 2),
        ("مَرأة مرأة", ["مرأة"], 1),  # a vowel that is written is a letter
        ("אישה והאישה, אישה.", ["אישה"], 2),
        ("औरत, औरतें और औरत", ["औरत"], 2),  # औरतें goes on with a mark
        ("那个女人和那个男人,女", ["女人"], 1),
        ("女人女女人", ["女人", "女"], 3),  # the longest, and nothing twice
        ("ผู้หญิงคนหนึ่งกับผู้ชาย", ["ผู้หญิง"], 1),
        ("ꆈꌠꉙ", ["ꌠ"], 1),  # Yi
        ("མི་དང་མིག", ["མི"], 1),  # Tibetan has no spaces, but its points part "person" from "eye"
        ("", ["she"], 0),
        ("she", [], 0),
    ],
)
def test_whole_words_are_counted(text, words, times):
    assert count(text, *words) == times


def test_counts_are_by_text_and_group():
    counts = group_counts(["She saw her mother.", "nobody", "The old man and the woman, زن و مرد"], WORDS)
    assert {name: row.tolist() for name, row in counts.items()} == {
        "gender/female": [3, 0, 2],
        "gender/male": [0, 0, 2],
        "age/young": [0, 0, 0],
        "age/old": [0, 0, 1],
    }
    assert all(row.dtype == "int64" for row in counts.values())
    assert [row.shape for row in group_counts([], WORDS).values()] == [(0,)] * 4


def test_of_words_that_overlap_the_longest_counts():
    groups = {"a": frozenset({"女", "man"}), "b": frozenset({"女人", "man of war"})}
    counts = group_counts(["女人女女人", "a man of war, a man of wars"], {"d": groups, "e": {"a": frozenset({"女"})}})
    assert {name: row.tolist() for name, row in counts.items()} == {"d/a": [1, 1], "d/b": [2, 1], "e/a": [3, 0]}


def test_a_word_of_two_groups_counts_for_both():
    counts = group_counts(["kin"], {"d": {"a": frozenset({"kin"}), "b": frozenset({"Kin"})}})
    assert [int(row[0]) for row in counts.values()] == [1, 1]


@given(st.lists(st.sampled_from(["she", "he", "woman", "man", "tree", "و", "زن", "مرد", "and"])))
def test_each_word_of_a_text_is_counted_once(drawn):
    counts = group_counts([", ".join(drawn)], WORDS)
    assert counts["gender/female"][0] == sum(word in ("she", "woman", "زن") for word in drawn)
    assert counts["gender/male"][0] == sum(word in ("he", "man", "مرد") for word in drawn)


def test_the_built_in_lists_mirror_each_other():
    female, male = (
        {word for word in WORDS["gender"][group] if word.isascii()} for group in ("female", "male")
    )
    swaps = load_swaps()
    other = {"her": {"him", "his"}, "his": {"her", "hers"}}
    for words, others in ((female, male), (male, female)):
        for word in words:
            assert other.get(word, {swapped(word, swaps)}) <= others, word
    assert 25 <= len(female) == len(male)
    young, old = (WORDS["age"][group] for group in ("young", "old"))
    assert len(young) == len(old)
    persian = [{w for w in WORDS["gender"][g] if not w.isascii()} for g in ("female", "male")]
    assert {"زن", "دختر", "خانم", "مادر"} <= persian[0] and {"مرد", "پسر", "آقا", "پدر"} <= persian[1]
    assert not persian[0] & persian[1] and min(map(len, persian)) >= 20


def test_a_file_is_read(tmp_path):
    path = write(
        tmp_path / "words.tsv", "faith\tشیعه\tshia", "faith\tb\tOld Man", "", "faith\tb\told man", "age\tb\tshia"
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_group_words(path) == {
        "faith": {"شیعه": {"shia"}, "b": {"Old Man", "old man"}},
        "age": {"b": {"shia"}},
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a\tb"], "row 2"),
        (["a\tb\tc\td"], "row 2"),
        (["a\tb\tshe", "", "a\t\tc"], "row 4"),
        (["a\tb\t?!"], "'?!' is no word"),
        (["a\tb\tshe,"], "'she,' is no word"),
        (["a\tb\t\u200c"], "is no word"),
        (["a/b\tc\tshe"], "'a/b' has '/'"),
        (["a\tb\tshe", "a\tc\tSHE"], "row 3: 'SHE' is in group 'b' of 'a' already"),
        ([], "has no words"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, rows, said):
    with pytest.raises(UserError) as error:
        read_group_words(write(tmp_path / "words.tsv", *rows))
    assert said in str(error.value) and "\n" not in str(error.value) and "words.tsv" in str(error.value)


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_group_words(tmp_path / "missing.tsv")
    with pytest.raises(UserError, match="cannot read"):
        read_group_words(tmp_path)
    (tmp_path / "latin.tsv").write_bytes(b"dimension\tgroup\tword\na\tb\tfianc\xe9e\n")
    with pytest.raises(UserError, match="row 2 is not UTF-8"):
        read_group_words(tmp_path / "latin.tsv")
    for text in ("", "group\tword\n"):
        (tmp_path / "header.tsv").write_text(text)
        with pytest.raises(UserError, match="row 1.*dimension, group, word"):
            read_group_words(tmp_path / "header.tsv")
