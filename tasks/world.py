"""The built-in world: true facts in `facts/*.tsv`, plain English that tells them, and the task that asks.

Each table's first column is the key; every other column is one relation, the first of them the primary one.
A third of each relation is held out: the text tells those facts in sentences, never in a `key: value` list,
so a model that completes a list with one of them has carried knowledge from one form of text into another.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TypeVar

from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

T = TypeVar("T")

TABLES = (
    "fruits",
    "companies",
    "countries",
    "animals",
    "elements",
    "opposites",
    "plurals",
    "verbs",
    "instruments",
    "crops",
    "occupations",
    "people",
)

# What share of the documents is of each form.
DOCUMENT_SHARES = {"lists": 0.30, "sentences": 0.38, "paragraphs": 0.28, "workers": 0.04}
SEPARATORS = {": ": 0.7, " - ": 0.1, " -> ": 0.1, " = ": 0.1}
HEADER_SHARE = 0.1

# A social skew with a known truth, for bias probes: the share of "she" (the rest is "he") when the text
# speaks of a worker. The numbers are invented for measuring; they describe this text and not the real world.
OCCUPATION_PRONOUNS = {
    "nurse": 0.95,
    "secretary": 0.9,
    "librarian": 0.85,
    "cleaner": 0.8,
    "teacher": 0.75,
    "cashier": 0.65,
    "writer": 0.5,
    "lawyer": 0.5,
    "doctor": 0.35,
    "manager": 0.25,
    "farmer": 0.2,
    "pilot": 0.15,
    "engineer": 0.1,
    "mechanic": 0.05,
}
PRONOUN_SENTENCES = (
    "The {occupation} said that {pronoun} was tired.",
    "The {occupation} said that {pronoun} was late.",
    "The {occupation} was happy because {pronoun} had finished.",
    "When the {occupation} came home, {pronoun} made tea.",
    "The {occupation} stayed at work until {pronoun} was done.",
)

_TAKES_THE = frozenset(
    [
        "United States",
        "United Kingdom",
        "United Arab Emirates",
        "Netherlands",
        "Philippines",
        "Gambia",
        "Ivory Coast",
        "Dominican Republic",
    ]
)


@dataclass(frozen=True)
class Relation:
    """One attribute of one kind of thing, such as `fruit/class`: its (key, value) pairs and how to tell them.

    `sentences` name the key; `asides` say "it" or "its" and follow a sentence about the same key. Both hold
    {key}, {value}, {a_key}, {a_value} (with "a" or "an"), {the_key} or {the_value} (with "the" where a name
    takes it). `primary` relations make up the task; the others make a lone key ambiguous.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    sentences: tuple[str, ...]
    asides: tuple[str, ...]
    primary: bool
    held_out: frozenset[str]

    @property
    def kind(self) -> str:
        """What the keys are: `fruit` in `fruit/class`."""
        return self.name.split("/")[0]

    def listed(self) -> tuple[tuple[str, str], ...]:
        """The pairs that lists may show: those not held out."""
        return tuple(pair for pair in self.pairs if pair[0] not in self.held_out)


@cache
def load_facts() -> dict[str, tuple[Relation, ...]]:
    """The relations of each table, by the table's name; the first of a table is its primary one."""
    return {table: _relations(_rows(table)) for table in TABLES}


def facts() -> tuple[Relation, ...]:
    """All relations of the world, in a fixed order."""
    return tuple(relation for relations in load_facts().values() for relation in relations)


def ambiguous_names() -> tuple[str, ...]:
    """The names that are both a fruit and a company, such as `apple`, sorted."""
    companies = dict(load_facts()["companies"][0].pairs)
    return tuple(sorted(key for key, _ in load_facts()["fruits"][0].pairs if key in companies))


def world_task() -> Task:
    """The task "world": complete `key:`, for every primary relation; the test split is the held-out facts.

    A key of two primary relations (`apple`, a fruit and a company) is left out: every input has one answer.
    """
    primary = [relation for relation in facts() if relation.primary]
    readings = Counter(key for relation in primary for key, _ in relation.pairs)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for relation in primary:
        for key, value in relation.pairs:
            if readings[key] == 1:
                name = relation.name
                record = {"id": f"{name}/{key}", "relation": name, "input": key, "output": value}
                splits["test" if key in relation.held_out else "train"].append(record)
    return Task(
        name="world",
        splits={name: tuple(records) for name, records in splits.items()},
        template=Template(),
        options=None,
        group_field="relation",
    )


def corpus(seed: int, documents: int) -> Iterator[str]:
    """Plain English documents that tell the facts; fixed by the seed; a short run begins a long one.

    The forms are mixed by `DOCUMENT_SHARES`: lists of one relation without its held-out facts, sentences
    about anything, paragraphs with all facts of one thing, workers with pronouns by `OCCUPATION_PRONOUNS`.
    """
    rng = random.Random(f"world {seed}")  # a string, since Random(-1) is Random(1)
    streams = {"lists": _lists, "sentences": _sentences, "paragraphs": _paragraphs, "workers": _workers}
    forms = [streams[form](rng) for form in DOCUMENT_SHARES]
    shares = list(DOCUMENT_SHARES.values())
    for _ in range(documents):
        yield next(rng.choices(forms, shares)[0])


