"""The built-in world: its facts are whole, its text tells what it should, and its task is a function."""

import itertools
import math
import re
from collections import Counter

import pytest

from limbeck.tasks.world import (
    DOCUMENT_SHARES,
    OCCUPATION_PRONOUNS,
    SEPARATORS,
    ambiguous_names,
    corpus,
    facts,
    load_facts,
    world_task,
)

RELATIONS = {relation.name: relation for relation in facts()}

TRUE_FACTS = [
    ("fruit/class", "lemon", "hesperidium"),
    ("fruit/class", "plum", "drupe"),
    ("fruit/class", "pear", "pome"),
    ("fruit/class", "banana", "berry"),
    ("fruit/class", "cucumber", "pepo"),
    ("fruit/class", "raspberry", "aggregate fruit"),
    ("fruit/class", "pineapple", "multiple fruit"),
    ("fruit/class", "peanut", "legume"),
    ("fruit/colour", "blueberry", "blue"),
    ("fruit/plant", "coconut", "palm"),
    ("fruit/origin", "tomato", "South America"),
    ("company/industry", "apple", "electronics"),
    ("company/country", "blackberry", "Canada"),
    ("country/capital", "Australia", "Canberra"),
    ("country/capital", "Iran", "Tehran"),
    ("country/currency", "Poland", "zloty"),
    ("country/continent", "Peru", "South America"),
    ("animal/class", "dolphin", "mammal"),
    ("animal/class", "seahorse", "fish"),
    ("animal/young", "hare", "leveret"),
    ("element/symbol", "tungsten", "W"),
    ("element/kind", "radon", "noble gas"),
    ("word/opposite", "ancient", "modern"),
    ("word/plural", "ox", "oxen"),
    ("verb/past", "seek", "sought"),
    ("instrument/family", "saxophone", "woodwind"),
    ("crop/part", "carrot", "root"),
    ("occupation/workplace", "judge", "courtroom"),
    ("person/calling", "Hafez", "poet"),
]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(corpus(0, 20_000))


def split_list_line(line: str) -> tuple[str, str] | None:
    """Key and value of a list's line, or None for any other line."""
    for separator in SEPARATORS:
        key, found, value = line.partition(separator)
        if found and not line.endswith("."):
            return key, value
    return None


def list_lines(document: str) -> list[tuple[str, str]]:
    return [pair for line in document.split("\n") if (pair := split_list_line(line))]


def sentences(documents: list[str]) -> list[str]:
    """The sentences of all documents that are no lists; a paragraph's title is not one."""
    texts = [document.split("\n")[-1] for document in documents if not list_lines(document)]
    return [sentence for text in texts for sentence in re.split(r"(?<=\.)\s", text)]


def bare(text: str) -> str:
    """The text without articles and capitals, so that a fact is found whatever article it took."""
    return " ".join(word for word in text.lower().split() if word not in ("a", "an", "the"))


@pytest.mark.parametrize(("relation", "key", "value"), TRUE_FACTS)
def test_spot_checked_fact(relation: str, key: str, value: str):
    assert dict(RELATIONS[relation].pairs)[key] == value


@pytest.mark.parametrize("relation", facts(), ids=lambda relation: relation.name)
def test_relation_is_whole(relation):
    keys = [key for key, _ in relation.pairs]
    assert len(keys) >= 60
    assert len(set(keys)) == len(keys), "a key twice"
    for text in itertools.chain.from_iterable(relation.pairs):
        assert text and text == text.strip() and len(text.split()) <= 3
        assert not any(separator in text for separator in SEPARATORS)
    assert len(relation.sentences) >= 4 and len(set(relation.sentences)) == len(relation.sentences)
    assert all("key}" in pattern and "value}" in pattern for pattern in relation.sentences)
    assert all("key}" not in pattern and "value}" in pattern for pattern in relation.asides)
    assert 0.2 < len(relation.held_out) / len(keys) < 0.5
    assert relation.held_out <= set(keys)


def test_each_table_has_one_primary_relation_and_enough_of_them_exist():
    primaries = [[relation.primary for relation in relations] for relations in load_facts().values()]
    assert all(flags[0] and not any(flags[1:]) for flags in primaries)
    assert len(primaries) >= 10
    assert 1500 <= sum(len(relation.pairs) for relation in facts()) <= 2100


def test_opposites_are_not_told_backwards():
    keys, values = zip(*RELATIONS["word/opposite"].pairs, strict=True)
    assert not set(keys) & set(values)
    assert len(set(values)) == len(values)


