"""Texts that stand twice: to the letter, or nearly. Dimension key: `N` texts, `P` permutations."""

import functools
import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from limbeck.evaluation.data_audit.minhash import (
    PERMUTATIONS,
    band_keys,
    band_width,
    jaccard,
    shingles,
    signatures,
)
from limbeck.evaluation.data_audit.normal import folded, words
from limbeck.model.progress import progress

Groups = list[tuple[int, ...]]  # the indices of each group in order, the groups by their first

THRESHOLD = 0.8
_GROUPS, _MEMBERS = 64, 16  # of one bucket, that a text is compared with: or a bucket of thousands took their square
_LOOKED_AT = 1000  # of one group, for each text that is asked about
_DOUBT = 4.0  # standard errors of an estimated similarity below the threshold at which none is looked up exactly

Key = TypeVar("Key", bound=Hashable)


def exact_groups(texts: Sequence[str]) -> Groups:
    """The texts that are the same but for case, white space and Unicode form; groups of two and more."""
    return [group for group in _by_key([folded(text) for text in texts]) if len(group) > 1]


def near_groups(texts: Sequence[str], threshold: float = THRESHOLD, seed: int = 0) -> Groups:
    """Texts that are similar by `threshold` or more to another of their group; exact copies are among them.

    A text without words is in none. A group is what is connected by such pairs. They are found by MinHash (bands of a
    signature that agree) and each checked by its true similarity: none is false, and of those just at the threshold
    at most one in 200 is missed. Memory is linear. The same seed gives the same groups.
    """
    normal = [" ".join(words(text)) for text in texts]
    copies = [group for group in _by_key(normal) if normal[group[0]]]
    distinct = [normal[group[0]] for group in copies]
    signatures_NP = signatures(distinct, seed)
    parent = list(range(len(distinct)))
    width = band_width(threshold)
    starts = range(0, PERMUTATIONS - width + 1, width)
    exactly = functools.lru_cache(maxsize=4096)(lambda i: np.unique(shingles(distinct[i])))
    doubt = _DOUBT * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    with progress("near copies compared", len(starts), "band") as advance:
        for start in starts:
            for bucket in _buckets(band_keys(signatures_NP, start, width)):
                groups: dict[int, list[int]] = {}
                for i in bucket:
                    for j in _candidates(groups, _root(parent, i)):
                        a, b = _root(parent, i), _root(parent, j)
                        if a == b or (signatures_NP[i] == signatures_NP[j]).mean() < threshold - doubt:
                            continue
                        if jaccard(exactly(i), exactly(j)) >= threshold:
                            parent[max(a, b)] = min(a, b)
                            groups[min(a, b)] = groups.pop(a, []) + groups.pop(b, [])
                    groups.setdefault(_root(parent, i), []).append(i)
            advance()
    members: dict[int, list[int]] = {}
    for i, group in enumerate(copies):
        members.setdefault(_root(parent, i), []).extend(group)
    return sorted(tuple(sorted(group)) for group in members.values() if len(group) > 1)


def first_alike(texts: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Of each text the first of `among` whose true similarity with it is `THRESHOLD` or more; None where none is.

    For the members of one group of `near_groups`, since a group holds texts that are similar by way of others alone.
    Of `among` only the first thousand that differ in their words are looked at: in a group of many thousands, a text
    that is like later ones alone has none.
    """
    first: dict[str, int] = {}
    for j, text in enumerate(among):
        first.setdefault(" ".join(words(text)), j)

    @functools.cache
    def exactly(j: int) -> np.ndarray:
        return np.unique(shingles(among[j]))

    found = []
    for text in texts:
        own = np.unique(shingles(text))
        looked_at = itertools.islice(first.values(), _LOOKED_AT)
        found.append(next((j for j in looked_at if jaccard(own, exactly(j)) >= THRESHOLD), None))
    return found


def extra(groups: Groups) -> int:
    """How many texts could go so that one of each group stays."""
    return sum(len(group) - 1 for group in groups)


def _by_key(keys: Sequence[Key]) -> Groups:
    found: dict[Key, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return [tuple(group) for group in found.values()]


def _buckets(key_N: np.ndarray) -> Iterator[list[int]]:
    """The indices of equal keys, where there are two and more."""
    order_N = np.argsort(key_N, kind="stable")
    cuts = np.flatnonzero(np.diff(key_N[order_N])) + 1
    bounds = np.concatenate([[0], cuts, [len(key_N)]])
    for k in np.flatnonzero(np.diff(bounds) > 1):
        yield order_N[bounds[k] : bounds[k + 1]].tolist()


def _candidates(groups: dict[int, list[int]], own: int) -> list[int]:
    latest = itertools.islice(reversed(groups.items()), _GROUPS)
    return [j for root, members in latest if root != own for j in members[-_MEMBERS:]]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
