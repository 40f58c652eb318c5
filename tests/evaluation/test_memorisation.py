"""Extraction on models that know their texts because they were told them, and on numbers worked out by hand."""


import numpy as np
import pytest

from limbeck.evaluation import extraction as module
from limbeck.evaluation.bias.rows import compare, from_json, to_json
from limbeck.evaluation.extraction import extraction, extraction_rows, occurrences
from limbeck.inference.engine import Engine
from limbeck.inference.requests import Scores
from limbeck.model.errors import UserError
from limbeck.model.pretrained import load_pretrained
from limbeck.model.tokenizer import byte_tokenizer, load_tokenizer, train_bpe
from limbeck.tasks.intervals import wilson
from limbeck.tasks.texts import read_texts

BYTES = byte_tokenizer()
HALF = {"prefix": 4, "length": 4}
RTL = ["می‌خواهم کتابی بخرم", "ذهب الولد إلى المدرسة", "می‌خواهم کتابی بخوانم"]


class Reciter:
    """Goes on with a text that it knows, and otherwise with what `guesses` finds likely."""

    def __init__(self, known, tokenizer=BYTES, guesses=lambda option: False):
        self.tokenizer, self.guesses, self.asked = tokenizer, guesses, 0
        self.known = [tuple(tokenizer.encode(text)) for text in known]

    def score(self, requests):
        self.asked += len(requests)
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        assert request.prompt[0] == self.tokenizer.bos_id and len(request.options) == 1
        whole = request.prompt[1:] + request.options[0]
        greedy = any(own[: len(whole)] == whole for own in self.known) or self.guesses(request.options[0])
        return Scores((-1.0,), (len(request.options[0]),), (greedy,))

    def generate(self, requests):
        raise AssertionError("one pass tells what greedy writing would give")


def found(model, training, held_out, counts=None):
    rows = extraction_rows(model, training, held_out, counts, **HALF)
    return {(row.probe, row.group): row for row in rows}


TRAINING = [f"{i:04} and so on" for i in range(50)]
HELD_OUT = [f"{i:04} and so on" for i in range(50, 90)]


def test_a_model_that_knows_its_texts_is_found_at_1_and_the_control_at_0():
    rows = found(Reciter(TRAINING), TRAINING, HELD_OUT)
    training, held_out, excess = rows.values()
    assert list(rows) == [("extracted", "training"), ("extracted", "held out"), ("extracted_excess", "")]
    assert (training.value, training.n, training.ci95, training.ideal) == (1.0, 50, wilson(50, 50), None)
    assert (held_out.value, held_out.n, held_out.ci95, held_out.note) == (0.0, 40, wilson(0, 40), "")
    assert (excess.value, excess.n, excess.ideal, excess.note) == (1.0, 90, 0.0, "away from 0")
    assert 0.85 < excess.ci95[0] < excess.ci95[1] == 1


def test_a_model_that_knows_nothing_is_found_at_0_without_certainty():
    training, _, excess = found(Reciter([]), TRAINING, HELD_OUT).values()
    assert training.value == excess.value == 0
    assert excess.note == "not distinguishable from 0"
    assert excess.ci95[0] < -0.05 and excess.ci95[1] > 0.05


def test_what_is_predictable_is_no_memory():
    training, held_out, excess = found(Reciter([], guesses=lambda option: True), TRAINING, HELD_OUT).values()
    assert training.value == held_out.value == 1
    assert (excess.value, excess.note) == (0.0, "not distinguishable from 0")


def test_one_wrong_token_is_not_word_for_word():
    assert extraction(Reciter(["abcdefgh"]), ["abcdefgX", "abcdefgh", "Xbcdefgh"], **HALF).extracted_N.tolist() == [
        False, True, False,
    ]  # fmt: skip
    assert extraction(Reciter(["abcdefgh"]), ["abcdefghX"], **HALF).extracted_N.tolist() == [True]  # after the window