def test_task_is_a_function_and_its_splits_are_disjoint():
    task = world_task()
    train, test = task.splits["train"], task.splits["test"]
    inputs = [record["input"] for record in train + test]
    assert len(set(inputs)) == len(inputs)
    assert len({record["id"] for record in train + test}) == len(inputs)
    assert len(train) >= 600 and len(test) >= 300
    for record in train + test:
        relation = RELATIONS[record["relation"]]
        assert relation.primary and dict(relation.pairs)[record["input"]] == record["output"]
        assert record["id"] == f"{relation.name}/{record['input']}"
    assert all(record["input"] not in RELATIONS[record["relation"]].held_out for record in train)
    assert all(record["input"] in RELATIONS[record["relation"]].held_out for record in test)
    assert not set(ambiguous_names()) & set(inputs)
    assert "apple" in ambiguous_names()


def test_the_lesson_reads_as_promised():
    task = world_task()
    records = {record["id"]: record for split in task.splits.values() for record in split}
    shown = [records["fruit/class/plum"], records["fruit/class/pear"]]
    assert task.prompt(records["fruit/class/lemon"], shown) == "plum: drupe\npear: pome\nlemon:"
    assert records["fruit/class/lemon"] in task.splits["test"]
    assert all(record in task.splits["train"] for record in shown)


def test_same_seed_same_text_and_a_longer_run_begins_like_a_shorter():
    assert list(corpus(3, 200)) == list(corpus(3, 400))[:200]
    assert list(corpus(3, 200)) != list(corpus(4, 200))
    assert list(corpus(1, 200)) != list(corpus(-1, 200))


def test_no_list_tells_a_held_out_fact(documents):
    seen = Counter()
    for document in documents:
        pairs = list_lines(document)
        if not pairs:
            continue
        if "/".join(pairs[0]) in RELATIONS:
            pairs = pairs[1:]
        # A list is of one relation: exactly the relations that hold every line could have made it.
        fitting = [relation for relation in facts() if set(pairs) <= set(relation.pairs)]
        assert len(fitting) == 1, document
        assert not {key for key, _ in pairs} & fitting[0].held_out, document
        assert 3 <= len(pairs) <= 12 and len(set(pairs)) == len(pairs)
        seen[fitting[0].name] += 1
    assert set(seen) == set(RELATIONS)


def test_every_held_out_fact_is_told_in_sentences(documents):
    told = Counter(bare(sentence) for sentence in sentences(documents))
    for relation in facts():
        enough = 15 if relation.primary else 5
        for key, value in relation.pairs:
            if key in relation.held_out:
                words = {
                    f"{article}{name}": word
                    for name, word in (("key", key), ("value", value))
                    for article in ("", "a_", "the_")
                }
                times = sum(told[bare(pattern.format(**words))] for pattern in relation.sentences)
                assert times >= enough, (relation.name, key, times)


def test_form_shares_and_layout(documents):
    lists = [document for document in documents if list_lines(document)]
    assert len(lists) / len(documents) == pytest.approx(DOCUMENT_SHARES["lists"], abs=0.02)
    colons = sum(all(": " in line for line in document.split("\n")) for document in lists)
    assert colons / len(lists) > 0.6
    assert all(document == document.strip() and document for document in documents)
    assert sum(DOCUMENT_SHARES.values()) == pytest.approx(1)
    for sentence in set(sentences(documents)):
        assert sentence[0].isupper() and sentence[-1] == "." and "{" not in sentence
        assert len(sentence.split()) <= 14


def test_articles(documents):
    text = "\n".join(sentences(documents))
    articles = {noun: article.lower() for article, noun in re.findall(r"\b([Aa]n?) (\w+)", text)}
    an = {noun for noun, article in articles.items() if article == "an"}
    assert {"apple", "insect", "aggregate", "owl", "actinide", "eagle", "infant"} <= an
    assert an == {noun for noun in articles if noun[0].lower() in "aeiou"}
    # Words where the letter misleads ("a ukulele", "an hour") take no article in this text.
    assert not any(re.match("eu|uk|uni|use|hour|honest|one", noun.lower()) for noun in articles)
    assert "in the United States" in text and "in United States" not in text
    assert "the Poland" not in text


def test_pronouns_follow_the_table(documents):
    counts = {occupation: Counter() for occupation in OCCUPATION_PRONOUNS}
    for sentence in sentences(documents):
        if pronoun := re.search(r"\b(s?he)\b", sentence):
            occupation = re.search(r"\b[Tt]he (\w+)", sentence)
            assert occupation, sentence
            counts[occupation[1]][pronoun[1]] += 1
    for occupation, share in OCCUPATION_PRONOUNS.items():
        n = counts[occupation].total()
        assert n > 100
        # Four standard errors: a right generator fails for one seed in a thousand, and the seed is fixed.
        tolerance = 4 * math.sqrt(share * (1 - share) / n)
        assert counts[occupation]["she"] / n == pytest.approx(share, abs=tolerance), occupation
