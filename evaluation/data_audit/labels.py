"""How often each label is given, and to whom: where a text speaks of a group, and where it does not.

Dimension key: `N` records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from limbeck.evaluation.paired import paired_difference
from limbeck.tasks.intervals import Score, share, share_difference

Labels = Sequence[tuple[str, ...]]  # of each record: one, or of a multi-label task any number


def label_rates(labels: Labels, options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each option the share of records with that label: {"value", "ci95", "n"}, by Wilson's interval."""
    return {option: told(share(given(labels, option))) for option in options}


def group_mentions(counts: Mapping[str, np.ndarray], words: int) -> dict[str, dict[str, Any]]:
    """Of each group the records that mention it: their share, and how often they do in a thousand of all `words`."""
    return {
        group: {
            "records": told(share(count_N > 0)),
            "mentions": int(count_N.sum()),
            "per_1000_words": 1000 * int(count_N.sum()) / max(words, 1),
        }
        for group, count_N in counts.items()
    }


def label_by_group(labels: Labels, options: Sequence[str], counts: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Of each group and label: the rate where a record mentions the group, and its difference from all other records.

    `counts` are mentions [N] by group. [{"group", "label", "rate", "others", "difference"}], each of the three
    {"value", "ci95", "n"}; intervals by Wilson, of the difference by Newcombe. A group that fewer than two records
    mention, or all but fewer than two, is left out. Many rows mean that some differ by chance: one in twenty.
    """
    rows = []
    for group, count_N in counts.items():
        in_N = np.asarray(count_N) > 0
        if min(in_N.sum(), (~in_N).sum()) < 2:
            continue
        for option in options:
            hits_N = given(labels, option)
            rows.append(
                {
                    "group": group,
                    "label": option,
                    "rate": told(share(hits_N[in_N])),
                    "others": told(share(hits_N[~in_N])),
                    "difference": told(share_difference(hits_N[in_N], hits_N[~in_N])),
                }
            )
    return rows


def label_shift(
    gold: Labels, teacher: Sequence[Labels], options: Sequence[str], counts: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """By how much more often a teacher gives each label than the data does, on all records and on each group's.

    `gold` and `teacher` [N] are of the same records; of the teacher's each is the labels of its one answer or more,
    whose mean counts. [{"group" ("" for all), "label", "gold", "teacher", "shift"}], the shift {"value", "ci95", "n"}
    with a paired interval: Tango's, or the bootstrap's where answers are several. A group of fewer than two is left
    out.
    """
    rows = []
    whole = {"": np.ones(len(gold), np.int64)}
    for group, count_N in (whole | dict(counts)).items():
        in_N = np.asarray(count_N) > 0
        if in_N.sum() < 2:
            continue
        for option in options:
            gold_N = given(gold, option)[in_N].astype(np.float64)
            teacher_N = np.array([np.mean([option in each for each in answers]) for answers in teacher])[in_N]
            rows.append(
                {
                    "group": group,
                    "label": option,
                    "gold": float(gold_N.mean()),
                    "teacher": float(teacher_N.mean()),
                    "shift": told(paired_difference(teacher_N, gold_N)),
                }
            )
    return rows


def given(labels: Labels, option: str) -> np.ndarray:
    """bool [N]: which records have that label."""
    return np.array([option in each for each in labels], bool)


def told(score: Score) -> dict[str, Any]:
    """A score as JSON has it: {"value", "ci95", "n"}."""
    return {**asdict(score), "ci95": list(score.ci95)}
