"""Who a model writes of: shares and distances by hand, models that lean on purpose, and how often chance looks so."""

import json
from functools import partial

import numpy as np
import pytest

from limbeck.evaluation.bias import generations
from limbeck.evaluation.bias import groups as groups_module
from limbeck.evaluation.bias import rows as rows_module
from limbeck.evaluation.bias.generations import PROMPTS, generate_texts, representation_rows
from limbeck.evaluation.bias.mentions import group_counts, load_group_words
from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.inference.requests import Generation
from limbeck.model.errors import UserError
from limbeck.model.tokenizer import byte_tokenizer
from limbeck.tasks.intervals import bootstrap

GENDER = {"gender": {"female": frozenset({"she", "زن"}), "male": frozenset({"he", "مرد"})}}
COLOURS = {"colour": {name: frozenset({name}) for name in ("red", "green", "blue")}}


class FakeModel:
    """Writes what `text(prompt, sample)` says."""

    tokenizer = byte_tokenizer()

    def __init__(self, text, stopped=True):
        self.text, self.stopped, self.asked = text, stopped, []

    def score(self, requests):
        raise AssertionError("nothing is scored here")

    def generate(self, requests):
        self.asked += requests
        prompts = [self.tokenizer.decode(request.prompt[1:]) for request in requests]
        texts = [self.text(prompt, request.sample) for prompt, request in zip(prompts, requests, strict=True)]
        return [Generation(text, (1,), -1.0, self.stopped) for text in texts]


def found(*args, **settings):
    return {(row.probe, row.group): row for row in representation_rows(*args, **settings)}


def drawn(rng, share, prompts=24, samples=10, spread=0.0):
    """Texts of one "she" or "he" each; `share` is how often it is "she", more or less so in each prompt."""
    p_P = np.clip(share + spread * rng.standard_normal(prompts), 0, 1)
    return [[" and she" if said else " and he" for said in rng.random(samples) < p] for p in p_P]


# The definitions


def test_rows_by_hand():
    """female 1 + 2 + 0 = 3, male 0 + 1 + 4 = 5."""
    texts = [["she went"], ["she, he", "زن"], ["he he", "nobody", "He and مرد"]]
    rows = found(texts, GENDER, {"gender/female": 10, "gender/male": 30, "more": 1})
    assert {key: row.value for key, row in rows.items()} == {
        ("generation_share", "gender/female"): pytest.approx(3 / 8),
        ("generation_share", "gender/male"): pytest.approx(5 / 8),
        ("generation_distance", "gender"): pytest.approx(1 / 8),
        ("generation_from_training", "gender"): pytest.approx(1 / 8),
    }
    assert [row.ideal for row in rows.values()] == [0.5, 0.5, 0.0, 0.0]
    assert all(row.n == 3 and row.note.endswith("; 8 mentions") for row in rows.values())
    assert all(row.ci95[0] <= row.value <= row.ci95[1] for row in rows.values())


def test_three_groups_by_hand():
    texts = [["red red red"], ["red green"], ["red"]]
    rows = found(texts, COLOURS, {"colour/red": 2, "colour/green": 2, "colour/blue": 0})
    shares = [rows["generation_share", f"colour/{name}"].value for name in ("red", "green", "blue")]
    assert shares == pytest.approx([5 / 6, 1 / 6, 0])
    assert rows["generation_distance", "colour"].value == pytest.approx(5 / 6 - 1 / 3)
    assert rows["generation_from_training", "colour"].value == pytest.approx(1 / 3)
    assert rows["generation_share", "colour/red"].ideal == pytest.approx(1 / 3)


def test_a_model_that_speaks_of_nobody_has_the_same_rows():
    some, none = (representation_rows([[text], [text]], GENDER, {"gender/female": 1, "gender/male": 3})
                  for text in ("she", "it"))  # fmt: skip
    assert [row.probe for row in some] == [row.probe for row in none]
    assert [row.value for row in none] == [0.5, 0.5, 0, 0]
    assert all(row.note.startswith("not distinguishable") and row.note.endswith("; 0 mentions") for row in none)
    json.dumps(to_json(none), allow_nan=False)


def test_what_has_no_rows():
    assert representation_rows([["she"]], GENDER) == []
    assert representation_rows([], GENDER) == []
    assert representation_rows([["she"]] * 2, {"gender": {"female": frozenset({"she"})}}) == []
    probes = [row.probe for row in representation_rows([["she"]] * 2, GENDER, {"gender/female": 0, "gender/male": 0})]
    assert "generation_from_training" not in probes
    with pytest.raises(UserError, match="no count of 'gender/male' among gender/female"):
        representation_rows([["she"]] * 2, GENDER, {"gender/female": 1})


# Models whose bias is known


def test_a_model_that_leans_is_found():
    rows = found(drawn(np.random.default_rng(0), 0.25), GENDER, {"gender/female": 25, "gender/male": 75})
    assert rows["generation_share", "gender/female"].note.startswith("away from 0.5: chance is up to 0.")
    assert rows["generation_share", "gender/female"].ci95[1] < 0.5 < rows["generation_share", "gender/male"].ci95[0]
    assert rows["generation_distance", "gender"].note.startswith("away from 0: equal groups")
    assert rows["generation_distance", "gender"].ci95[0] > 0.1
    assert rows["generation_from_training", "gender"].note.startswith("not distinguishable from 0: models with")
    swapped = found(drawn(np.random.default_rng(0), 0.25), GENDER, {"gender/female": 75, "gender/male": 25})
    assert swapped["generation_from_training", "gender"].note.startswith("away")


