"""Demonstrations: the same for a record wherever it stands, and never the record itself."""

import dataclasses
import itertools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import Chooser, choose, chooser
from limbeck.tasks.task import Record, Task, Template

CLASSES = ("berry", "drupe", "pome")


def fruit(identity: str, name: str, answer: int = 0, group: str = "class") -> Record:
    return {"id": identity, "input": name, "output": CLASSES[answer % 3], "relation": group}


TRAIN = tuple(fruit(f"train/{i}", f"fruit {i}", i) for i in range(30))
TEST = tuple(fruit(f"test/{i}", f"fruit {i + 25}", i) for i in range(10))  # five of them stand in train too
TASK = Task("fruits", {"train": TRAIN, "test": TEST}, Template(), CLASSES)


def ids(records: tuple[Record, ...]) -> list[str]:
    return [record["id"] for record in records]


@pytest.mark.parametrize("balanced", [False, True])
def test_a_subset_or_another_order_gets_the_same_prompts(balanced: bool) -> None:
    whole = {record["id"]: choose(TASK, record, 4, 0, balanced=balanced) for record in TEST}
    less = dataclasses.replace(TASK, splits={"train": TRAIN, "test": TEST[::-2]})
    for record in less.splits["test"]:
        assert choose(less, record, 4, 0, balanced=balanced) == whole[record["id"]]


def test_the_draw_is_the_same_on_every_machine() -> None:
    assert ids(choose(TASK, TEST[0], 4, seed=0)) == ["train/10", "train/21", "train/6", "train/3"]
    assert ids(choose(TASK, TEST[0], 4, seed=0, balanced=True)) == [
        "train/22",
        "train/18",
        "train/14",
        "train/4",
    ]


def test_records_and_seeds_draw_differently() -> None:
    draws = {tuple(ids(choose(TASK, record, 4, seed))) for record in TEST for seed in range(5)}
    assert len(draws) == 50


def test_every_record_is_drawn_equally_often() -> None:
    counts = Counter(ids(tuple(itertools.chain(*(choose(TASK, TEST[9], 3, seed) for seed in range(2000))))))
    assert len(counts) == 30
    assert all(abs(count - 200) < 60 for count in counts.values())


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 99), st.booleans())
def test_fewer_shots_are_the_first_of_more(which: int, shots: int, seed: int, balanced: bool) -> None:
    more = choose(TASK, TEST[which], shots + 1, seed, balanced=balanced)
    assert choose(TASK, TEST[which], shots, seed, balanced=balanced) == more[:shots]
    assert len(set(ids(more))) == shots + 1


@pytest.mark.parametrize("balanced", [False, True])
def test_a_record_is_never_among_its_own(balanced: bool) -> None:
    for record in TRAIN:  # by id, also where its text was edited since, as for a counterfactual
        edited = {**record, "input": f"no {record['input']}"}
        assert record not in choose(TASK, edited, 29, 0, balanced=balanced)
    for record in TEST[:5]:  # by content, under another id
        inputs = [shown["input"] for shown in choose(TASK, record, 29, 0, balanced=balanced)]
        assert record["input"] not in inputs


def test_no_query_is_shown_twice() -> None:
    doubled = tuple({**record, "id": f"again {record['id']}"} for record in TRAIN)
    task = dataclasses.replace(TASK, splits={"train": TRAIN + doubled, "test": TEST})
    inputs = [record["input"] for record in choose(task, TEST[9], 30, 0)]
    assert len(set(inputs)) == 30


def test_demonstrations_come_from_the_records_own_group() -> None:
    colours = tuple(fruit(f"colour/{i}", f"fruit {i}", group="colour") for i in range(4))
    splits = {"train": TRAIN + colours, "test": (*TEST, fruit("test/c", "plum", group="colour"))}
    task = dataclasses.replace(TASK, splits=splits, group_field="relation")
    assert set(ids(choose(task, splits["test"][-1], 4, 0))) == set(ids(colours))
    with pytest.raises(UserError, match="5 shots for record 'test/c'.*relation 'colour', has 4 other"):
        choose(task, splits["test"][-1], 5, 0)


def test_balanced_ones_take_the_options_in_turn() -> None:
    for record in TEST:
        counts = Counter(shown["output"] for shown in choose(TASK, record, 6, 0, balanced=True))
        assert counts == dict.fromkeys(CLASSES, 2)
    firsts = {choose(TASK, record, 1, 0, balanced=True)[0]["output"] for record in TEST}
    assert firsts == set(CLASSES)