def test_short_texts_are_left_out_and_those_that_begin_alike_are_one_item():
    model = Reciter(["abcdefgh"])
    result = extraction(model, ["short", "abcdefgh!", "", "abcdefgh?", "1234567", "12345678"], **HALF)
    assert result.extracted_N.tolist() == [True, False]
    assert result.first_N.tolist() == [1, 5]
    assert (result.left_out, model.asked) == (3, 2)


def test_copies_of_a_text_do_not_make_it_more_certain():
    """One text that stands eight times is one draw of what the model knows, in either group and in each bucket."""
    once = found(Reciter(TRAINING[:2]), TRAINING[:6], HELD_OUT, [8, 8, 8, 1, 1, 1])
    copied = [text for text, copies in zip(TRAINING, [8, 8, 8, 1, 1, 1], strict=False) for _ in range(copies)]
    again = found(Reciter(TRAINING[:2]), copied, [*HELD_OUT, *HELD_OUT], occurrences(BYTES, copied, copied, **HALF))
    assert {key: (row.n, row.value, row.ci95) for key, row in again.items()} == {
        key: (row.n, row.value, row.ci95) for key, row in once.items()
    }
    assert again["extracted_by_copies", "2-10"].n == 3 and again["extracted", "training"].n == 6


def test_texts_that_are_asked_are_counted_in_the_whole_training_set():
    corpus = [TRAINING[0]] * 3 + TRAINING[1:10]
    counts = occurrences(BYTES, TRAINING[:3], corpus, **HALF)
    assert counts == [3, 1, 1]
    assert found(Reciter([]), TRAINING[:3], HELD_OUT, counts)["extracted_by_copies", "1"].n == 2


@pytest.mark.parametrize("tokenizer", [BYTES, train_bpe(RTL * 5, 290)], ids=["bytes", "bpe"])
def test_right_to_left_text_with_joiners(tokenizer):
    """Two of the texts begin alike: the second half alone tells them apart."""
    windows = [tokenizer.encode(text) for text in RTL]
    alike = next(i for i, (a, b) in enumerate(zip(windows[0], windows[2], strict=False)) if a != b)
    half = {"prefix": alike, "length": 2}
    assert extraction(Reciter(RTL[:1], tokenizer), RTL, **half).extracted_N.tolist() == [True, False, False]
    assert occurrences(tokenizer, RTL, [*RTL, f"{RTL[0]}، {RTL[1]}"], **half)[::2] == [2, 1]


def test_models_are_compared_text_by_text():
    before, after = (
        extraction_rows(Reciter(TRAINING[:known]), TRAINING, HELD_OUT, [1] * 50, **HALF) for known in (10, 40)
    )
    training, held_out, excess, copies = compare("before", before, "after", after)
    assert training.value == pytest.approx(0.6) == copies.value
    assert training.flips_p == pytest.approx(2**-29)
    assert (held_out.value, held_out.note) == (0.0, "not distinguishable")
    assert excess.value == pytest.approx(0.6) and 0.4 < excess.ci95[0] < 0.6 < excess.ci95[1] < 0.8
    stored = from_json(to_json(before))
    assert stored == before and np.array_equal(stored[2].items, before[2].items)
    assert compare("before", stored, "after", after)[2] == excess


# How many copies there are


def test_shares_by_the_number_of_copies():
    copies = [1] * 6 + [2] * 3 + [10] * 2 + [11] * 4 + [500]
    known = TRAINING[:1] + TRAINING[6:9] + TRAINING[11:16]
    rows = found(Reciter(known), TRAINING[:16], HELD_OUT, copies)
    told = {group: (row.value, row.n) for (probe, group), row in rows.items() if probe == "extracted_by_copies"}
    assert told == {"1": (1 / 6, 6), "2-10": (3 / 5, 5), "more than 10": (1.0, 5)}
    assert rows["extracted_by_copies", "1"].ci95 == wilson(1, 6)


