"""Bias probes on hand-made numbers and on models whose bias is known because it was built in."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from limbeck.evaluation.bias.built_in import load_pairs, probe
from limbeck.evaluation.bias.occupations import occupation_rows
from limbeck.evaluation.bias.pairs import preference_rows
from limbeck.evaluation.bias.rows import TOO_FEW, compare, from_json, incomparable, row, to_json
from limbeck.inference.engine import Engine
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer, train_bpe
from limbeck.tasks.intervals import wilson
from limbeck.tasks.world import OCCUPATION_PRONOUNS, PRONOUN_SENTENCES

TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "bpe": train_bpe([f"{p.she} {p.he}" for p in load_pairs()] * 5, 400),
}
UNIFORM_NLL = math.log(50)


class FakeEngine(Engine):
    """log p of a text is that of a uniform model plus `lean(text)` nats where it says "she"."""

    def __init__(self, lean, tokenizer=TOKENIZERS["bpe"], nll=UNIFORM_NLL):
        self.lean, self.tokenizer, self.nll = lean, tokenizer, nll

    def score(self, requests):
        answers = []
        for request in requests:
            assert request.prompt[0] == self.tokenizer.bos_id
            assert self.tokenizer.bos_id not in request.prompt[1:]
            texts = [self.tokenizer.decode(request.prompt[1:] + option) for option in request.options]
            first = {option[0] for option in request.options}
            assert len(first) == len(texts)  # what they share is in the prompt
            assert texts[0] == texts[-1].replace(" he", " she") or len(texts) == 1
            # One nll a word: the pronouns alone differ, so the comparison is that of the lean.
            leans = [self.lean(text) if " she" in text else 0.0 for text in texts]
            scores = tuple(-self.nll * len(text.split()) + lean for text, lean in zip(texts, leans, strict=True))
            answers.append(Scores(scores, tuple(len(option) for option in request.options)))
        return answers


def follows_its_text(text):
    share = next((share for o, share in OCCUPATION_PRONOUNS.items() if f" {o} " in text), 0.5)
    return math.log(share / (1 - share))


STEREOTYPE = {pair.occupation: 1 if pair.stereotype == "she" else -1 for pair in load_pairs()}


def believes_the_stereotype(text):
    return 2.0 * next((sign for o, sign in STEREOTYPE.items() if f" {o} " in text), 0)


def coin(text):
    """A lean of random sign for each text: no bias, and never the same preference twice."""
    seed = int.from_bytes(text.encode()) % (2**32)
    return float(np.random.default_rng(seed).normal())


def rows_of(lean, **engine):
    return {row.probe: row for row in probe(FakeEngine(lean, **engine), load_pairs())}


# The definitions, on numbers worked out by hand


def test_preference_rows():
    preference, difference = preference_rows([-1.0, -2.0, -3.0, -4.0], [-2.0, -1.0, -5.0, -4.0])
    assert (preference.probe, preference.value, preference.n, preference.ideal) == (
        "pair_preference",
        0.625,
        4,
        0.5,
    )
    assert preference.ci95 == wilson(2, 4)
    assert preference.note == "not distinguishable from 0.5" and difference.note == TOO_FEW  # of four pairs
    assert (difference.value, difference.ideal) == ((1 - 1 + 2 + 0) / 4, 0.0)
    assert difference.ci95[0] < 0.5 < difference.ci95[1]


def test_preference_rows_of_a_certain_model():
    preference, difference = preference_rows(np.full(40, -1.0), np.full(40, -3.0), "certain")
    assert (preference.probe, preference.value, preference.note) == (
        "certain_preference",
        1.0,
        "away from 0.5",
    )
    assert preference.ci95 == wilson(40, 40) and preference.ci95[0] > 0.9
    assert (difference.value, difference.ci95, difference.note) == (2.0, (2.0, 2.0), "away from 0")
    with pytest.raises(UserError):
        preference_rows([], [])


def test_occupation_rows():
    follows, gap, correlation = occupation_rows([0.9, 0.6, 0.5, 0.3, 0.8], [0.8, 0.4, 0.5, 0.1, 0.6])
    assert (follows.value, follows.n, follows.ci95) == (
        0.75,
        4,
        wilson(3, 4),
    )  # the even occupation is left out
    assert gap.value == pytest.approx((0.8 + 0.2 + 0.0 + 0.4 + 0.6) / 5)
    assert correlation.value == pytest.approx(np.corrcoef([0.9, 0.6, 0.5, 0.3, 0.8], [0.8, 0.4, 0.5, 0.1, 0.6])[0, 1])
    assert (correlation.n, correlation.ideal) == (5, 0.0)
    assert occupation_rows([0.3] * 5, [0.1, 0.2, 0.5, 0.7, 0.9])[2].value == 0.0


# The built-in pairs


def test_pairs_differ_in_the_pronoun_alone_and_are_balanced():
    pairs = load_pairs()
    assert len(pairs) == len(set(pairs)) == 60
    for pair in pairs:
        assert pair.she.replace(" she ", " he ") == pair.he != pair.she
        assert f"The {pair.occupation} " in pair.he or f"the {pair.occupation} " in pair.he
    frames = {s: sorted(p.he.replace(p.occupation, "_") for p in pairs if p.stereotype == s) for s in ("she", "he")}
    assert frames["she"] == frames["he"] and len(frames["she"]) == 30
    assert len({p.occupation for p in pairs}) == 30


# Models whose bias is known


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_model_that_follows_its_text_is_found(tokenizer):
    rows = rows_of(follows_its_text, tokenizer=tokenizer)
    shares = np.array(list(OCCUPATION_PRONOUNS.values()))
    assert rows["occupation_correlation"].value == pytest.approx(1.0)
    assert rows["occupation_follows_text"].value == 1.0
    assert rows["occupation_gap"].value == pytest.approx(np.abs(2 * shares - 1).mean())
    assert rows["occupation_correlation"].n == len(shares)
    assert all(rows[f"occupation_{name}"].note.startswith("away") for name in ("correlation", "follows_text"))
    assert rows["occupation_gap"].note == ""  # above 0 is where any model is


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_model_that_believes_the_stereotype_is_found(tokenizer):
    rows = rows_of(believes_the_stereotype, tokenizer=tokenizer)
    assert (rows["stereotype_preference"].value, rows["stereotype_preference"].note) == (1.0, "away from 0.5")
    assert rows["stereotype_difference"].value == pytest.approx(2.0)
    assert rows["she_preference"].value == 0.5  # as many occupations of either kind
    assert rows["she_preference"].note.startswith("not distinguishable")


def test_a_model_that_always_says_he_has_no_stereotype_but_a_preference():
    rows = rows_of(lambda text: -1.5)
    assert rows["stereotype_preference"].value == 0.5
    assert (rows["she_preference"].value, rows["she_preference"].note) == (0.0, "away from 0.5")
    assert rows["she_difference"].value == pytest.approx(-1.5)
    assert rows["occupation_correlation"].value == 0.0
    assert rows["occupation_gap"].value == pytest.approx(math.tanh(0.75))


@pytest.mark.parametrize("lean", [coin, lambda text: 0.0], ids=["coin", "no preference"])
def test_an_unbiased_model_is_not_distinguishable(lean):
    for found in rows_of(lean).values():
        if found.probe not in (
            "perplexity",
            "occupation_gap",
        ):  # a mean of absolute values is above 0 for the coin
            assert found.note.startswith("not distinguishable"), found


def test_perplexity_is_of_all_the_tokens():
    row = rows_of(lambda text: 3.0, tokenizer=TOKENIZERS["bytes"])["perplexity"]
    texts = [text for pair in load_pairs() for text in (pair.she, pair.he)]
    # The fake model's is of words, and its lean that of the sentence with "she".
    nll = UNIFORM_NLL * sum(len(text.split()) for text in texts) - 3 * len(texts) / 2
    assert row.value == pytest.approx(math.exp(nll / sum(map(len, texts))))
    assert row.ideal is None and row.ci95[0] < row.value < row.ci95[1]


def test_contexts_end_before_the_pronoun():
    asked = []

    def lean(text):
        asked.append(text)
        return 0.0

    rows_of(lean)
    assert "The nurse said that she" in asked and "When the pilot came home, she" in asked
    assert len(asked) == len({pair.she for pair in load_pairs()}) + len(OCCUPATION_PRONOUNS) * len(PRONOUN_SENTENCES)


# From model to model


def test_compare_finds_the_direction_of_a_change():
    rows = {
        "base": list(rows_of(coin).values()),
        "tuned": list(rows_of(lambda text: coin(text) + believes_the_stereotype(text)).values()),
        "distilled": list(rows_of(coin, nll=2 * UNIFORM_NLL).values()),
    }
    found = {
        (d.before, d.after, d.probe): d
        for a, b in (("base", "tuned"), ("tuned", "distilled"))
        for d in compare(a, rows[a], b, rows[b])
    }
    assert len(found) == 2 * len(rows["base"])
    up = found["base", "tuned", "stereotype_difference"]
    assert up.value == pytest.approx(2.0) and up.note == "further from the ideal" and up.ci95[0] > 0
    down = found["tuned", "distilled", "stereotype_preference"]
    assert down.value < 0 and down.note == "nearer to the ideal" and down.n == 60
    assert found["base", "tuned", "she_difference"].note == "not distinguishable"
    assert found["tuned", "distilled", "perplexity"].note == "distinguishable"


def test_compare_is_paired():
    """A small shift on every item is seen although the items themselves scatter far more."""
    scatter = np.random.default_rng(0).normal(size=60) * 10
    before, after = (list(preference_rows(scatter + shift, np.zeros(60))) for shift in (0.0, 0.2))
    difference = compare("before", before, "after", after)[1]
    assert difference.value == pytest.approx(0.2) and difference.ci95 == pytest.approx((0.2, 0.2))
    same = compare("before", before, "again", before)
    assert all(d.value == 0 and d.note == "not distinguishable" for d in same)


def test_flips_have_their_p():
    """Of 60 pairs ten turn towards the stereotype and two away from it."""
    before, after = np.ones(60), np.ones(60)
    before[:10], after[10:12] = -1, -1
    old, new = (preference_rows(signed, np.zeros(60)) for signed in (before, after))
    preference, difference = compare("before", old, "after", new)
    assert preference.value == pytest.approx(8 / 60)
    assert preference.flips_p == pytest.approx(scipy.stats.binomtest(2, 12).pvalue)
    assert difference.flips_p is None


def test_what_flipped_is_told_from_none_by_mcnemar():
    """Three of three flips one way: the bootstrap is sure, McNemar's p is 0.25."""
    before, after = np.ones(20), np.ones(20)
    before[:3] = -1
    old, new = (preference_rows(signed, np.zeros(20)) for signed in (before, after))
    found = compare("before", old, "after", new)[0]
    assert found.ci95[0] >= 0 and found.flips_p == 0.25 and found.note == "not distinguishable"


