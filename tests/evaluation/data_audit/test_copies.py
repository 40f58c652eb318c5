"""Duplicates, near copies and leaks: planted ones, and brute force beside MinHash."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.evaluation.data_audit.duplicates import exact_groups, extra, first_alike, near_groups
from limbeck.evaluation.data_audit.minhash import PERMUTATIONS, band_width, jaccard, shingles, signatures
from limbeck.evaluation.data_audit.normal import folded, words
from limbeck.evaluation.data_audit.overlap import covered, same_texts

VOCABULARY = ["".join(random.Random(i).choices("abcdefghijklmnoprstuvwyz", k=2 + i % 8)) for i in range(2000)]
PERSIAN = ["گربه", "روی", "فرش", "می\u200cنشیند", "کتاب\u200cها", "خانه", "بزرگ", "دوست", "مدرسه", "باران"]


def text(rng, length, vocabulary=VOCABULARY):
    return " ".join(rng.choices(vocabulary, k=length))


def edited(rng, original, share, vocabulary=VOCABULARY):
    new = original.split()
    for i in rng.sample(range(len(new)), max(1, round(share * len(new)))):
        new[i] = rng.choice(vocabulary)
    return " ".join(new)


def brute(a, b):
    def sets(of):
        data = " ".join(words(of)).encode()
        return {data[i : i + 6] for i in range(max(1, len(data) - 5))} if data else set()

    return len(sets(a) & sets(b)) / max(1, len(sets(a) | sets(b)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The  cat\nsat.", "the cat SAT."),
        ("caf\u00e9", "CAFE\u0301"),
        ("straße", "STRASSE"),
        ("می\u200cروم ", " می\u200cروم"),
    ],
)
def test_texts_that_read_the_same_are_folded_to_one(one, other):
    assert folded(one) == folded(other)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("Don't stop, 3.5!", ["don", "t", "stop", "3", "5"]),
        ("می\u200cروم، خانه.", ["می\u200cروم", "خانه"]),
        ("我喜欢 NLP。", ["我", "喜", "欢", "nlp"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # whose vowels are marks
        ("👩\u200d🚀 — !", []),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("ꆈꌠ，ㄅㄆ", ["ꆈ", "ꌠ", "ㄅ", "ㄆ"]),  # Yi and Bopomofo
        ("ｶﾀ", ["ｶ", "ﾀ"]),  # of half width
    ],
)
def test_words_of_any_script(given_text, expected):
    assert words(given_text) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12), st.data())
def test_one_more_exact_copy_is_one_more_duplicate(texts, data):
    again = data.draw(st.sampled_from(texts))
    before, after = exact_groups(texts), exact_groups([*texts, again])
    assert extra(after) == extra(before) + 1
    assert any({len(texts), texts.index(again)} <= set(group) for group in after)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["a b", "A  b", "c", "c d e f", "C d e f", "g"]), max_size=12), st.randoms())
def test_groups_do_not_depend_on_the_order_of_the_texts(texts, rng):
    order = list(range(len(texts)))
    rng.shuffle(order)
    shuffled = [texts[i] for i in order]
    for find in (exact_groups, near_groups):
        there = sorted(tuple(sorted(order[i] for i in group)) for group in find(shuffled))
        assert there == find(texts)


def test_minhash_estimates_jaccards_similarity():
    rng = random.Random(1)
    originals = [text(rng, 40) for _ in range(60)]
    pairs = [(each, edited(rng, each, share)) for each in originals for share in (0.02, 0.1, 0.4)]
    found = signatures([each for pair in pairs for each in pair])
    errors = []
    for k, (a, b) in enumerate(pairs):
        true = brute(a, b)
        assert jaccard(np.unique(shingles(a)), np.unique(shingles(b))) == pytest.approx(true)
        spread = max(true * (1 - true) / PERMUTATIONS, 1e-4) ** 0.5
        errors.append(((found[2 * k] == found[2 * k + 1]).mean() - true) / spread)
    assert abs(np.mean(errors)) < 0.3 and 0.7 < np.std(errors) < 1.3  # of a standard error


def test_bands_meet_nearly_all_pairs_at_the_threshold():
    width = band_width(0.8)
    assert width == 6 and 1 - (1 - 0.8**width) ** (PERMUTATIONS // width) > 0.99
    assert band_width(0.5) < width < band_width(0.95)


@pytest.mark.parametrize("seed", range(2))
def test_near_copies_are_those_that_brute_force_finds(seed):
    rng = random.Random(seed)
    originals = [text(rng, rng.randint(8, 40)) for _ in range(70)] + [text(rng, 15, PERSIAN) for _ in range(10)]
    copies = [edited(rng, each, rng.choice((0.03, 0.06, 0.12))) for each in originals for _ in range(2)]
    texts = rng.sample(originals + copies, 200)
    similar = {(i, j) for i, j in itertools.combinations(range(200), 2) if brute(texts[i], texts[j]) >= 0.8}
    assert len(similar) > 50
    found = near_groups(texts, seed=seed)
    together = {pair for group in found for pair in itertools.combinations(group, 2)}
    assert len(similar & together) >= 0.99 * len(similar)
    for group in found:  # each member is truly similar to another of its group
        assert all(any((min(i, j), max(i, j)) in similar for j in group if j != i) for i in group)
    assert near_groups(texts, seed=seed) == found


def test_one_word_in_twenty_makes_a_near_copy_and_one_in_three_does_not():
    rng = random.Random(5)
    texts = [text(rng, 60) for _ in range(50)]
    near = [edited(rng, each, 0.05) for each in texts]
    far = [edited(rng, each, 0.33) for each in texts]
    assert near_groups(texts + far) == []
    assert sum(group == (i, i + 50) for i, group in enumerate(near_groups(texts + near))) >= 48


def test_chinese_near_copies_are_found():
    pair = [f"我今天早上在图书馆里读了一本关于中国历史的很有意思的{book}" for book in ("书", "新书")]
    assert near_groups([*pair, "我昨天晚上在家里看了一部关于海洋的很长的电影"]) == [(0, 1)]


def test_texts_without_words_and_short_ones_are_no_near_copies_of_each_other():
    assert near_groups(["", "!!!", "???", "a", "b", "ab", "ba"]) == []
    assert near_groups(["a", "A!", "b"]) == [(0, 1)]


def test_thousands_of_one_template_are_one_group_soon():
    texts = [f"dear customer {i}, we thank you for the order that you gave us on this day" for i in range(3000)]
    assert near_groups(texts) == [tuple(range(3000))]


def test_the_first_that_is_truly_alike_is_named():
    rng = random.Random(3)
    texts = [text(rng, 40) for _ in range(40)]
    among = [edited(rng, each, share) for each in texts for share in (0.3, 0.1, 0.05)]
    expected = [next((j for j, other in enumerate(among) if brute(each, other) >= 0.8), None) for each in texts]
    assert first_alike(texts, among) == expected
    assert len({None if j is None else j % 3 for j in expected}) > 1


def test_of_a_huge_group_the_first_thousand_are_looked_at():
    rng = random.Random(4)
    asked = text(rng, 30)
    others = [text(rng, 5) for _ in range(999)]
    assert first_alike([asked], [*others, *others[:50], asked]) == [1049]  # copies do not count
    assert first_alike([asked], [*others, "one more", asked]) == [None]


def test_the_same_text_in_training_is_found_wherever_it_stands():
    assert same_texts(["x", "The cat", "the  CAT"], ["dog", "THE cat"]) == {1: [1, 2]}


def test_a_test_sentence_inside_a_longer_training_text_is_covered():
    rng = random.Random(2)
    tests = [text(rng, 20) for _ in range(10)]
    train = [text(rng, 100) for _ in range(20)]
    train[7] = f"{text(rng, 30)} {tests[3].upper()}! {text(rng, 30)}"
    train[9] = text(rng, 5) + " " + " ".join(tests[6].split()[:14])  # 2 of its 8 thirteen-grams
    found = covered(train, tests, 13)
    assert found.share_N.tolist() == [0, 0, 0, 1, 0, 0, 0.25, 0, 0, 0]
    assert found.source_N.tolist() == [-1, -1, -1, 7, -1, -1, 9, -1, -1, -1]
    assert not found.short_N.any()


def test_an_ngram_does_not_run_on_into_the_next_text():
    assert covered(["a b c", "d e f"], ["b c d e"], 4).share_N.tolist() == [0]
    assert covered(["a b c d e f"], ["b c d e"], 4).share_N.tolist() == [1]


def test_short_texts_are_looked_for_whole():
    found = covered(["the red lemon is sour", "我喜欢猫"], ["lemon is", "red sour", "lemon", "喜欢", "", "..."], 13)
    assert found.share_N[:4].tolist() == [1, 0, 1, 1]
    assert np.isnan(found.share_N[4:]).all() and found.short_N.all()
    assert found.source_N.tolist() == [0, -1, 0, 1, -1, -1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=6),
    st.lists(st.lists(st.sampled_from("abc"), max_size=8), max_size=6),
    st.integers(1, 5),
)
def test_covered_shares_are_those_of_sets(train, test, n):
    found = covered([" ".join(each) for each in train], [" ".join(each) for each in test], n)
    for each, share, source in zip(test, found.share_N, found.source_N, strict=True):
        size = min(n, len(each))
        grams = [tuple(each[i : i + size]) for i in range(len(each) - size + 1)] if size else []
        there = [{tuple(of[i : i + size]) for i in range(len(of) - size + 1)} for of in train]
        met = [any(gram in of for of in there) for gram in grams]
        assert np.isnan(share) if not grams else share == pytest.approx(np.mean(met))
        sources = [k for k, of in enumerate(there) if any(gram in of for gram in grams)]
        assert source == (sources[0] if sources else -1)
