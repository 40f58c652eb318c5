"""What is similar: words of any script, BM25 and MMR against independent loops and by hand, cosine against numpy."""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.prompting import similarity
from limbeck.prompting.similarity import best, by_vectors, by_words, mmr, once, vectors, words

NO_TIES = np.arange(10_000, dtype=np.uint64)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A rose, a ROSE: don't!", ["a", "rose", "a", "rose", "don", "t"]),
        ("Straße 12½", ["strasse", "12½"]),
        ("cafe\u0301", ["café"]),
        ("ΣΊΣΥΦΟΣ Σίσυφος", ["σίσυφοσ", "σίσυφοσ"]),
        ("کتابِ می\u200cخوانم، ۱۲ تا؟", ["کتابِ", "میخوانم", "۱۲", "تا"]),
        ("हिन्दी में लिखो।", ["हिन्दी", "में", "लिखो"]),
        ("שָׁלוֹם עולם", [unicodedata.normalize("NFC", "שָׁלוֹם"), "עולם"]),
        ("我爱JAX", ["我爱", "jax"]),
        ("東京タワー。猫", ["東京", "京タ", "タワ", "ワー", "猫"]),
        ("ภาษา\u200bไทย", ["ภา", "าษ", "ษา", "ไท", "ทย"]),
        ("co\u00adoperate \ufeff", ["cooperate"]),
        ("?! …", []),
        ("", []),
    ],
)
def test_words_of_any_script(text: str, found: list[str]) -> None:
    assert words(text) == found
    assert words(unicodedata.normalize("NFD", text)) == found


def test_bm25_by_hand() -> None:
    space = by_words(["plum plum jam", "pear jam", "fig"])
    (query,) = space.encode(["plum jam, lemon"])  # no text has a lemon
    plum, jam = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)  # in one text and in two of three
    short, middle, long = (1.2 * (0.25 + 0.75 * length / 2) for length in (1, 2, 3))  # the mean length is 2
    scores = [plum * 2 * 2.2 / (2 + long) + jam * 2.2 / (1 + long), jam * 2.2 / (1 + middle), 0.0]
    itself = (plum + jam) * 2.2 / (1 + long)
    np.testing.assert_allclose(space.relevance(query), np.array(scores) / itself, rtol=1e-12)
    fig = plum * 2.2 / (1 + short)  # as rare as plum
    np.testing.assert_allclose(space.between(2, slice(None)), [0, 0, fig / fig], rtol=1e-12)


def looped_bm25(texts: Sequence[str], query: str) -> list[float]:
    """The formula as a book has it, text by text and word by word; ASCII only."""
    split = [text.lower().split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for text in split:
        score = 0.0
        for word in query.lower().split():
            having = sum(word in other for other in split)
            if having:
                saturated = text.count(word) * 2.2 / (text.count(word) + 1.2 * (1 - 0.75 + 0.75 * len(text) / mean))
                score += math.log(1 + (len(split) - having + 0.5) / (having + 0.5)) * saturated
        scores.append(score)
    return scores


TEXT = st.lists(st.sampled_from(["red", "green", "blue", "Fig", "fig", "plum", "pear"]), max_size=8).map(" ".join)


@given(st.lists(TEXT, min_size=1, max_size=12).filter(any), TEXT)
def test_bm25_is_that_of_a_plain_loop(texts: list[str], query: str) -> None:
    space = by_words(texts)
    for asked, share_N in [
        (query, space.relevance(space.encode([query])[0])),
        *((texts[i], space.between(i, slice(None))) for i in range(len(texts))),
    ]:
        score_N = np.array(looped_bm25(texts, asked))
        scored = score_N > 1e-12
        assert (share_N[~scored] == 0).all()
        ratios = share_N[scored] / score_N[scored]  # one positive scale a query
        assert (ratios > 0).all() and (not ratios.size or np.ptp(ratios) < 1e-9 * ratios[0])
        if asked in texts and asked:
            np.testing.assert_allclose(share_N[texts.index(asked)], 1)
    some = np.arange(0, len(texts), 2)
    assert (space.between(0, some) == space.between(0, slice(None))[some]).all()


def test_texts_without_words_are_like_nothing() -> None:
    for texts in (["?", "!"], ["", "plum"]):
        space = by_words(texts)
        for query in space.encode(["", "?", "lemon"]):
            assert space.relevance(query).tolist() == [0, 0]
    assert by_words(["?"]).between(0, slice(None)).tolist() == [0]


def test_cosine_is_numpys_and_alike_for_every_way_to_ask() -> None:
    x_ND = np.random.default_rng(0).normal(size=(50, 7))
    x_ND[3] = 0
    x_ND[9] = 2 * x_ND[8]

    def embed(asked: Sequence[str]) -> np.ndarray:
        return x_ND[[int(text) for text in asked]]

    space = by_vectors(vectors([str(i) for i in range(50)], embed), embed)
    unit_ND = x_ND / np.where(np.arange(50) == 3, 1, np.linalg.norm(x_ND, axis=1))[:, None]
    for i, query in enumerate(space.encode([str(i) for i in range(50)])):
        np.testing.assert_allclose(space.relevance(query), unit_ND @ unit_ND[i], atol=1e-6)
        (alone,) = space.encode([str(i)])
        assert (space.relevance(alone) == space.relevance(query)).all()
        assert (space.between(i, np.array([40, 8, 9])) == space.relevance(query)[[40, 8, 9]]).all()
        assert space.relevance(query)[8] == pytest.approx(space.relevance(query)[9], abs=1e-6)
    assert space.encode([]) == []
    with pytest.raises(AssertionError):
        vectors(["a"], lambda asked: np.full((len(asked), 2), np.nan))


def test_what_was_made_of_texts_is_kept_and_only_the_last_few() -> None:
    kept, calls = {}, []

    def make(texts: Sequence[str]) -> list[str]:
        calls.append(list(texts))
        return [*texts, "made"]

    first = once(kept, make, "words", ["a", "b"])
    for name, texts in (("words", ["a"]), ("vectors", ["a", "b"]), ("words", ["ab"])):
        assert once(kept, make, name, texts) == [*texts, "made"]
        assert once(kept, make, "words", ("a", "b")) is first  # the one that is used stays
    assert calls == [["a", "b"], ["a"], ["a", "b"], ["ab"]] and len(kept) == 4
    once(kept, make, "words", ["another"])
    assert len(kept) == 4 and once(kept, make, "words", ["a", "b"]) is first
    once(kept, make, "words", ["a"])
    assert len(calls) == 6  # that one had gone


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.data())
def test_the_best_are_sorted_and_equals_go_by_their_tie(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    tie_N = np.array(data.draw(st.permutations(range(len(scores)))))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], tie_N[i]))[:count]
    assert best(np.array(scores, float), count, tie_N) == expected


