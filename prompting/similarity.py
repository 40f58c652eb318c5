"""Which texts are most like another: by their words (BM25), by vectors (cosine), and unlike each other too (MMR).

Letters: N texts that are looked up, V words, D width of a vector.
"""

import functools
import hashlib
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from limbeck.tasks.scripts import UNSPACED

Rows = np.ndarray | slice  # of the texts: some, or slice(None) for all
Kept = dict[tuple[str, str], Any]  # what was made of texts, by the name of what made it and their digest
Made = TypeVar("Made")

K1, B = 1.2, 0.75  # of BM25: where a word's count saturates, how much a text's length matters
_LIKENESS = 0.5  # of MMR: its share against being unlike what was chosen before
_WIDTH = 256  # candidates that MMR tries first
_INDEXES = 4  # that are kept: a comparison asks for the same few again and again


class Space(NamedTuple):
    """N texts among which similar ones are looked up. Similarities have no unit: more is more alike."""

    encode: Callable[[Sequence[str]], Sequence[Any]]  # texts -> what each is asked by
    relevance: Callable[[Any], np.ndarray]  # one of these -> similarity_N
    between: Callable[[int, Rows], np.ndarray]  # one of the N and rows of them -> their similarity with it


def once(kept: Kept, make: Callable[[Sequence[str]], Made], name: str, texts: Sequence[str]) -> Made:
    """What `make` makes of texts: out of `kept`, where the last few are, if it was made of them before."""
    key = (name, hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest())
    made = kept.pop(key) if key in kept else make(texts)
    kept[key] = made  # the last one in the dict's order
    for old in [*kept][:-_INDEXES]:
        del kept[old]
    return made


