"""What of a test set stands in the training set: whole, or as n words in a row. Dimension key: `N` tests, `W` words.

The n-grams of the test set are held as sorted 64-bit hashes, and the training texts stream past them: memory follows
the test set. Thirteen words are those of Brown et al. 2020, arXiv 2005.14165, appendix C.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from limbeck.evaluation.data_audit.normal import folded, words
from limbeck.model.progress import progress

NGRAM = 13
_AT_ONCE = 1 << 20  # characters of text whose words are hashed at a time
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is multiplied away


class Covered(NamedTuple):
    """Of each test text: which share of its n-grams stands in training, and where the first of them is."""

    share_N: np.ndarray  # 0 to 1; nan of a text without words
    short_N: np.ndarray  # bool: fewer than n words, so that the whole text was looked for
    source_N: np.ndarray  # the index of a training text that holds one of its n-grams, -1 for none


def same_texts(train: Sequence[str], test: Sequence[str]) -> dict[int, list[int]]:
    """Of each test text in training, its index -> theirs: the same but for case, white space and Unicode form."""
    places: dict[str, list[int]] = {}
    for i, text in enumerate(train):
        places.setdefault(folded(text), []).append(i)
    return {i: places[form] for i, text in enumerate(test) if (form := folded(text)) in places}


def covered(train: Sequence[str], test: Sequence[str], n: int = NGRAM) -> Covered:
    """How much of each test text stands in training texts as `n` words in a row, within one text.

    Of a test text with fewer words the whole is looked for; a few words may well be met by chance.
    """
    known: dict[str, int] = {}
    size_N = np.zeros(len(test), np.int64)  # of the n-grams that are looked for
    hashes: dict[int, list[np.ndarray]] = {}
    owners: dict[int, list[np.ndarray]] = {}
    for size, hash_W, text_W in _grams(test, n, known):
        size_N[text_W] = size  # sizes rise, so the last is the longest that the text has
        hashes.setdefault(size, []).append(hash_W)
        owners.setdefault(size, []).append(text_W)
    source: dict[int, np.ndarray] = {}
    keys: dict[int, np.ndarray] = {}
    for size in sorted(set(size_N.tolist()) - {0}):
        hash_W, text_W = np.concatenate(hashes[size]), np.concatenate(owners[size])
        wanted_W = size_N[text_W] == size
        owners[size], keys[size] = [text_W[wanted_W]], np.unique(hash_W[wanted_W])
        hashes[size] = [hash_W[wanted_W]]
        source[size] = np.full(len(keys[size]), len(train))
    with progress("test n-grams in training", len(train), "text") as advance:
        for size, hash_W, text_W in _grams(train, n, known, advance):
            if size in keys:
                at_W = np.searchsorted(keys[size], hash_W).clip(max=len(keys[size]) - 1)
                met_W = keys[size][at_W] == hash_W
                np.minimum.at(source[size], at_W[met_W], text_W[met_W])
    share_N, source_N = np.full(len(test), np.nan), np.full(len(test), len(train))
    for size, key_W in keys.items():
        [hash_W], [text_W] = hashes[size], owners[size]
        from_W = source[size][np.searchsorted(key_W, hash_W)]
        grams_N = np.bincount(text_W, minlength=len(test))
        met_N = np.bincount(text_W, weights=from_W < len(train), minlength=len(test))
        share_N = np.where(grams_N > 0, met_N / np.maximum(grams_N, 1), share_N)
        np.minimum.at(source_N, text_W, from_W)
    return Covered(share_N, size_N < n, np.where(source_N < len(train), source_N, -1))


def _grams(
    texts: Sequence[str], n: int, known: dict[str, int], advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(size, hashes of n-grams of that size, indices of their texts), sizes from 1 to n, a batch of texts at a time."""
    for batch in _batches(texts):
        parts = [[_hash(word, known) for word in words(texts[i])] for i in batch]
        word_W = np.array(list(itertools.chain.from_iterable(parts)), np.uint64)
        text_W = np.repeat(np.array(batch), [len(part) for part in parts])
        hash_W = word_W
        for size in range(1, min(n, len(word_W)) + 1):
            if size > 1:
                hash_W = hash_W[:-1] * _BASE + word_W[size - 1 :]
            inside_W = text_W[: len(hash_W)] == text_W[size - 1 :]
            yield size, hash_W[inside_W], text_W[: len(hash_W)][inside_W]
        if advance:
            advance(len(batch))


def _batches(texts: Sequence[str]) -> Iterator[range]:
    start = characters = 0
    for i, text in enumerate(texts):
        characters += len(text)
        if characters >= _AT_ONCE:
            yield range(start, i + 1)
            start, characters = i + 1, 0
    if start < len(texts):
        yield range(start, len(texts))


def _hash(word: str, known: dict[str, int]) -> int:
    found = known.get(word)
    if found is None:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found = known[word] = int.from_bytes(digest, "little")
    return found