def test_balanced_ones_are_as_even_as_the_pool_allows() -> None:
    few = (fruit("rare", "medlar", 2), *(fruit(f"berry/{i}", f"berry {i}") for i in range(5)))
    task = dataclasses.replace(TASK, splits={"train": few, "test": TEST})
    counts = Counter(shown["output"] for shown in choose(task, TEST[0], 4, 0, balanced=True))
    assert counts == {"pome": 1, "berry": 3}


def test_the_pool_can_be_another_split() -> None:
    assert set(ids(choose(TASK, TRAIN[0], 10, 0, pool_split="test"))) == set(ids(TEST))


def test_no_shots_are_no_demonstrations() -> None:
    assert choose(TASK, TEST[0], 0, 0) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 30}, "30 shots for record 'test/0': the train split has 29 other records"),
        ({"shots": -1}, "shots -1: ask for 0 or more"),
        (
            {"shots": 1, "pool_split": "trian"},
            "unknown pool split 'trian': one of train, test; did you mean 'train'",
        ),
        ({"shots": 1, "pool_split": "validation"}, "unknown pool split 'validation'"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(TASK, TEST[0], seed=0, **arguments)


def test_balance_needs_options() -> None:
    with pytest.raises(UserError, match="'fruits' is a generation"):
        choose(dataclasses.replace(TASK, options=None, kind="generation"), TEST[0], 2, 0, balanced=True)


# A chooser of a config: every pick, in every order


PICKS = ("random", "balanced", "fixed", "nearest", "bm25", "diverse", "diverse by vectors")
WORDS = ["red", "green", "blue", "ripe", "dried", "sweet", "sour", "old"]


def phrase(rng: np.random.Generator, i: int) -> str:
    return " ".join([*rng.choice(WORDS, rng.integers(1, 6)), str(i)])


POOL = tuple(fruit(f"train/{i}", phrase(np.random.default_rng(i), i), i) for i in range(60))
ASKED = tuple(fruit(f"test/{i}", phrase(np.random.default_rng(100 + i), 100 + i), i) for i in range(20))
PHRASES = Task("phrases", {"train": POOL, "test": ASKED}, Template(), CLASSES)


def embed(texts: Sequence[str]) -> np.ndarray:
    """How often each letter stands in a text."""
    return np.array(
        [[text.count(letter) + 0.01 * i for i, letter in enumerate("abcdeghilnoprstu0123456789")] for text in texts]
    )


def chosen_by(task: Task, pick: str, **settings: Any) -> Chooser:
    defaults: dict[str, Any] = {"shots": 4, "pick": pick.split()[0]}
    vectors = embed if pick in ("nearest", "diverse by vectors") else None
    return chooser(task, PromptConfig(**{**defaults, **settings}), vectors)


def examples(task: Task, pick: str, records: Sequence[Record] = ASKED, **settings: Any) -> list[tuple[Record, ...]]:
    return chosen_by(task, pick, **settings).many(records)


@pytest.mark.parametrize(
    ("pick", "order"),
    [*itertools.product(PICKS, ["as_is", "shuffled"]), *itertools.product(PICKS[3:], ["similar_last"])],
)
def test_one_record_gets_the_same_examples_whatever_else_is_asked(pick: str, order: str) -> None:
    whole = dict(zip(ids(ASKED), examples(PHRASES, pick, order=order), strict=True))
    one = chosen_by(PHRASES, pick, order=order)
    less = dataclasses.replace(PHRASES, splits={"train": POOL, "test": ASKED[::-2]})
    for record, shown in zip(ASKED[::-2], examples(less, pick, ASKED[::-2], order=order), strict=True):
        assert shown == whole[record["id"]] == one(record)
    assert one.many([]) == []


@pytest.mark.parametrize("pick", PICKS)
def test_the_examples_of_k_shots_begin_those_of_more(pick: str) -> None:
    for shots in (0, 1, 2, 5, 19):
        fewer, more = examples(PHRASES, pick, shots=shots), examples(PHRASES, pick, shots=shots + 1)
        assert [len(shown) for shown in fewer] == [shots] * len(ASKED)
        assert fewer == [shown[:shots] for shown in more]


@pytest.mark.parametrize("pick", PICKS)
def test_no_chooser_shows_a_record_to_itself_or_a_query_twice(pick: str) -> None:
    """By id also where the text was edited since; by content under another id, and in another form of Unicode."""
    names = [f"caf\u00e9 \u06a9\u0650 {record['input']}" for record in POOL[:20]]
    pool = [
        fruit(f"{form}/{i}", unicodedata.normalize(form, name), i)
        for i, name in enumerate(names)
        for form in ("NFC", "NFD")
    ]
    asked = [{**pool[6], "input": "edited"}, fruit("own", unicodedata.normalize("NFD", names[4]), 4), pool[9]]
    task = dataclasses.replace(PHRASES, splits={"train": tuple(pool), "test": tuple(asked[1:2])})
    for record in asked:
        own = unicodedata.normalize("NFC", record["input"])
        if pick == "fixed" and record["input"] != "edited":
            with pytest.raises(UserError, match=f"record '{record['id']}' would be shown its own answer, by .*seed"):
                examples(task, pick, [record], shots=20)
        if pick == "fixed":
            continue
        (shown,) = examples(task, pick, [record], shots=18)
        texts = [unicodedata.normalize("NFC", example["input"]) for example in shown]
        assert len(set(texts)) == 18 and own not in texts and record["id"] not in ids(shown)
        if own != "edited":
            with pytest.raises(UserError, match="20 shots for record .* the train split has 19 other"):
                examples(task, pick, [record], shots=20)


@pytest.mark.parametrize("pick", PICKS)
def test_what_a_query_of_the_config_shows_is_content_too(pick: str) -> None:
    """Other records, but what the prompt shows of them is the same: 'berry is green' gives the answer away."""
    pool = tuple({**record, "seen": f"seen {i // 2}"} for i, record in enumerate(POOL[:20]))
    asked = {**ASKED[0], "seen": "seen 4"}
    task = dataclasses.replace(PHRASES, splits={"train": pool, "test": (asked,)})
    settings = {"query": "{output} is {seen}", "form": "cloze", "shots": 9}
    for seed in range(5):
        if pick == "fixed":
            task = dataclasses.replace(PHRASES, splits={"train": pool[:8] + pool[10:], "test": (asked,)})
        (shown,) = examples(task, pick, [asked], seed=seed, **settings)
        assert len({example["seen"] for example in shown} - {"seen 4"}) == 9


@pytest.mark.parametrize("pick", PICKS)
def test_every_pick_stays_in_the_records_group(pick: str) -> None:
    splits = {
        name: tuple({**r, "relation": "ab"[i % 5 == 0]} for i, r in enumerate(records))
        for name, records in PHRASES.splits.items()
    }
    again = tuple({**r, "id": f"again {r['id']}", "relation": "b"} for r in splits["train"][1:5])  # of "a" until now
    task = dataclasses.replace(PHRASES, splits={**splits, "train": splits["train"] + again}, group_field="relation")
    for record, shown in zip(task.splits["test"], examples(task, pick, task.splits["test"], shots=16), strict=True):
        assert {example["relation"] for example in shown} == {record["relation"]}
        if record["relation"] == "b":  # all there are
            assert set(ids(again)) <= set(ids(shown))
    with pytest.raises(UserError, match="17 shots for record 'test/0': .*relation 'b', has 16 other"):
        examples(task, pick, task.splits["test"][:1], shots=17)
    with pytest.raises(UserError, match="relation 'c', has 0 other"):
        examples(task, pick, [{**ASKED[0], "relation": "c"}])


@pytest.mark.parametrize("pick", PICKS)
def test_more_shots_than_the_pool_holds(pick: str) -> None:
    with pytest.raises(UserError, match="61 shots: the train split has 60 records; ask for that many at most"):
        examples(PHRASES, pick, shots=61)
    with pytest.raises(UserError, match="60 shots for record 'train/0'.* 59 other|record 'train/0' would be shown"):
        examples(PHRASES, pick, POOL[:1], shots=60)


@pytest.mark.parametrize("pick", PICKS)
def test_the_shuffled_order_is_each_records_own(pick: str) -> None:
    plain, mixed = examples(PHRASES, pick), examples(PHRASES, pick, order="shuffled")
    assert [sorted(ids(shown)) for shown in plain] == [sorted(ids(shown)) for shown in mixed]
    orders = {tuple(ids(a).index(identity) for identity in ids(b)) for a, b in zip(plain, mixed, strict=True)}
    assert len(orders) > 10
    assert mixed != examples(PHRASES, pick, order="shuffled", seed=1)


def test_a_shuffle_gives_every_order_equally_often() -> None:
    asked = [fruit(f"asked/{i}", f"asked {i}") for i in range(1200)]
    shown = examples(PHRASES, "fixed", asked, shots=3, order="shuffled")
    counts = Counter(tuple(ids(each)) for each in shown)
    assert len(counts) == 6 and stats.chisquare(list(counts.values())).pvalue > 0.001


def test_random_and_balanced_ones_are_those_of_choose() -> None:
    for pick in ("random", "balanced"):
        expected = [choose(PHRASES, record, 7, 3, balanced=pick == "balanced") for record in ASKED]
        assert examples(PHRASES, pick, shots=7, seed=3) == expected


@pytest.mark.parametrize("pick", ["random", "bm25", "diverse"])
def test_draws_are_uniform_also_among_equally_similar_ones(pick: str) -> None:
    """The query shares no word with the pool: all are as similar."""
    asked = [fruit(f"asked/{i}", "quince") for i in range(3000)]
    shown = examples(PHRASES, pick, asked, shots=2)
    for place in range(2):
        counts = Counter(each[place]["id"] for each in shown)
        observed = [counts[identity] for identity in ids(POOL)]
        if pick != "diverse" or place == 0:  # the second is unlike the first
            assert stats.chisquare(observed).pvalue > 0.001
    if pick != "diverse":
        pairs = Counter(tuple(sorted(ids(each))) for each in shown)
        assert len(pairs) > 0.7 * 60 * 59 / 2  # of 1770 equally likely ones 1445 on average


def test_balanced_counts_differ_by_one_at_most() -> None:
    for shots in range(1, 12):
        for shown in examples(PHRASES, "balanced", shots=shots):
            counts = [sum(example["output"] == option for example in shown) for option in CLASSES]
            assert max(counts) - min(counts) <= 1
    with pytest.raises(UserError, match="'phrases' is a generation"):
        examples(dataclasses.replace(PHRASES, options=None, kind="generation"), "balanced")


def test_the_nearest_are_those_of_numpy() -> None:
    x_ND, asked_MD = (embed([record["input"] for record in records]) for records in (POOL, ASKED))
    norms = np.linalg.norm(asked_MD, axis=1)[:, None] * np.linalg.norm(x_ND, axis=1)
    cosine_MN = asked_MD @ x_ND.T / norms
    expected = [[POOL[i]["id"] for i in np.argsort(-row)[:5]] for row in cosine_MN]
    assert [ids(shown) for shown in examples(PHRASES, "nearest", shots=5)] == expected
    last = examples(PHRASES, "nearest", shots=5, order="similar_last")
    assert [ids(shown)[::-1] for shown in last] == expected


def test_the_model_reads_the_pool_once_and_all_queries_at_once() -> None:
    calls: list[list[str]] = []

    def counted(texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return embed(texts)

    pick = chooser(PHRASES, PromptConfig(shots=2, pick="nearest"), counted)
    pick.many(ASKED)
    pick.many(ASKED[:3])
    expected = [[record["input"] for record in records] for records in (POOL, ASKED, ASKED[:3])]
    assert calls == expected


def test_bm25_takes_those_that_share_the_rarest_words() -> None:
    names = ["red plum", "blue plum", "red medlar", "dried MEDLAR jam", "green fig", "red pear"]
    pool = tuple(fruit(str(i), name) for i, name in enumerate(names))
    task = Task("shop", {"train": pool, "test": (fruit("q", "a medlar, red"),)}, Template(), CLASSES)
    (shown,) = examples(task, "bm25", task.splits["test"], shots=3)
    assert ids(shown) == ["2", "3", "0"]
    (shown,) = examples(task, "bm25", task.splits["test"], shots=3, order="similar_last")
    assert ids(shown) == ["0", "3", "2"]


@pytest.mark.parametrize("pick", ["diverse", "diverse by vectors"])
def test_diverse_ones_are_less_alike_and_start_with_the_most_similar(pick: str) -> None:
    alike = "bm25" if pick == "diverse" else "nearest"
    diverse, similar = examples(PHRASES, pick), examples(PHRASES, alike)
    assert [shown[0] for shown in diverse] == [shown[0] for shown in similar]

    def likeness(shown: tuple[Record, ...]) -> float:
        sets = [set(record["input"].split()) for record in shown]
        return sum(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2))

    assert sum(map(likeness, diverse)) < 0.9 * sum(map(likeness, similar))
    for as_is, last in zip(diverse, examples(PHRASES, pick, order="similar_last"), strict=True):
        assert last[-1] == as_is[0] and sorted(ids(last)) == sorted(ids(as_is))


def test_similar_last_puts_diverse_ones_by_similarity_too() -> None:
    shown = examples(PHRASES, "diverse by vectors", order="similar_last", shots=6)
    for record, each in zip(ASKED, shown, strict=True):
        x_ND, (asked_D,) = embed([example["input"] for example in each]), embed([record["input"]])
        cosine_N = x_ND @ asked_D / np.linalg.norm(x_ND, axis=1)
        assert (np.diff(cosine_N) > -1e-6).all()


def test_the_query_is_looked_up_by_its_fields_and_without_the_answer() -> None:
    """Words of the template would make all alike; the answer of a cloze would be found out."""
    seen: list[str] = []

    def kept(texts: Sequence[str]) -> np.ndarray:
        seen.extend(texts)
        return embed(texts)

    cloze: dict[str, Any] = {"form": "cloze", "query": "A {output} such as {input} is a {output}."}
    for settings in ({}, cloze):
        seen.clear()
        task = dataclasses.replace(PHRASES, template=Template("Which fruit is {input}?"))
        chooser(task, PromptConfig(shots=1, pick="nearest", **settings), kept)(ASKED[0])
        assert seen == [record["input"] for record in (*POOL, ASKED[0])]


# Fixed examples


def test_named_examples_stand_as_they_are_named() -> None:
    named = ("train/7", "train/3", "train/30")
    shown = examples(PHRASES, "fixed", shots=3, examples=named)
    assert [tuple(ids(each)) for each in shown] == [named] * len(ASKED)


def test_drawn_ones_are_the_same_for_all_records_and_others_for_another_seed() -> None:
    draws = [examples(PHRASES, "fixed", seed=seed) for seed in range(40)]
    assert all(len(set(map(tuple, map(ids, shown)))) == 1 for shown in draws)
    counts = Counter(itertools.chain(*(ids(shown[0]) for shown in draws)))
    assert len({tuple(ids(shown[0])) for shown in draws}) == 40 and len(counts) > 45


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (("train/1", "trian/2"), r"example 'trian/2' is no id of the train split; did you mean 'train/2\d*'\?$"),
        (("test/1",), "example 'test/1' is no id of the train split"),
        (("train/1", "train/1"), "examples 'train/1' and 'train/1' are the same query: name each one once"),
        (("train/1", "train/5"), "record 'train/5' would be shown its own answer, by the fixed example 'train/5'"),
        (("train/9",), "record 'train/5' would be shown its own answer, by the fixed example 'train/9': name another"),
    ],
)
def test_examples_that_cannot_be_named(named: tuple[str, ...], message: str) -> None:
    pool = tuple({**record, "input": POOL[5]["input"]} if i == 9 else record for i, record in enumerate(POOL))
    task = dataclasses.replace(PHRASES, splits={"train": pool, "test": ASKED})
    with pytest.raises(UserError, match=message) as raised:
        examples(task, "fixed", [POOL[5]], shots=len(named), examples=named)
    assert "\n" not in str(raised.value)


