"""Where a student says what its teacher says, and where it does not."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.tasks.intervals import share
from limbeck.tasks.label_metrics import normalise


def agreement(teacher: Sequence[str], student: Sequence[str]) -> dict[str, Any]:
    """{"value", "ci95", "n"}: the share of records to which both give the same answer, as a metric of a row."""
    found = share(np.array([normalise(a) == normalise(b) for a, b in zip(teacher, student, strict=True)]))
    return {"value": found.value, "ci95": list(found.ci95), "n": found.n}


def by_group(
    groups: Sequence[str], right: Sequence[str], teacher: Sequence[str], student: Sequence[str]
) -> list[dict[str, Any]]:
    """For each group of records: how many, which share the teacher and the student answer rightly, and agreement.

    [{"group", "n", "teacher", "student", "agreement": {"value", "ci95", "n"}}], the least agreed on first.
    """
    rows = []
    for group in dict.fromkeys(groups):
        at = [i for i, each in enumerate(groups) if each == group]
        picked = [[answers[i] for i in at] for answers in (right, teacher, student)]
        rows.append(
            {
                "group": group,
                "n": len(at),
                "teacher": agreement(picked[0], picked[1])["value"],
                "student": agreement(picked[0], picked[2])["value"],
                "agreement": agreement(picked[1], picked[2]),
            }
        )
    return sorted(rows, key=lambda row: row["agreement"]["value"])
