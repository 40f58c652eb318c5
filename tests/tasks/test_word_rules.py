"""Words put through rules: what each rule makes of them, and that each word goes through each once."""

from hypothesis import given
from hypothesis import strategies as st

from limbeck.tasks.word_rules import RULES, past, plural, ruled_texts, words_of


def test_the_rules_of_spelling() -> None:
    assert [plural(word) for word in ("lemon", "berry", "boy", "box", "branch")] == [
        "lemons", "berries", "boys", "boxes", "branches",
    ]  # fmt: skip
    assert [past(word) for word in ("pick", "bake", "carry", "play")] == ["picked", "baked", "carried", "played"]
    assert [rule("plum") for rule in RULES.values()] == [
        "plum", "Plum", "PLUM", "plums", "plumed", "plum plum", "p", "m", "lum", "plu", "mulp",
    ]  # fmt: skip


def test_words_of_any_script_once_each() -> None:
    assert words_of(["The lemon, the LEMON; a 123 لیمو x_lime"], {"Lime"}) == ["lemon", "the", "لیمو"]


@given(st.lists(st.text("abcdefgh", min_size=3), unique=True, max_size=30), st.integers(1, 9))
def test_every_word_goes_through_every_rule_once(words: list[str], shown: int) -> None:
    documents = [text.split("\n") for text in ruled_texts(words, 0, shown)]
    assert all(0 < len(rows) <= shown for rows in documents)
    rows = [row for document in documents for row in document]
    assert sorted(rows) == sorted(f"{word}: {rule(word)}" for word in words for rule in RULES.values())
    for document in documents:  # one rule at least makes all of its rows
        pairs = [row.split(": ") for row in document]
        assert any(all(rule(word) == said for word, said in pairs) for rule in RULES.values())