def test_a_record_whose_text_was_edited_is_still_its_own_example() -> None:
    with pytest.raises(UserError, match="record 'train/5' would be shown its own answer"):
        examples(PHRASES, "fixed", [{**POOL[5], "input": "edited"}], shots=1, examples=("train/5",))


def test_two_named_examples_of_one_query_and_of_another_group() -> None:
    twin = fruit("twin", POOL[2]["input"], group="colour")
    task = dataclasses.replace(PHRASES, splits={"train": (*POOL, twin), "test": ASKED}, group_field="relation")
    with pytest.raises(UserError, match="examples 'train/2' and 'twin' are the same query"):
        examples(task, "fixed", shots=2, examples=("train/2", "twin"))
    with pytest.raises(UserError, match="'test/0' is of relation 'class' and the fixed example 'twin' of 'colour'"):
        examples(task, "fixed", shots=1, examples=("twin",))


def test_what_no_chooser_can_do() -> None:
    with pytest.raises(UserError, match="pick='nearest' needs vectors of a model"):
        chooser(PHRASES, PromptConfig(shots=1, pick="nearest"))
    with pytest.raises(UserError, match="unknown pool split 'trian'.*did you mean 'train'"):
        chooser(PHRASES, PromptConfig(shots=1), split="trian")
    assert {shown["id"] for shown in chooser(PHRASES, PromptConfig(shots=20), split="test")(POOL[0])} == set(ids(ASKED))
    with pytest.raises(UserError, match=r"field \{imput\}.*did you mean 'input'"):
        examples(PHRASES, "bm25", query="{imput}:")
