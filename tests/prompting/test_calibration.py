"""Calibration: by hand, and by what it must take off and must leave."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.model.errors import UserError
from limbeck.prompting.calibration import CONTENT_FREE, batch, contextual, domain_texts
from limbeck.prompting.scores import best, log_probabilities
from limbeck.tasks.task import Task
from limbeck.tasks.template import Template

SCORES = arrays(np.float64, (5, 3), elements=st.floats(-40, 0))
BIAS = arrays(np.float64, (3,), elements=st.floats(-10, 10))
BLANK = arrays(np.float64, (1, 3), elements=st.floats(-10, 0))
SHIFT = arrays(np.float64, (5, 1), elements=st.floats(-10, 10))


def test_contextual_by_hand() -> None:
    """Zhao et al.: 0.6 to 0.4 becomes a tie where nothing at all gets 0.6 to 0.4, and turns where it gets 0.75."""
    p_NO = [[0.6, 0.4], [0.9, 0.1]]
    np.testing.assert_allclose(np.exp(contextual(np.log(p_NO), np.log([[0.6, 0.4]])))[0], [0.5, 0.5])
    turned = np.exp(contextual(np.log(p_NO), np.log([[0.75, 0.25]])))
    np.testing.assert_allclose(turned, [[0.8 / 2.4, 1.6 / 2.4], [1.2 / 1.6, 0.4 / 1.6]])
    several = np.exp(contextual(np.log(p_NO), np.log([[0.9, 0.1], [0.7, 0.3], [0.65, 0.35]])))
    np.testing.assert_allclose(several, turned)  # the mean of probabilities, not of their logarithms


def test_batch_by_hand() -> None:
    p_NO = np.log([[0.9, 0.1], [0.6, 0.4]])
    root = math.sqrt(0.9 * 0.6), math.sqrt(0.1 * 0.4)
    raw = np.array([[0.9 / root[0], 0.1 / root[1]], [0.6 / root[0], 0.4 / root[1]]])
    np.testing.assert_allclose(np.exp(batch(p_NO)), raw / raw.sum(axis=1, keepdims=True))
    assert best(p_NO).tolist() == [0, 0]
    assert best(batch(p_NO)).tolist() == [0, 1]


@given(SCORES, st.integers(1, 4), st.floats(-2000, 0))
def test_a_blank_that_prefers_nothing_changes_nothing(score_NO, blanks, level) -> None:
    calibrated = contextual(score_NO, np.full((blanks, 3), level))
    np.testing.assert_allclose(calibrated, log_probabilities(score_NO), atol=1e-9)


@given(SCORES, SHIFT)
def test_a_batch_that_prefers_nothing_on_the_whole_is_left_alone(score_NO, shift_N1) -> None:
    balanced = score_NO - score_NO.mean(axis=0)
    np.testing.assert_allclose(batch(balanced + shift_N1), log_probabilities(balanced), atol=1e-9)


@given(SCORES, BLANK, BIAS, st.integers(1, 4))
def test_a_bias_that_the_blanks_show_is_taken_off(score_NO, blank_1O, bias_O, blanks) -> None:
    plain = contextual(score_NO, np.repeat(blank_1O, blanks, axis=0))
    biased = contextual(score_NO + bias_O, np.repeat(blank_1O + bias_O, blanks, axis=0))
    np.testing.assert_allclose(biased, plain, atol=1e-9)


@given(SCORES, BIAS)
def test_a_bias_in_every_record_is_taken_off_by_the_batch(score_NO, bias_O) -> None:
    np.testing.assert_allclose(batch(score_NO + bias_O), batch(score_NO), atol=1e-9)


@given(SCORES, arrays(np.float64, (4, 3), elements=st.floats(-40, 0)), SHIFT)
def test_what_is_calibrated_sums_to_one_whatever_its_scale(score_NO, blank_MO, shift_N1) -> None:
    for calibrate in (lambda x: contextual(x, blank_MO), batch):
        np.testing.assert_allclose(np.exp(calibrate(score_NO)).sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(calibrate(score_NO + shift_N1), calibrate(score_NO), atol=1e-9)
    of_any_scale = contextual(score_NO, blank_MO + shift_N1[:4])
    np.testing.assert_allclose(of_any_scale, contextual(score_NO, blank_MO), atol=1e-9)


@given(
    SCORES,
    arrays(np.float64, (4, 3), elements=st.floats(-40, 0)),
    st.permutations(range(5)),
    st.permutations(range(3)),
    st.permutations(range(4)),
)
def test_order_does_not_matter(score_NO, blank_MO, records, options, blanks) -> None:
    moved = np.ix_(records, options)
    other = contextual(score_NO[moved], blank_MO[np.ix_(blanks, options)])
    np.testing.assert_allclose(other, contextual(score_NO, blank_MO)[moved], atol=1e-9)
    np.testing.assert_allclose(batch(score_NO[moved]), batch(score_NO)[moved], atol=1e-9)


def test_contextual_answers_of_a_subset_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    score_NO, blank_MO = rng.normal(size=(6, 3)), rng.normal(size=(3, 3))
    whole = contextual(score_NO, blank_MO)
    for i in range(6):
        np.testing.assert_array_equal(contextual(score_NO[i : i + 1], blank_MO), whole[i : i + 1])


def test_no_probability_is_too_small() -> None:
    far = contextual([[-3000.0, -2000.0]], [[-5000.0, -4000.0], [-5000.0, -4000.0]])
    np.testing.assert_allclose(np.exp(far), [[0.5, 0.5]])
    half = 1 / (1 + math.exp(-0.5))  # each is half a nat from the mean of the two
    np.testing.assert_allclose(
        np.exp(batch([[-3000.0, 0.0], [-3001.0, 0.0]])), [[half, 1 - half], [1 - half, half]], rtol=1e-9
    )


def test_a_batch_of_one_and_no_blanks_are_refused() -> None:
    with pytest.raises(UserError, match="'batch' of 1 record"):
        batch([[-1.0, -2.0]])
    assert batch(np.zeros((0, 2))).shape == (0, 2)
    with pytest.raises(ValueError, match="without blanks"):
        contextual([[-1.0, -2.0]], np.zeros((0, 2)))
    with pytest.raises(ValueError, match="not finite"):
        contextual([[-1.0, math.nan]], [[-1.0, -1.0]])


TRAIN = (
    {"id": "1", "input": "یک سیب سرخ", "extra": "ripe", "output": "good"},
    {"id": "2", "input": "سیب", "extra": "  over ripe\n", "output": "bad"},
)
TEST = ({"id": "3", "input": "unseen words", "extra": "never", "output": "bad"},)
TASK = Task("fruit", {"train": TRAIN, "test": TEST}, Template("{input} {extra} {input}:"), ("good", "bad"))


def test_domain_texts_are_words_of_the_training_queries_as_often_as_there() -> None:
    texts = domain_texts(TASK, 3000, seed=0)
    assert len(texts) == 3000
    assert {len(text.split(" ")) for text in texts} == {2}  # 3 + 1 words in one field, 1 + 2 in the other: 1.75
    counts = Counter(word for text in texts for word in text.split(" "))
    assert set(counts) == {"یک", "سیب", "سرخ", "ripe", "over"}
    for word, share in {"یک": 1, "سیب": 2, "سرخ": 1, "ripe": 2, "over": 1}.items():
        assert abs(counts[word] / 6000 - share / 7) < 0.025, word


def test_domain_texts_hang_on_the_seed_and_not_on_answers() -> None:
    assert domain_texts(TASK, 9, 0) == domain_texts(TASK, 20, 0)[:9] != domain_texts(TASK, 9, 1)
    blind = tuple({**record, "output": "good"} for record in TRAIN)
    assert domain_texts(dataclasses.replace(TASK, splits={"train": blind, "test": TEST}), 9, 0) == domain_texts(
        TASK, 9, 0
    )


def test_a_domain_without_words_is_refused() -> None:
    empty = dataclasses.replace(TASK, splits={"train": ({**TRAIN[0], "input": "", "extra": " "},), "test": TEST})
    with pytest.raises(UserError, match="task 'fruit': no words"):
        domain_texts(empty, 3, 0)


def test_content_free_texts_leave_a_prompt_that_ends_in_no_white_space() -> None:
    assert CONTENT_FREE == ("N/A", "[MASK]", "")
    for text in CONTENT_FREE:
        prompt = TASK.query({"id": "blank", "input": text, "extra": text})
        assert prompt == prompt.rstrip() and "lemon" not in prompt