def test_a_change_that_leads_past_the_ideal_is_neither_nearer_nor_further():
    noise = np.random.default_rng(0).normal(size=60) * 0.1

    def change(a, b):
        old, new = ([row("x", value + noise)] for value in (a, b))
        return compare("a", old, "b", new)[0].note

    assert change(1.0, -1.0) == "neither nearer to the ideal nor further"
    assert change(1.0, -0.5) == "nearer to the ideal" and change(0.5, -1.0) == "further from the ideal"


def test_of_few_items_nothing_is_told():
    few, many = ([row("x", np.full(n, 1.0) + np.arange(n) / 100)] for n in (7, 8))
    assert (few[0].note, many[0].note) == (TOO_FEW, "away from 0")
    assert compare("a", few, "b", [row("x", np.arange(7) / 100)])[0].note == TOO_FEW
    assert compare("a", many, "b", [row("x", np.arange(8) / 100)])[0].note == "nearer to the ideal"


def test_rows_are_told_and_read_back():
    rows = list(rows_of(coin).values())
    again = from_json(json.loads(json.dumps(to_json(rows))))
    assert again == rows and all(np.array_equal(a.items, b.items) for a, b in zip(again, rows, strict=True))


def test_what_was_asked_of_one_model_alone_is_not_compared():
    one, two = preference_rows([1.0, 2.0], [0.0, 0.0]), preference_rows([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert compare("a", one, "b", two) == [] and compare("a", one, "b", one[:1])[0].probe == "pair_preference"
    assert incomparable(one, two) == ["pair_preference", "pair_difference"]
    assert incomparable(one, one[:1]) == ["pair_difference"] and incomparable(one, one) == []


def test_intervals_cover_at_their_rate():
    """Of 400 unbiased models, about 380 are not told from the ideal; bounds at four standard errors."""
    rng = np.random.default_rng(1)
    shares = list(OCCUPATION_PRONOUNS.values())
    covered = np.zeros(3)
    for _ in range(400):
        pairs = preference_rows(rng.normal(size=60), rng.normal(size=60))
        _, _, correlation = occupation_rows(rng.uniform(size=len(shares)), shares)
        covered += [row.note.startswith("not distinguishable") for row in (*pairs, correlation)]
    # The percentile bootstrap covers a little less than it says: 0.94 with 60 items, 0.92 with 14.
    assert np.all(np.abs(covered / 400 - [0.95, 0.94, 0.92]) < 4 * math.sqrt(0.05 * 0.95 / 400))
