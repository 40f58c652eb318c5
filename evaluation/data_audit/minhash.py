"""MinHash: near copies among many texts, without comparing each with each.

The similarity is Jaccard's, of the sets of six UTF-8 bytes in a row of a text's words: six letters of English, three
of Persian, two Chinese characters. One word changed in twenty leaves 0.84 of a text; by five words in a row, as Lee et
al. take them, it would leave 0.63, and of a short text nothing. Six bytes are a whole number: no hash can collide.

Broder, On the resemblance and containment of documents, 1997; Lee et al. 2022, arXiv 2107.06499.
Dimension key: `N` texts, `P` permutations, `S` shingles.
"""

from collections.abc import Sequence

import numpy as np

from limbeck.evaluation.data_audit.normal import words
from limbeck.model.progress import progress

PERMUTATIONS = 128
_BYTES = 6
_AT_ONCE = 4096  # shingles of a long text that are hashed at a time: 4 MiB


def shingles(text: str) -> np.ndarray:
    """uint64 [S], the six bytes in a row of a text's words, in order; one of fewer if it is shorter, none if empty."""
    data = np.frombuffer(" ".join(words(text)).encode("utf-8", "surrogatepass"), np.uint8).astype(np.uint64)
    wide = min(len(data), _BYTES)
    shingles_S = np.zeros(len(data) - wide + 1 if wide else 0, np.uint64)
    for k in range(wide):
        shingles_S = (shingles_S << np.uint64(8)) | data[k : k + len(shingles_S)]
    return shingles_S


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The similarity of two sets of shingles, each sorted and without repeats: what both have of what either has."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


def signatures(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """uint32 [N, P]: of each text the least of its shingles' hashes, under each of P hash functions.

    The share of equal numbers in two rows estimates their texts' similarity. A text without words has the greatest.
    """
    rng = np.random.default_rng(seed)
    factor_P1, added_P1 = rng.integers(1 << 64, size=(2, PERMUTATIONS, 1), dtype=np.uint64)
    factor_P1 |= np.uint64(1)
    least_NP = np.full((len(texts), PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    with progress("near copies", len(texts), "text") as advance:
        for i, text in enumerate(texts):
            mixed_S = _mixed(shingles(text))
            for start in range(0, len(mixed_S), _AT_ONCE):
                hashes_PS = (factor_P1 * mixed_S[start : start + _AT_ONCE] + added_P1) >> np.uint64(32)
                least_NP[i] = np.minimum(least_NP[i], hashes_PS.min(axis=1))
            advance()
    return least_NP


def band_width(threshold: float, recall: float = 0.995) -> int:
    """How many numbers of a signature must agree in one of its bands: the most that still meet nearly all pairs.

    Of pairs just as similar as `threshold`, 1 - (1 - threshold^r)^(P / r) agree in all r numbers of some band.
    """
    widths = range(1, PERMUTATIONS + 1)
    return max([r for r in widths if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= recall], default=1)


def band_keys(signatures_NP: np.ndarray, start: int, width: int) -> np.ndarray:
    """uint64 [N], equal where the `width` numbers of a signature from `start` on are."""
    key_N = np.zeros(len(signatures_NP), np.uint64)
    for number_N in signatures_NP[:, start : start + width].T:
        key_N = _mixed(key_N ^ number_N)
    return key_N


def _mixed(x: np.ndarray) -> np.ndarray:
    """Bits that depend on all bits of x (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
