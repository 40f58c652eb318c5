"""Copies within the training set and leaks of held-out sets into it, told by the places of records."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.evaluation.data_audit.duplicates import THRESHOLD, Groups, exact_groups, extra, first_alike, near_groups
from limbeck.evaluation.data_audit.items import Item
from limbeck.evaluation.data_audit.labels import told
from limbeck.evaluation.data_audit.overlap import covered, same_texts
from limbeck.model.progress import no_progress
from limbeck.tasks.intervals import share

Splits = Mapping[str, Sequence[Item]]  # "train" first; every other is held out


def told_copies(splits: Splits, near: Groups, shown: int) -> dict[str, Any]:
    """{"exact", "near"} of each split, the largest groups first, and {"contradictions"}: equal texts, other answers.

    `near` are the groups of similar texts over all splits, one after the other. Each has "groups", and "extra", how
    many records could go so that one of each group stays; "where" lists places of the largest groups.
    """
    found = {}
    for split, (items, groups) in _within(splits, near).items():
        exact = exact_groups([item.text for item in items])
        differing = [group for group in exact if len({items[i].answer for i in group}) > 1]
        found[split] = {
            "exact": _told_groups(exact, items, shown),
            "contradictions": {**_told_groups(differing, items, shown), "records": sum(map(len, differing))},
            "near": {"threshold": THRESHOLD, **_told_groups(groups, items, shown)},
        }
    return found


def told_overlap(splits: Splits, near: Groups, ngram: int, shown: int) -> dict[str, Any]:
    """Of each held-out split what stands in the training set: whole, nearly, as `ngram` words in a row.

    "exact" are the same texts, and "other_answer" those of them whose answer none has there; "near" are similar to one
    of training themselves (see `first_alike`), not by way of others of their group, the same ones left out; "ngram" of
    records with at least `ngram` words those with any n-gram there, and the mean share of n-grams; "short" of the other
    records those whose whole text stands inside a training text, which a few words may do by chance.
    """
    train = splits["train"]
    starts = np.cumsum([0, *(len(items) for items in splits.values())]).tolist()
    found = {}
    for (split, items), start in zip(splits.items(), starts, strict=False):
        if split == "train" or not train:
            continue
        equal = same_texts([item.text for item in train], [item.text for item in items])
        same = [(i, sources[0]) for i, sources in equal.items()]
        other = [(i, j) for i, j in same if items[i].answer not in {train[k].answer for k in equal[i]}]
        similar = _similar(near, train, items, start, set(equal))
        leak = covered([item.written for item in train], [item.text for item in items], ngram)
        long_N, met_N = ~leak.short_N, leak.share_N > 0
        short_N = leak.short_N & ~np.isnan(leak.share_N)
        order = sorted(np.flatnonzero(long_N & met_N).tolist(), key=lambda i: (-leak.share_N[i], i))
        source = leak.source_N.tolist()
        found[split] = {
            "records": len(items),
            "exact": {**_rate(len(same), len(items)), "where": _told_pairs(same, items, train, shown)},
            "other_answer": {"count": len(other), "where": _told_pairs(other, items, train, shown)},
            "near": {**_rate(len(similar), len(items)), "where": _told_pairs(similar, items, train, shown)},
            "ngram": {
                "words": ngram,
                **_rate(int((long_N & met_N).sum()), int(long_N.sum())),
                "mean_covered": float(leak.share_N[long_N].mean()) if long_N.any() else None,
                "where": [
                    {**pair, "covered": float(leak.share_N[i])}
                    for i, pair in zip(
                        order, _told_pairs([(i, source[i]) for i in order], items, train, shown), strict=False
                    )
                ],
            },
            "short": _rate(int((short_N & (leak.share_N == 1)).sum()), int(short_N.sum())),
        }
    return found


def _within(splits: Splits, near: Groups) -> dict[str, tuple[Sequence[Item], Groups]]:
    """The items of each split, and the groups that are in it, by its own indices."""
    found, start = {}, 0
    for split, items in splits.items():
        groups: Groups = []
        for group in near:
            part = [i - start for i in group if 0 <= i - start < len(items)]
            if len(part) == len(group):
                groups.append(tuple(part))
            elif len(part) > 1:  # what is alike by way of another split's text alone is no group here
                with no_progress():
                    groups += [tuple(part[i] for i in each) for each in near_groups([items[i].text for i in part])]
        found[split] = items, groups
        start += len(items)
    return found


def _similar(
    near: Groups, train: Sequence[Item], items: Sequence[Item], start: int, same: set[int]
) -> list[tuple[int, int]]:
    """(held out, training) for each of the items, the first of which is number `start` of all, that has one alike."""
    pairs = []
    for group in near:
        known = [i for i in group if i < len(train)]
        asked = [i - start for i in group if 0 <= i - start < len(items) and i - start not in same]
        if known and asked:
            alike = first_alike([items[i].text for i in asked], [train[i].text for i in known])
            pairs += [(i, known[j]) for i, j in zip(asked, alike, strict=True) if j is not None]
    return sorted(pairs)


def _told_groups(groups: Groups, items: Sequence[Item], shown: int) -> dict[str, Any]:
    largest = sorted(groups, key=lambda group: (-len(group), group))
    where = [
        {"records": len(group), "places": [items[i].place for i in group[:shown]]} for group in largest[:shown]
    ]
    return {"groups": len(groups), "extra": extra(groups), "where": where}


def _told_pairs(
    pairs: Sequence[tuple[int, int]], items: Sequence[Item], train: Sequence[Item], shown: int
) -> list[dict[str, Any]]:
    return [{"place": items[i].place, "source": train[j].place} for i, j in pairs[:shown]]


def _rate(hits: int, n: int) -> dict[str, Any]:
    return {"count": hits, "share": told(share(np.arange(n) < hits)) if n else None}