def test_texts_that_are_too_short_have_no_copies_and_a_single_text_no_row():
    rows = found(Reciter(["abcdefgh"]), ["short", "abcdefgh", "12345678", "87654321"], HELD_OUT, [0, 3, 1, 1])
    told = {group: row.n for (probe, group), row in rows.items() if probe == "extracted_by_copies"}
    assert told == {"1": 2}


def test_a_document_counts_once_however_often_it_holds_a_string():
    corpus = ["abcdefgh", "xxabcdefghyy", "abcdefghabcdefgh", "abcdefg", "", "ABCDEFGH"]
    assert occurrences(BYTES, ["abcdefgh and more", "abc", "12345678"], corpus, **HALF) == [3, 0, 0]


@pytest.mark.parametrize("collide", [False, True], ids=["hashed", "every hash the same"])
def test_counts_are_those_of_a_slow_search(monkeypatch, collide):
    """Of two letters alone, so that strings come again and again; also where the hash tells nothing apart."""
    if collide:
        monkeypatch.setattr(module, "_hashes", lambda ids_T, size: np.zeros(max(0, len(ids_T) - size + 1), np.uint64))
    rng = np.random.default_rng(0)
    corpus = ["".join(rng.choice(["a", "b"], rng.integers(0, 60))) for _ in range(2500)]
    slow = [sum(text[:8] in document for document in corpus) if len(text) >= 8 else 0 for text in corpus[:60]]
    assert occurrences(BYTES, corpus[:60], corpus, **HALF) == slow
    assert max(slow) > 100 and min(slow) == 0


def test_hashes_depend_on_the_run_and_not_on_its_place():
    ids_T = np.random.default_rng(0).integers(0, 50_000, 500)
    ids_T[300:340] = ids_T[7:47]
    hashes = module._hashes(ids_T, 40)
    assert len(hashes) == 461 and hashes[7] == hashes[300] == module._hashes(ids_T[7:47], 40)[0]
    assert len(set(hashes.tolist())) == 460
    assert len(module._hashes(ids_T[:39], 40)) == 0


# Mistakes


@pytest.mark.parametrize(
    ("texts", "settings", "says"),
    [
        (["short", "shorter"], {}, "none of 2 texts has 64 tokens"),
        ([], {}, "none of 0 texts"),
        (TRAINING, {"prefix": 0}, "prefix=0: must be at least 1"),
        (TRAINING, {"length": -1}, "length=-1: must be at least 1"),
    ],
)
def test_mistakes_are_one_line(texts, settings, says):
    with pytest.raises(UserError, match=says):
        extraction(Reciter([]), texts, **settings)


def test_a_training_text_that_was_never_trained_on_is_a_mistake():
    with pytest.raises(UserError, match="training text 3 stands in 0 training examples"):
        extraction_rows(Reciter([]), ["short", *TRAINING[:2]], HELD_OUT, [0, 1, 0], **HALF)
    with pytest.raises(ValueError):
        extraction_rows(Reciter([]), TRAINING, HELD_OUT, [1], **HALF)


@pytest.mark.shared
def test_a_small_published_model_knows_no_story_by_heart(shared_data):
    """260,000 parameters cannot hold their training text; what they get right is as likely in stories kept back."""
    model = load_pretrained(shared_data / "stories260k" / "stories260K.bin")
    engine = Engine(model.config, model.params, load_tokenizer(shared_data / "stories260k" / "tok512.bin"))
    training, held_out = (
        [document.text for document in read_texts(shared_data / "tinystories", split=split).documents[:100]]
        for split in ("train", "validation")
    )
    long = {row.group: row.value for row in extraction_rows(engine, training, held_out)}
    assert long == {"training": 0, "held out": 0, "": 0}
    short = extraction_rows(engine, training, held_out, prefix=32, length=4)
    assert short[0].value > 0 and short[1].value > 0 and short[2].note == "not distinguishable from 0"
