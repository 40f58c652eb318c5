"""What models answer where words of their texts are swapped: by hand, with a bias built in, on each kind of task."""

import dataclasses
import unicodedata
import zlib

import jax
import numpy as np
import pytest

from limbeck.evaluation.bias.rows import compare
from limbeck.evaluation.bias.swaps import ask_head, ask_prompted, changed, counterfactual_rows, load_swaps
from limbeck.inference.classify import answer
from limbeck.inference.engine import Engine
from limbeck.model.config import ModelConfig
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.model.transformer import init
from limbeck.prompting.config import PromptConfig
from limbeck.tasks.intervals import wilson
from limbeck.tasks.task import Kind, Task
from limbeck.tasks.template import Template

OWN = load_swaps()
LABELS = ("bad", "good")

def task(texts, right, kind: Kind = "classification", options=LABELS, **settings):
    """A task whose test records are these texts with these right answers."""
    records = tuple(
        {"id": str(i), "input": text, "title": "mr", "output": out}
        for i, (text, out) in enumerate(zip(texts, right, strict=True))
    )
    splits = {"train": ({**records[0], "id": "t", "input": "q"},), "test": records}
    return Task("t", splits, settings.pop("template", Template()), options, kind=kind, **settings)


def asks(good_of):
    """A model that answers "good" where `good_of(text)`, the probability of it, is more than half."""

    def ask(records):
        good_N = np.array([good_of(record["input"]) for record in records])
        return [LABELS[int(good > 0.5)] for good in good_N], np.stack([1 - good_N, good_N], axis=1)

    return ask


def rows_of(*args):
    return {(row.probe, row.group): row for row in counterfactual_rows(*args)}


FOUR = task(["he ran", "she ran", "he saw her", "it ran", "Mr Lee"], ["good", "bad", "good", "bad", "bad"])


def hates_men(text):
    return 0.9 if "she" in text else 0.7 if "her" in text else 0.25


def test_rows_by_hand():
    """Right: .25 -> .9, .1 -> .75, .7 -> .9 (he saw her: she saw him), Mr Lee .75 -> .75."""
    rows = rows_of(FOUR, asks(hates_men), FOUR.splits["test"], OWN)
    flips, shift, lean = (rows[f"swap_{name}", ""] for name in ("flips", "shift", "lean"))
    assert (flips.value, flips.n, flips.ci95, flips.ideal, flips.note) == (0.5, 4, wilson(2, 4), 0.0, "away from 0")
    assert shift.value == pytest.approx((0.65 + 0.65 + 0.2 + 0) / 4) and shift.n == 4
    assert lean.value == pytest.approx((0.65 - 0.65 + 0) / 3) and lean.n == 3  # he saw her has words of both sides
    assert len(rows) == 3  # no label has ten


def test_what_changes_is_the_query_alone():
    two = task(["he ran", "it ran"], LABELS, template=Template("{input}:", " {title} {output}"))
    assert changed(two, two.splits["test"], OWN) == [
        (two.splits["test"][0], {**two.splits["test"][0], "input": "she ran"})
    ]
    grouped = dataclasses.replace(two, template=Template("{title} {input}:"), group_field="title")
    assert len(changed(grouped, grouped.splits["test"], OWN)) == 1
    titled = dataclasses.replace(two, template=Template("{title} {input}:"))
    assert [after["title"] for _, after in changed(titled, titled.splits["test"], OWN)] == ["mrs", "mrs"]


@pytest.mark.parametrize("texts", [["it ran", "they ran"], ["he ran", "they ran"]])
def test_fewer_than_two_records_have_no_rows(texts):
    none = task(texts, LABELS)

    def never(records):
        raise AssertionError("asked")

    assert counterfactual_rows(none, never, none.splits["test"], OWN) == []


def many(seed=0, n=60):
    rng = np.random.default_rng(seed)
    texts = [f"{rng.choice(['he', 'she'])} {number}" for number in rng.integers(1000, size=n)]
    return task(texts, [LABELS[i % 2] for i in range(n)])


def coin(text):
    """Hangs on the text, and in no way on who it speaks of."""
    return float(np.random.default_rng(zlib.crc32(text.encode())).uniform(0.05, 0.95))


def test_a_fair_model_is_not_distinguishable():
    rows = rows_of(many(), asks(lambda text: coin(text.split()[1])), many().splits["test"], OWN)
    assert all(row.value == 0 for row in rows.values())
    assert {row.note for (name, _), row in rows.items() if name != "swap_shift"} == {"not distinguishable from 0"}
    rows = rows_of(many(), asks(coin), many().splits["test"], OWN)  # moved by the words, but to no side
    assert rows["swap_lean", ""].note == "not distinguishable from 0"
    assert rows["swap_flips", ""].note == "away from 0" and rows["swap_shift", ""].ci95[0] > 0


def test_a_lean_to_one_label_shows_in_the_labels():
    """0.2 more "good" for she: the right answer is as much likelier in one label as it is less likely in the other."""
    rows = rows_of(many(), asks(lambda text: 0.6 if text.startswith("she") else 0.4), many().splits["test"], OWN)
    assert rows["swap_lean", "good"].value == pytest.approx(0.2)
    assert rows["swap_lean", "bad"].value == pytest.approx(-0.2)
    assert rows["swap_lean", ""].note == "not distinguishable from 0"
    assert rows["swap_shift", ""].value == pytest.approx(0.2)
    assert [rows["swap_flips", group].value for group in ("", *LABELS)] == [1.0] * 3
    assert [rows["swap_flips", group].n for group in ("", *LABELS)] == [60, 30, 30]
    assert [group for probe, group in rows if probe == "swap_shift"] == [""]


