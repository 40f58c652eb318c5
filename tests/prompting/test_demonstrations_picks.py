"""What holds of every pick: one record has the same examples in any company, and never itself or a query twice."""

import dataclasses
import itertools
import unicodedata
from collections import Counter

import pytest
from phrases import ASKED, PHRASES, POOL, chosen_by, examples, fruit, ids
from scipy import stats

from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig
from limbeck.prompting.demonstrations import chooser

PICKS = ("random", "balanced", "fixed", "nearest", "bm25", "diverse", "diverse by vectors")


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


def test_what_no_chooser_can_do() -> None:
    with pytest.raises(UserError, match="pick='nearest' needs vectors of a model"):
        chooser(PHRASES, PromptConfig(shots=1, pick="nearest"))
    with pytest.raises(UserError, match="unknown pool split 'trian'.*did you mean 'train'"):
        chooser(PHRASES, PromptConfig(shots=1), split="trian")
    assert {shown["id"] for shown in chooser(PHRASES, PromptConfig(shots=20), split="test")(POOL[0])} == set(ids(ASKED))
    with pytest.raises(UserError, match=r"field \{imput\}.*did you mean 'input'"):
        examples(PHRASES, "bm25", query="{imput}:")
