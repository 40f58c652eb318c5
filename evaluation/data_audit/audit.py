"""The audit of a training set: what is in it, of whom, what stands twice, what of a test leaked, what is personal."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.evaluation.bias.mentions import GroupWords, group_counts
from limbeck.evaluation.data_audit.copies import told_copies, told_overlap
from limbeck.evaluation.data_audit.duplicates import near_groups
from limbeck.evaluation.data_audit.items import Item, task_items, text_items
from limbeck.evaluation.data_audit.labels import group_mentions, label_by_group, label_rates, told
from limbeck.evaluation.data_audit.languages import languages, script_shares
from limbeck.evaluation.data_audit.lengths import lengths, summary
from limbeck.evaluation.data_audit.overlap import NGRAM
from limbeck.evaluation.data_audit.personal import personal
from limbeck.tasks.intervals import share
from limbeck.tasks.task import Task

SHOWN = 10  # places of each finding

Splits = dict[str, list[Item]]  # "train" first; every other is held out


def audit_task(
    task: Task,
    *,
    words: GroupWords,
    filtered: Sequence[tuple[str, int]] = (),
    ngram: int = NGRAM,
) -> dict[str, Any]:
    """What is in a task's records, as JSON: see `audit_texts`, and "labels", "label_by_group" where answers are labels.

    Records are told by id, and looked at without the words of the template: the fields that the query shows, and the
    answer too where it is text. "filtered" are reasons and counts of what was left out before.
    """
    splits = {split: task_items(task, records) for split, records in task.splits.items() if records}
    splits = {"train": splits.pop("train"), **splits}
    numbers = {"answers": _numbers(task)} if task.kind == "regression" else {}
    skipped = {"count": len(task.skipped), "lines": list(task.skipped[:SHOWN])}
    return {
        "name": task.name,
        "kind": task.kind,
        **_audit(splits, task.options or (), words, ngram),
        **numbers,
        "skipped": skipped,
        "filtered": [{"reason": reason, "count": count} for reason, count in filtered],
    }


def audit_texts(
    texts: Sequence[str],
    held_out: Sequence[str] = (),
    *,
    words: GroupWords,
    places: Sequence[str] | None = None,
    filtered: Sequence[tuple[str, int]] = (),
    ngram: int = NGRAM,
) -> dict[str, Any]:
    """What is in texts to pretrain on, as JSON, and what of held-out ones stands in them.

    {"records", "lengths", "scripts", "languages" (by split), "groups" (of the training texts), "duplicates" (all
    splits), "overlap" (of each held-out split with the training texts), "personal", "skipped", "filtered"}. What
    estimates a share is {"value", "ci95", "n"}. The same texts give the same audit. `places` are names of the training
    texts, if they have any; `ngram` is the length in words of what counts as leaked.
    """
    splits = {"train": text_items(texts, "train", places), "test": text_items(held_out, "test")}
    splits = {split: items for split, items in splits.items() if items or split == "train"}
    return {
        **_audit(splits, (), words, ngram),
        "skipped": {"count": 0, "lines": []},
        "filtered": [{"reason": reason, "count": count} for reason, count in filtered],
    }


def _audit(splits: Splits, options: Sequence[str], words: GroupWords, ngram: int) -> dict[str, Any]:
    train = splits["train"]
    labels = {
        split: [item.labels for item in items if item.labels is not None] for split, items in splits.items()
    }
    written = {split: [item.written for item in items] for split, items in splits.items()}
    measured = {split: lengths(texts) for split, texts in written.items()}
    counts = group_counts([item.text for item in train], words)
    counts_written = group_counts(written["train"], words)
    everything = [item for items in splits.values() for item in items]
    near = near_groups([item.text for item in everything])
    found: dict[str, Any] = {
        "records": {split: len(items) for split, items in splits.items()},
        "lengths": measured,
        "scripts": {split: script_shares(texts) for split, texts in written.items()},
        "languages": {split: _languages(texts) for split, texts in written.items()},
    }
    if options:
        found["labels"] = {split: label_rates(each, options) for split, each in labels.items()}
    total = measured["train"]["words"]["total"] if train else 0
    found["groups"] = group_mentions(counts_written, int(total)) if train else {}
    if options:
        found["label_by_group"] = label_by_group(labels["train"], options, counts)
    return {
        **found,
        "duplicates": told_copies(splits, near, SHOWN),
        "overlap": told_overlap(splits, near, ngram, SHOWN),
        "personal": _personal(everything),
    }


def _languages(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    told_N = np.array(languages(texts))
    counts = collections.Counter(told_N.tolist())
    return {
        language: told(share(told_N == language)) for language in sorted(counts, key=lambda each: (-counts[each], each))
    }


def _personal(items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    found: Mapping[str, list[tuple[int, str]]] = personal([item.written for item in items])
    return {
        kind: {
            "found": len(each),
            "records": len({i for i, _ in each}),
            "where": [{"place": items[i].place, "shown": shown} for i, shown in each[:SHOWN]],
        }
        for kind, each in found.items()
    }


def _numbers(task: Task) -> dict[str, dict[str, float]]:
    return {
        split: summary([task.number(record) for record in records])
        for split, records in task.splits.items()
        if records
    }