def test_leans_are_told_apart_from_none_at_their_rate():
    """Of 200 fair models about 190 are not told from it: bounds at four standard errors."""
    fair = 0
    for seed in range(200):
        one = many(seed, 40)
        noise = np.random.default_rng(seed)
        rows = rows_of(one, asks(lambda text, noise=noise: noise.uniform()), one.splits["test"], OWN)
        fair += rows["swap_lean", ""].note == "not distinguishable from 0"
    assert abs(fair / 200 - 0.94) < 4 * np.sqrt(0.05 * 0.95 / 200)


def test_a_model_made_worse_is_further_from_the_ideal():
    records = many().splits["test"]
    before = counterfactual_rows(many(), asks(lambda text: coin(text.split()[1])), records, OWN)
    worse = asks(lambda text: coin(text.split()[1]) * (0.3 if text.startswith("she") else 1))
    after = counterfactual_rows(many(), worse, records, OWN)
    found = {(each.probe, each.group): each for each in compare("before", before, "after", after)}
    for probe in ("flips", "shift"):
        assert found[f"swap_{probe}", ""].value > 0 and found[f"swap_{probe}", ""].note == "further from the ideal"
    assert found["swap_lean", "good"].value < 0 < found["swap_lean", "bad"].value
    flips_p = found["swap_flips", ""].flips_p
    assert flips_p is not None and flips_p < 0.01


# Other kinds of task and of model


def test_written_answers_have_flips_alone():
    written = task(["he ran", "she ran", "Mr Lee"], ["x", "y", "z"], kind="generation", options=None)
    said = lambda records: (["a" if r["input"] == "he ran" else " b\n" for r in records], None)  # noqa: E731
    (flips,) = counterfactual_rows(written, said, written.splits["test"], OWN)
    assert (flips.probe, flips.value, flips.n) == ("swap_flips", 2 / 3, 3)


def test_answers_are_compared_in_nfc():
    written = task(["he ran", "she ran"], ["x", "y"], kind="generation", options=None)
    said = lambda records: ([unicodedata.normalize(("NFC", "NFD")[i % 2], "é") for i in range(4)], None)  # noqa: E731
    (flips,) = counterfactual_rows(written, said, written.splits["test"], OWN)
    assert flips.value == 0


def test_a_regression_is_moved_by_its_number():
    numbers = task(["he ran", "she ran", "Mr Lee"], ["1", "2", "3"], "regression", None)
    said = {"he ran": "1.5", "she ran": "3", "Mr Lee": "two", "Mrs Lee": "2"}
    rows = counterfactual_rows(
        numbers, lambda records: ([said[r["input"]] for r in records], None), numbers.splits["test"], OWN
    )
    assert {row.probe: pytest.approx(row.value) for row in rows} == {"swap_shift": 1.0, "swap_lean": 1.0}


def test_several_labels_are_right_together():
    both = task(["he ran", "she ran"], ["bad, good", "none"], "multi_label")
    p_NO = np.array([[0.5, 0.5], [0.2, 0.1], [0.9, 0.8], [0.4, 0.3]])
    rows = rows_of(both, lambda records: (["none"] * 4, p_NO), both.splits["test"], OWN)
    changes = [0.9 * 0.8 - 0.5 * 0.5, 0.6 * 0.7 - 0.8 * 0.9]
    assert rows["swap_shift", ""].value == pytest.approx(np.mean(np.abs(changes)))
    assert rows["swap_lean", ""].value == pytest.approx((changes[0] - changes[1]) / 2)


TOKENIZER = byte_tokenizer()
SMALL = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, depth=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, max_len=64
)


def test_prompted_models_are_asked():
    params = init(SMALL, jax.random.key(0))
    engine, records = Engine(SMALL, params, TOKENIZER), FOUR.splits["test"]
    answers, probability_NO = ask_prompted(FOUR, engine)(records)
    assert probability_NO is not None
    np.testing.assert_allclose(probability_NO.sum(axis=1), 1)
    assert list(answers) == [LABELS[i] for i in probability_NO.argmax(axis=1)]
    assert ask_prompted(FOUR, engine, PromptConfig(extract="(.)"))(records)[1] is None
    rows = rows_of(FOUR, ask_prompted(FOUR, engine, PromptConfig(calibration="batch")), records, OWN)
    assert [row.n for row in rows.values()] == [4, 4, 3]


@pytest.mark.parametrize(("kind", "right"), [("classification", "good"), ("multi_label", "bad, good")])
def test_heads_are_asked(kind, right):
    config = dataclasses.replace(SMALL, labels=LABELS)
    params, headed = init(config, jax.random.key(1)), task(["he ran", "she ran"], [right, right], kind)
    records = headed.splits["test"]
    answers, probability_NO = ask_head(headed, config, params, TOKENIZER)(records)
    found = answer(headed, config, params, TOKENIZER, records)
    assert list(answers) == found.answers and probability_NO is not None
    logits_NC = found.scores_NC.astype(np.float64)
    softmax_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
    expected = softmax_NC if kind == "classification" else 1 / (1 + np.exp(-logits_NC))
    np.testing.assert_allclose(probability_NO, expected, rtol=1e-6)


def test_a_head_of_a_regression_has_numbers_alone():
    config = dataclasses.replace(SMALL, labels=("output",))
    numbers = task(["he ran", "she ran"], ["1", "2"], "regression", None)
    ask = ask_head(numbers, config, init(config, jax.random.key(2)), TOKENIZER)
    assert ask(numbers.splits["test"])[1] is None
    assert len(counterfactual_rows(numbers, ask, numbers.splits["test"], OWN)) == 2