def test_a_few_mentions_that_agree_are_no_evidence():
    """Four "he" in four texts: every resample agrees, and so do one in eight models without bias."""
    texts = [["he"], ["he"], ["he"], ["he"], ["it"]]
    rows = found(texts, GENDER, {"gender/female": 1, "gender/male": 1})
    assert rows["generation_share", "gender/male"].value == 1
    for row in rows.values():
        assert row.note.startswith("not distinguishable"), row
        assert row.ideal is not None and row.ci95[0] <= row.ideal <= row.ci95[1]


def test_one_text_that_repeats_itself_is_one_mention_to_chance():
    rows = found([["she " * 50], *[["it"]] * 9], GENDER, {"gender/female": 1, "gender/male": 1})
    assert all(row.note.startswith("not distinguishable") for row in rows.values())


def test_a_model_made_worse_is_further_from_the_ideal():
    rng = np.random.default_rng(1)
    before, after = (
        representation_rows(drawn(rng, share, spread=0.1), GENDER, {"gender/female": 1, "gender/male": 1})
        for share in (0.5, 0.2)
    )
    for each in compare("before", before, "after", after):
        assert each.note == "further from the ideal", each
        assert (each.value < 0) == (each.group == "gender/female")


def test_rows_are_told_and_read_back():
    rows = representation_rows(drawn(np.random.default_rng(2), 0.4), GENDER, {"gender/female": 1, "gender/male": 1})
    again = from_json(json.loads(json.dumps(to_json(rows))))
    assert again == rows and all(each.value == 0 for each in compare("a", rows, "b", again))


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_chance_is_taken_for_bias_at_its_rate(monkeypatch, spread):
    """Of 400 models without a lean, whose prompts lean either way, about 20 are told from it; four standard errors."""
    for module in (rows_module, groups_module):
        monkeypatch.setattr(module, "bootstrap", lambda *_, **__: (0.0, 1.0))  # the verdict does not hang on it
    monkeypatch.setattr(generations, "_DRAWS", 199)
    rng = np.random.default_rng(3)
    away, above = np.zeros(4), 0
    for _ in range(400):
        rows = representation_rows(drawn(rng, 0.5, spread=spread), GENDER, {"gender/female": 1, "gender/male": 1})
        away += ["away" in row.note for row in rows]
        above += rows[2].value > 0
    assert above > 340  # the distance itself is above 0 nearly always
    np.testing.assert_array_less(np.abs(away / 400 - 0.05), 4 * np.sqrt(0.05 * 0.95 / 400))


def test_intervals_of_shares_cover_at_their_rate(monkeypatch):
    """With 24 prompts the bootstrap's interval covers 93 to 94 %; of 120 models, four standard errors."""
    for module in (rows_module, groups_module):
        monkeypatch.setattr(module, "bootstrap", partial(bootstrap, n=400))
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(120):
        low, high = found(drawn(rng, 0.3, spread=0.1), GENDER)["generation_share", "gender/female"].ci95
        covered += low <= 0.3 <= high
    assert abs(covered / 120 - 0.935) < 4 * np.sqrt(0.065 * 0.935 / 120)


# What is asked


def test_the_prompts_speak_of_nobody():
    counts = group_counts(PROMPTS, load_group_words())
    assert len(set(PROMPTS)) == len(PROMPTS) >= 20 and not any(row.any() for row in counts.values())
    assert all(prompt == prompt.strip() for prompt in PROMPTS)


def test_texts_are_of_their_prompts():
    model = FakeModel(lambda prompt, sample: f" {prompt}/{sample}")
    prompts = ["آن شخص", "The she", "c"]
    texts = generate_texts(model, prompts, samples=200, max_new_tokens=7, temperature=0.5, seed=9)
    assert texts == [[f" {prompt}/{sample}" for sample in range(200)] for prompt in prompts]
    assert len({(request.prompt, request.sample) for request in model.asked}) == 600
    sampling = {request.sampling for request in model.asked}
    assert [(s.max_new_tokens, s.temperature, s.seed) for s in sampling] == [(7, 0.5, 9)]
    with pytest.raises(UserError, match="'a' stands twice"):
        generate_texts(model, ["a", "b", "a"])


@pytest.mark.parametrize(("text", "kept"), [(" and then he", " and then"), ("he", "he"), ("那个人", "那个人")])
def test_a_word_that_is_cut_off_is_left_out(text, kept):
    cut, whole = (generate_texts(FakeModel(lambda *_: text, stopped), ["a"], samples=1) for stopped in (False, True))
    assert cut == [[kept]] and whole == [[text]]


def test_a_model_is_asked_and_the_words_of_the_prompt_do_not_count():
    model = FakeModel(lambda prompt, sample: " met him." if sample % 4 else " met her.")
    words = {"gender": {"female": frozenset({"her", "she"}), "male": frozenset({"him"})}}
    rows = representation_rows(generate_texts(model, ["She", "When she", "Then she"], samples=8), words)
    assert rows[0].value == pytest.approx(0.25) and rows[0].n == 3 and len(model.asked) == 24
    again = representation_rows(generate_texts(model), words, {"gender/female": 1, "gender/male": 3})
    assert again[-1].probe == "generation_from_training" and again[-1].value == 0 and again[-1].n == len(PROMPTS)
