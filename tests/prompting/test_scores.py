"""Views of one stored table of option scores, worked out by hand and by a unigram model."""

import dataclasses
import math
import unicodedata
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.model.errors import UserError
from limbeck.prompting.config import PromptConfig, View
from limbeck.prompting.scores import best, log_mean, log_probabilities, option_scores, text_lengths, view

VIEWS = get_args(View)
TEXTS = ("", "0", "هلو", "پرتقال")  # Persian: 3 letters of 2 bytes, 6 of them
LOGPROBS = ((-1.0, -3.0, -6.0, -12.0), (-2.0, -1.0, -9.0, -6.0))
TOKENS = ((0, 1, 2, 4), (0, 1, 2, 4))
ALONE = (-1.0, -2.0, -7.0, -10.0)
DOMAIN = ((-1.5, -3.0, -4.0, -11.0), (-1.5, -3.0, -8.0, -11.0))
TABLE = option_scores(LOGPROBS, TOKENS, (TEXTS, TEXTS), ALONE, DOMAIN)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", LOGPROBS),
        ("per_token", ((-1.0, -3.0, -3.0, -3.0), (-2.0, -1.0, -4.5, -1.5))),
        ("per_character", ((-1.0, -3.0, -2.0, -2.0), (-2.0, -1.0, -3.0, -1.0))),
        ("per_byte", ((-1.0, -3.0, -1.0, -1.0), (-2.0, -1.0, -1.5, -0.5))),
        ("pmi", ((0.0, -1.0, 1.0, -2.0), (-1.0, 1.0, -2.0, 4.0))),
        ("domain_pmi", ((0.5, 0.0, -2.0, -1.0), (-0.5, 2.0, -1.0, 5.0))),
    ],
)
def test_every_view_of_one_table_by_hand(name: View, expected) -> None:
    before = [part.copy() for part in TABLE if part is not None]
    np.testing.assert_allclose(view(TABLE, name), expected, rtol=1e-15)
    for part, kept in zip((part for part in TABLE if part is not None), before, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_the_views_are_those_of_the_settings() -> None:
    assert {field.name: field.default for field in dataclasses.fields(PromptConfig)}["view"] in VIEWS
    for name in VIEWS:
        assert view(TABLE, name).shape == (2, 4)
    with pytest.raises(UserError, match="unknown view 'per_tokn'.*did you mean 'per_token'"):
        view(TABLE, "per_tokn")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "characters", "size"),
    [
        ("", 0, 0),
        ("0", 1, 1),
        ("hesperidium", 11, 11),
        ("سلام", 4, 8),
        ("می‌خواهم", 8, 17),  # with a zero-width non-joiner, which is spelling
        ("۱۲", 2, 4),
        ("é", 1, 2),
        ("e\u0301", 1, 3),
        ("آ", 1, 2),
        ("ا\u0653", 1, 4),  # alef and madda, which compose
        ("🍋", 1, 4),
    ],
)
def test_lengths_of_texts_in_any_script(text: str, characters: int, size: int) -> None:
    assert text_lengths(text) == (characters, size)