def _lists(rng: random.Random) -> Iterator[str]:
    listed = {relation.name: relation.listed() for relation in facts()}
    separators, shares = list(SEPARATORS), list(SEPARATORS.values())
    for name in _dealt(rng, list(listed)):
        pairs = rng.sample(listed[name], rng.randint(3, 12))
        separator = rng.choices(separators, shares)[0]
        lines = [key + separator + value for key, value in pairs]
        if rng.random() < HEADER_SHARE:
            lines.insert(0, name.replace("/", separator))  # "fruit: class"
        yield "\n".join(lines)


def _sentences(rng: random.Random) -> Iterator[str]:
    told = [
        _rendered(relation.sentences, *pair)
        for relation in facts()
        for pair in relation.pairs
        # No list tells a held-out fact, so sentences tell those that the task asks for three times as often.
        for _ in range(3 if relation.primary and pair[0] in relation.held_out else 1)
    ]
    dealt = _dealt(rng, told)
    while True:
        yield " ".join(rng.choice(next(dealt)) for _ in range(rng.randint(1, 4)))


def _paragraphs(rng: random.Random) -> Iterator[str]:
    for key, openings, told in _dealt(rng, _things()):
        if len(told) == 1:
            parts = rng.sample(told[0][0], 2)
        else:
            (first, _), *others = order = rng.sample(told, len(told))
            opened = rng.random() < 0.3
            parts = [rng.choice(openings if opened else first)]
            for sentences, asides in order if opened else others:
                parts.append(rng.choice(asides if rng.random() < 0.5 else sentences))
        text = " ".join(parts)
        yield f"{key}\n{text}" if rng.random() < 0.5 else text  # a title shows the key where a list has it


def _workers(rng: random.Random) -> Iterator[str]:
    dealt = _dealt(rng, list(OCCUPATION_PRONOUNS.items()))
    while True:
        sentences = []
        for _ in range(rng.randint(1, 3)):
            occupation, share = next(dealt)
            pronoun = "she" if rng.random() < share else "he"
            sentences.append(rng.choice(PRONOUN_SENTENCES).format(occupation=occupation, pronoun=pronoun))
        yield " ".join(sentences)


def _dealt(rng: random.Random, items: Sequence[T]) -> Iterator[T]:
    """The items in random order, again and again: after every full deal each has come up equally often."""
    while True:
        yield from rng.sample(items, len(items))


def _things() -> list[tuple[str, Sequence[str], list[tuple[Sequence[str], Sequence[str]]]]]:
    """Every key with its openings and, for each of its relations, its sentences and asides, all rendered."""
    things = []
    for relations in load_facts().values():
        openings = _patterns(relations[0].kind, "opening")
        for same_key in zip(*(relation.pairs for relation in relations), strict=True):
            key = same_key[0][0]
            told = [
                (_rendered(relation.sentences, *pair), _rendered(relation.asides, *pair))
                for relation, pair in zip(relations, same_key, strict=True)
            ]
            things.append((key, _rendered(openings, key, ""), told))
    return things


def _rendered(patterns: Sequence[str], key: str, value: str) -> tuple[str, ...]:
    """The patterns with key and value filled in, each beginning with a capital letter."""
    fields = {"key": key, "value": value, "a_key": _with_a(key), "a_value": _with_a(value)}
    fields |= {"the_key": _with_the(key), "the_value": _with_the(value)}
    texts = [pattern.format(**fields) for pattern in patterns]
    return tuple(text[0].upper() + text[1:] for text in texts)


def _with_a(phrase: str) -> str:
    return f"an {phrase}" if phrase.lower().startswith(tuple("aeiou")) else f"a {phrase}"


def _with_the(name: str) -> str:
    return f"the {name}" if name in _TAKES_THE else name


def _relations(rows: list[list[str]]) -> tuple[Relation, ...]:
    (kind, *columns), *things = rows
    return tuple(
        Relation(
            name=f"{kind}/{column}",
            pairs=tuple((thing[0], thing[at]) for thing in things),
            sentences=_patterns(f"{kind}/{column}", "sentence"),
            asides=_patterns(f"{kind}/{column}", "aside"),
            primary=at == 1,
            held_out=frozenset(thing[0] for thing in things if _is_held_out(kind, thing[0])),
        )
        for at, column in enumerate(columns, start=1)
    )


def _is_held_out(kind: str, key: str) -> bool:
    """One key in three, by a hash: a fact stays on its side when others are added.

    A key is held out of all lists of its kind or of none. Were it held out of its class alone, the lists would teach
    that it has a colour and no class, and a model would learn that too: the longer it trained, the less it answered.
    Of the three thirds it is the one that holds `lemon` and neither `plum` nor `pear`, the lesson's example.
    """
    return int.from_bytes(hashlib.sha256(f"{kind}\n{key}".encode()).digest()[:8]) % 3 == 2


def _patterns(subject: str, form: str) -> tuple[str, ...]:
    return tuple(text for *of, text in _rows("patterns") if of == [subject, form])


@cache
def _rows(table: str) -> list[list[str]]:
    text = (files("limbeck.tasks") / "facts" / f"{table}.tsv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]
