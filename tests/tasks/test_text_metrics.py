"""Metrics of text against sacrebleu, rouge_score, the rule of SQuAD written anew, and text of many scripts."""

import re
import string
import time
from collections import Counter
from functools import cache

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.tasks.intervals import Score, wilson
from limbeck.tasks.text_metrics import _longest_common_subsequence, bleu, chrf, exact_match, rouge_l, token_f1

PERSIAN = "\u0633\u06cc\u0628 \u0633\u0631\u062e \u0627\u0633\u062a"  # the apple is red
WORDS = ["the", "cat", "Cat", "sat", "on", "a", "mat", ".", "it's"]
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


def squad(text: str) -> str:
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


@given(st.text(string.ascii_letters + string.digits + " .,'$+-", min_size=1, max_size=12), st.data())
def test_exact_match_is_squads_in_english(answer: str, data: st.DataObject) -> None:
    near = [answer.upper(), f"The {answer}!", f"an  {answer}", answer + "s", answer[1:]]
    prediction = data.draw(st.sampled_from(near))
    if squad(answer) and squad(prediction):
        assert exact_match([prediction], [answer]).value == (squad(prediction) == squad(answer))


@given(SENTENCES, SENTENCES)
def test_token_f1_is_squads_in_english(prediction: str, answer: str) -> None:
    predicted, right = squad(prediction).split(), squad(answer).split()
    if predicted and right:
        common = (Counter(predicted) & Counter(right)).total()
        precision, recall = common / len(predicted), common / len(right)
        expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert token_f1([prediction], [answer]).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        (PERSIAN + ".", PERSIAN),
        (f"\u00ab{PERSIAN}\u00bb\u061f", PERSIAN),  # guillemets and the Arabic question mark
        (f"\u200f{PERSIAN}\u200e", PERSIAN),  # marks of direction
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u200c", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\u0622\u0628", "\u0627\u0653\u0628"),
        ("\u0915\u093f\u0924\u093e\u092c\u0964", "\u0915\u093f\u0924\u093e\u092c"),  # Devanagari, with its vowel signs
        ("STRASSE", "Stra\u00dfe"),
        ("\u6771\u4eac\u3002", "\u6771\u4eac"),
        ("Answer!", "\tanswer"),
        ("A", "a"),
        ("$5", "5"),
    ],
)
def test_one_answer_in_many_scripts(prediction: str, answer: str) -> None:
    for metric in (exact_match, token_f1, rouge_l):
        assert metric([prediction], [answer]).value == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("\u06a9\u062a\u0627\u0628", "\u0628\u0627\u062f"),
        ("\u0915\u093f", "\u0915\u0940"),  # only the vowel sign differs
        ("\u0645\u06cc\u200c\u062f\u0627\u0646", "\u0645\u06cc\u062f\u0627\u0646"),  # a joiner is spelling
        ("+", "-"),
        ("", "!"),
        ("the", "a"),
        ("", "A"),
        ("\U0001f600", "\U0001f62d"),
    ],
)
def test_two_answers_in_many_scripts(prediction: str, answer: str) -> None:
    for metric in (exact_match, token_f1, rouge_l):
        assert metric([prediction], [answer]).value == 0.0


def test_exact_match_by_hand() -> None:
    score = exact_match(["The plum.", "a pear", "fig"], ["plum", "PEAR", "date"])
    assert score == Score(2 / 3, wilson(2, 3), 3)


def test_words_in_part() -> None:
    assert token_f1([PERSIAN], [PERSIAN.split()[0]]).value == pytest.approx(0.5)  # 1 of 3, 1 of 1
    assert rouge_l([PERSIAN], [" ".join(reversed(PERSIAN.split()))]).value == pytest.approx(1 / 3)
    assert token_f1(["\u6771\u4eac\u5e02"], ["\u6771\u4eac"]).value == pytest.approx(0.8)  # 2 of 3, 2 of 2
    assert rouge_l(["\u0e44\u0e17\u0e22"], ["\u0e44\u0e17\u0e22\u0e22"]).value == pytest.approx(6 / 7)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_longest_common_subsequence_is_that_of_the_recursion(a: list[str], b: list[str]) -> None:
    @cache
    def longest(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if a[i - 1] == b[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    assert _longest_common_subsequence(a, b) == longest(len(a), len(b))


@pytest.mark.bench
@pytest.mark.parametrize("seed", range(20))
def test_rouge_l_is_googles_in_english(seed: int) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    rng = np.random.default_rng(seed)
    words = ["The", "cat", "sat", "don't", "on-line", "mat.", "42", "(x)"]
    prediction, answer = (" ".join(rng.choice(words, rng.integers(1, 30))) for _ in range(2))
    expected = scorer.score(answer, prediction)["rougeL"].fmeasure
    assert rouge_l([prediction], [answer]).value == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=8))
def test_the_corpus_is_scored_by_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    predictions, answers = (list(side) for side in zip(*pairs, strict=True))
    for metric, reference in ((bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)):
        assert metric(predictions, answers).value == pytest.approx(reference(predictions, [answers]).score)


def corpus(n: int, words: int = 20) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i}" for i in range(50)] + PERSIAN.split())
    right = rng.choice(vocabulary, (n, words))
    predicted = np.where(rng.random((n, words)) < rng.random((n, 1)), right, rng.choice(vocabulary, (n, words)))
    return [" ".join(row) for row in predicted], [" ".join(row) for row in right]


@pytest.mark.parametrize(("metric", "reference"), [(bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)])
def test_the_interval_is_that_of_resampled_sacrebleu(metric, reference) -> None:
    predictions, answers = corpus(30)
    draws = np.random.default_rng(0).integers(30, size=(1000, 30))[:200]  # the seed that the metrics use
    resampled = [reference([predictions[i] for i in draw], [[answers[i] for i in draw]]).score for draw in draws]
    expected = np.quantile(resampled, (0.025, 0.975))
    assert metric(predictions, answers).ci95 == pytest.approx(expected, rel=0.08)


def test_a_thousand_records_take_seconds() -> None:
    predictions, answers = corpus(1000)
    for metric in (exact_match, token_f1, rouge_l, bleu, chrf):
        start = time.process_time()
        score = metric(predictions, answers)
        assert time.process_time() - start < 5
        assert score.ci95[0] <= score.value <= score.ci95[1]


@pytest.mark.parametrize("metric", [exact_match, token_f1, rouge_l, bleu, chrf])
def test_empty_text_scores_nothing(metric) -> None:
    assert metric(["", "\n"], [PERSIAN, "a plum"]).value == 0.0
    same = [f"{PERSIAN} {PERSIAN}"]
    assert metric(same, same).value == pytest.approx(100.0 if metric in (bleu, chrf) else 1.0)