@given(st.text())
def test_characters_are_those_of_the_composed_form(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert text_lengths(text)[0] == text_lengths(decomposed)[0] == len(unicodedata.normalize("NFC", text))


def test_a_view_whose_part_was_not_scored_says_so() -> None:
    plain = option_scores(LOGPROBS, TOKENS, (TEXTS, TEXTS))
    for name in ("pmi", "domain_pmi"):
        with pytest.raises(UserError, match=f"view='{name}' needs") as error:
            view(plain, name)
        assert "\n" not in str(error.value)
    np.testing.assert_array_equal(view(plain, "sum"), LOGPROBS)


def test_the_mutual_information_of_what_no_prompt_changes_is_nothing() -> None:
    """A unigram model, whose options are as likely after anything: PMI 0, and the sum prefers the commonest word."""
    unigram = {"the": 0.5, "lemon": 0.3, "plum": 0.15, "هلو": 0.05}
    options = (("lemon",), ("plum", "plum"), ("هلو", "the"))
    scored = [[sum(math.log(unigram[word]) for word in option) for option in options]] * 3
    texts = [[" ".join(option) for option in options]] * 3
    table = option_scores(scored, [[1, 2, 2]] * 3, texts, scored[0], scored[0])
    np.testing.assert_array_equal(view(table, "pmi"), np.zeros((3, 3)))
    np.testing.assert_array_equal(view(table, "domain_pmi"), np.zeros((3, 3)))
    np.testing.assert_allclose(np.exp(view(table, "sum")[0]), [0.3, 0.15**2, 0.05 * 0.5])
    np.testing.assert_allclose(np.exp(view(table, "per_token")[0]), [0.3, 0.15, math.sqrt(0.05 * 0.5)])
    np.testing.assert_allclose(np.exp(view(table, "per_character")[0, 1]), 0.15 ** (2 / 9))
    np.testing.assert_allclose(np.exp(view(table, "per_byte")[0, 2]), 0.025 ** (1 / 10))


@given(arrays(np.float64, (4, 3), elements=st.floats(-50, 0)), st.permutations(range(4)), st.permutations(range(3)))
def test_order_of_records_and_options_carries_through(logprobs, records, options) -> None:
    texts = [["", "0", "هلو"]] * 4
    tokens = np.arange(12).reshape(4, 3)
    alone, domain = -np.arange(3.0), -np.arange(12.0).reshape(4, 3)
    moved = np.ix_(records, options)
    table = option_scores(logprobs, tokens, texts, alone, domain)
    other_texts = [[texts[record][option] for option in options] for record in records]
    other = option_scores(logprobs[moved], tokens[moved], other_texts, alone[options], domain[moved])
    for name in VIEWS:
        np.testing.assert_array_equal(view(other, name), view(table, name)[moved])
        if len(np.unique(view(table, name))) == 12:
            np.testing.assert_array_equal(np.array(options)[best(view(other, name))], best(view(table, name))[records])


def test_the_first_of_equals_is_the_best() -> None:
    assert best([[0.0, 0.0, -1.0], [-3.0, -2.0, -2.0], [-5.0, -5.0, -5.0]]).tolist() == [0, 1, 0]
    assert best([[-math.inf, -4.0]]).tolist() == [1]
    with pytest.raises(ValueError, match="row 1 have a NaN"):
        best([[0.0, 1.0], [math.nan, 1.0]])


def test_half_precision_scores_are_worked_on_in_double() -> None:
    table = option_scores(np.array(LOGPROBS, np.float16), TOKENS, (TEXTS, TEXTS), np.array(ALONE, np.float32))
    for name in VIEWS[:-1]:
        assert view(table, name).dtype == np.float64
        np.testing.assert_array_equal(view(table, name), view(TABLE, name))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_model_that_gives_no_numbers_is_no_answer(bad: float) -> None:
    with pytest.raises(ValueError, match=r"not finite at \[1, 0\]"):
        option_scores([[-1.0, -2.0], [bad, -1.0]], [[1, 1]] * 2, [["a", "b"]] * 2)
    with pytest.raises(ValueError, match=r"not finite at \[0\]"):
        option_scores([[-1.0, -2.0]], [[1, 1]], [["a", "b"]], alone=[bad, 0.0])


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        option_scores(np.zeros((2, 3)), np.zeros((3, 2)), [["a"] * 3] * 2)
    with pytest.raises(ValueError, match="shapes"):
        option_scores(np.zeros((2, 3)), np.zeros((2, 3)), [["a"] * 2] * 3)
    with pytest.raises(ValueError):
        option_scores(np.zeros((2, 3)), np.zeros((2, 3)), [["a"] * 3] * 2, alone=np.zeros(2))


@given(arrays(np.float64, (3, 4), elements=st.floats(-3000, 0)))
def test_probabilities_sum_to_one_and_keep_their_ratios(score_NO) -> None:
    logprob_NO = log_probabilities(score_NO)
    np.testing.assert_allclose(np.exp(logprob_NO).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(logprob_NO - logprob_NO[:, :1], score_NO - score_NO[:, :1], atol=1e-9)


def test_the_mean_of_tiny_probabilities_is_no_zero() -> None:
    np.testing.assert_allclose(log_mean(np.array([[-2000.0], [-2000.0 + math.log(3)]])), [-2000 + math.log(2)])
    np.testing.assert_allclose(np.exp(log_mean(np.log([[0.2, 0.8], [0.6, 0.4]]))), [0.4, 0.6])