def vectors(texts: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """x_ND: what `embed` gives to texts, each of length one; zeros stay zeros."""
    x_ND = np.asarray(embed(texts), np.float32)
    assert x_ND.ndim == 2 and len(x_ND) == len(texts) and np.isfinite(x_ND).all(), x_ND.shape
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def by_vectors(x_ND: np.ndarray, embed: Callable[[Sequence[str]], np.ndarray]) -> Space:
    """Cosine of the `vectors` x_ND with those that `embed` gives to what is asked; with a vector of zeros it is 0."""

    def encode(asked: Sequence[str]) -> list[np.ndarray]:
        return [*vectors(asked, embed)] if asked else []

    def cosine(x_D: np.ndarray, rows: Rows) -> np.ndarray:
        return np.einsum("nd,d->n", x_ND[rows], x_D)  # unlike BLAS it rounds a row alike, whatever stands beside it

    return Space(encode, lambda x_D: cosine(x_D, slice(None)), lambda one, rows: cosine(x_ND[one], rows))


def by_words(texts: Sequence[str]) -> Space:
    """Okapi BM25 (Robertson and Zaragoza 2009, doi 10.1561/1500000019), as a share of what a text scores with itself.

    The share leaves the order of texts as it is, and puts all queries on one scale, which MMR needs: a long query's
    scores are high. The inverse document frequency is log(1 + (N - n + 0.5) / (n + 0.5)), never negative. A word that
    a query has twice counts twice; one that no text has does not count.
    """
    import scipy.sparse

    counted = [Counter(words(text)) for text in texts]
    vocabulary = {word: v for v, word in enumerate(dict.fromkeys(word for count in counted for word in count))}
    documents_V = np.bincount([vocabulary[word] for count in counted for word in count], minlength=len(vocabulary))
    idf_V = np.log1p((len(texts) - documents_V + 0.5) / (documents_V + 0.5))
    mean_length = sum(count.total() for count in counted) / max(len(texts), 1) or 1.0

    def columns(count: Counter[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(the words' places in the vocabulary, how often each stands there, its BM25 weight as a text's word)."""
        known = sorted((vocabulary[word], n) for word, n in count.items() if word in vocabulary)
        place_W, n_W = np.array(known, np.int64).reshape(-1, 2).T
        length = 1 - B + B * count.total() / mean_length
        return place_W, n_W, idf_V[place_W] * n_W * (K1 + 1) / (n_W + K1 * length)

    parts = [columns(count) for count in counted]
    starts = np.cumsum([0, *(len(place_W) for place_W, _, _ in parts)])
    places, _, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    weight_NV = scipy.sparse.csr_array((weights, places, starts), (len(texts), len(vocabulary)))

    def score(part: tuple[np.ndarray, np.ndarray, np.ndarray], rows: Rows) -> np.ndarray:
        place_W, n_W, weight_W = part
        asked_V = np.zeros(len(vocabulary))
        asked_V[place_W] = n_W
        some_NV = weight_NV if isinstance(rows, slice) else weight_NV[rows]  # a slice would copy it
        return some_NV @ asked_V / ((n_W * weight_W).sum() or 1.0)

    return Space(
        lambda asked: [columns(Counter(words(text))) for text in asked],
        lambda part: score(part, slice(None)),
        lambda one, rows: score(parts[one], rows),
    )


def words(text: str) -> list[str]:
    """The words of a text in any script, caseless, in order.

    Letters, digits and the marks that belong to them; joiners and other invisible characters inside a word are passed
    over ("می‌رود" is "میرود"). Scripts that put no space between words give every pair of neighbouring letters.
    """
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    if plain.isascii():
        return re.findall(r"\w+", plain)
    word, unspaced, invisible = _patterns()
    runs = word.findall(invisible.sub("", plain))
    if not unspaced.search(plain):
        return runs
    found = []
    for run in runs:
        for part in unspaced.split(run):
            if part and unspaced.fullmatch(part):
                found += [part[i : i + 2] for i in range(max(len(part) - 1, 1))]
            elif part:
                found.append(part)
    return found


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """(a word, a run without spaces, invisible characters); `re` knows no marks: without them हिन्दी is three words."""
    kinds = [(character, unicodedata.category(character)) for character in map(chr, range(sys.maxunicode + 1))]
    marks = re.escape("".join(character for character, kind in kinds if kind.startswith("M")))
    invisible = re.escape("".join(character for character, kind in kinds if kind == "Cf" and character != "\u200b"))
    return re.compile(rf"\w+(?:[{marks}]+\w*)*"), re.compile(f"([{UNSPACED}]+)"), re.compile(f"[{invisible}]+")


def best(score_N: np.ndarray, count: int, tie_N: np.ndarray) -> list[int]:
    """Places of the `count` highest scores, the highest first; of equals the one with the lower tie_N."""
    if not count:
        return []
    last = np.partition(score_N, -count)[-count]
    rows = np.flatnonzero(score_N >= last)
    return rows[np.lexsort((tie_N[rows], -score_N[rows]))][:count].tolist()


def mmr(
    relevance_N: np.ndarray, between: Callable[[int, Rows], np.ndarray], count: int, tie_N: np.ndarray
) -> list[int]:
    """Places of `count` texts that are like the query and unlike each other, in the order in which they are taken.

    Maximal marginal relevance (Carbonell and Goldstein 1998, doi 10.1145/290941.291025): each time the text with the
    highest 0.5 relevance - 0.5 (its highest similarity with those taken before), of equals the one with the lower
    tie_N. `between(one, rows)` gives similarities with one text; -inf in relevance_N bars a text.
    """
    if not count:
        return []
    (first,) = best(relevance_N, 1, tie_N)
    alike_N = between(first, slice(None))
    relevance_N = relevance_N.copy()
    relevance_N[first] = -np.inf
    bound_N = _LIKENESS * relevance_N - (1 - _LIKENESS) * alike_N  # falls with every text that is taken
    width = min(_WIDTH, len(bound_N))
    while True:
        last = np.partition(bound_N, -width)[-width]
        rows = np.flatnonzero(bound_N >= last)  # no other text can come before one of these whose score is `last`
        taken = _greedy(relevance_N[rows], alike_N[rows], rows, between, count - 1, tie_N[rows], last)
        if taken is not None:
            return [first, *taken]
        width = min(4 * width, len(bound_N))


def _greedy(
    relevance_M: np.ndarray, alike_M: np.ndarray, rows_M: np.ndarray, between: Callable[[int, Rows], np.ndarray],
    count: int, tie_M: np.ndarray, least: float,
) -> list[int] | None:  # fmt: skip
    """The rest of MMR among some rows; None where one is needed that scores less than `least`."""
    taken: list[int] = []
    while len(taken) < count:
        score_M = _LIKENESS * relevance_M - (1 - _LIKENESS) * alike_M
        (pick,) = best(score_M, 1, tie_M)
        if score_M[pick] < least:
            return None
        relevance_M[pick] = -np.inf
        taken.append(int(rows_M[pick]))
        alike_M = np.maximum(alike_M, between(taken[-1], rows_M))
    return taken