def greedy(relevance: Sequence[float], alike: np.ndarray, count: int, tie: Sequence[int]) -> list[int]:
    """Maximal marginal relevance by looking at every text each time."""
    taken: list[int] = []
    while len(taken) < count:
        scores = {}
        for i in range(len(relevance)):
            if i not in taken and relevance[i] > -math.inf:
                worst = max((alike[j, i] for j in taken), default=None)
                scores[i] = 0.5 * relevance[i] - (0.5 * worst if worst is not None else 0)
        taken.append(min(scores, key=lambda i: (-scores[i], tie[i])))
    return taken


@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([1, 2, 5, 256]), st.booleans())
def test_mmr_is_that_of_looking_at_all(seed: int, count: int, width: int, coarse: bool) -> None:
    """Also where similarities are negative, equal, not symmetric, and texts are barred."""
    rng = np.random.default_rng(seed)
    alike_NN, relevance_N = rng.uniform(-1, 1, (20, 20)), rng.uniform(-1, 1, 20)
    if coarse:
        alike_NN, relevance_N = alike_NN.round(), relevance_N.round()
    relevance_N[rng.permutation(20)[: rng.integers(0, 9)]] = -np.inf
    tie_N = rng.permutation(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_WIDTH", width)
        taken = mmr(relevance_N, lambda one, rows: alike_NN[one, rows], count, tie_N)
    assert taken == greedy(relevance_N.tolist(), alike_NN, count, tie_N.tolist())
    assert len(set(taken)) == count


def test_mmr_leaves_a_crowd_of_copies_that_is_larger_than_what_it_tries_first() -> None:
    x_ND = np.array([[0.8, -0.6, 0]] * 600 + [[0.5, 0, 0.75**0.5], [0.9, 0.19**0.5, 0]])
    relevance_N, tie_N = x_ND[:, 0], NO_TIES[:602]
    for count, expected in [(0, []), (1, [601]), (3, [601, 0, 600]), (5, [601, 0, 600, 1, 2])]:
        assert mmr(relevance_N, lambda one, rows: x_ND[rows] @ x_ND[one], count, tie_N) == expected
        assert greedy(relevance_N.tolist(), x_ND @ x_ND.T, count, range(602)) == expected
    assert relevance_N[601] == 0.9  # what was given is as it was


def test_mmr_takes_what_is_like_the_query_and_unlike_the_last() -> None:
    space = by_words(["red plum jam", "red plum jam again", "a blue fig", "pear tart"])
    relevance_N = space.relevance(space.encode(["red plum jam and blue sky"])[0])
    assert Counter(best(relevance_N, 2, NO_TIES[:4])) == Counter([0, 1])
    assert mmr(relevance_N, space.between, 2, NO_TIES[:4]) == [0, 2]
