"""How differently a task's answers fare in the groups of its records, such as dialects or authors.

The largest difference between groups is above 0 by chance alone, and in resamples above what it is. So the verdict is
that of a permutation test: how large a difference chance gives to groups that are dealt anew. The interval goes down
to 0 where chance may be all, and else to the lower end of the bootstrap's or of its mirror image about the value: as
simulated, for three groups of 20 to 50 records, it covers what is so in 93 to 97 %.

Dimension key: `N` records, `O` options, `R` resamples.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from limbeck.evaluation.bias.group_statistics import BINS
from limbeck.evaluation.bias.rows import STATISTICS, BiasRow, row, share_row
from limbeck.tasks.intervals import bootstrap, some
from limbeck.tasks.label_metrics import normalise
from limbeck.tasks.probability_metrics import calibration_error

CAVEATS = (
    "Groups can differ in how hard their records are, which no model is to blame for; and a gap that is not "
    "distinguishable may be one that so few records cannot show."
)

_FEWEST = 10  # records of a group that is compared with others
_SHUFFLES = 1000
_DRAWN_AT_ONCE = 1 << 20  # numbers held by one batch of shuffles


def group_rows(
    groups: Sequence[str],
    right: Sequence[str],
    answers: Sequence[str],
    probabilities: ArrayLike | None = None,
    *,
    labels: Sequence[str] = (),
) -> list[BiasRow]:
    """Rows of N records with these groups, right answers, answers and, if there are any, probabilities [N, O].

    `group_accuracy` of each group of two records or more (group; Wilson's interval, no ideal). Of the groups with at
    least ten, if there are two: `group_worst`, the lowest accuracy (no ideal; the lowest of several is low by chance,
    too), `group_gap`, the largest less the smallest (ideal 0). With `labels` (a classification's options)
    `group_tpr_gap` and `group_fpr_gap`, the gaps of true and false positive rates (Hardt et al. 2016, arXiv
    1610.02413: equal opportunity is the first, equalised odds are both), of two labels for the second alone, else the
    mean over labels. With probabilities `group_calibration`, the expected calibration error of the largest in ten bins
    (Guo et al. 2017; group; ideal 0, told from 0 if it is above 95 % of what a calibrated model would have), and
    `group_calibration_gap`. A gap is told from 0 if it is above 95 % of those of groups that are dealt anew: among all
    records, and for true and false positives among those with the same right answer. Which rows there are hangs on
    the records alone. No records is a UserError.
    """
    names_N = np.array([normalise(group) or "(no group)" for group in groups], dtype=object)
    hits_N = np.array([normalise(a) == normalise(b) for a, b in zip(answers, right, strict=True)], np.float64)
    some(len(names_N))
    sizes = {name: int((names_N == name).sum()) for name in sorted(set(names_N))}
    rows = [
        share_row("group_accuracy", 2 * hits_N[names_N == name] - 1, group=name, ideal=None)
        for name, size in sizes.items()
        if size >= 2
    ]
    large = [name for name, size in sizes.items() if size >= _FEWEST]
    kept_N = np.isin(names_N, large)
    index_M = np.array([large.index(name) for name in names_N[kept_N]], np.float64)
    confidence_N = None if probabilities is None else np.asarray(probabilities, np.float64).max(axis=1)
    if len(large) >= 2:
        items = np.stack([index_M, hits_N[kept_N]], axis=1)
        rows += [_worst_row(items, large), _gap_row("group_gap", items, "rate_gap")]
        if labels:
            right_N, said_N = _indexes(right, labels), _indexes(answers, labels)
            items = np.stack([index_M, right_N[kept_N], said_N[kept_N]], axis=1)
            rows += [_gap_row(f"group_{rate}", items, rate, items[:, 1]) for rate in ("tpr_gap", "fpr_gap")]
    if confidence_N is not None:
        rows += [_calibration_row(confidence_N[names_N == name], hits_N[names_N == name], name) for name in large]
        if len(large) >= 2:
            items = np.stack([index_M, confidence_N[kept_N], hits_N[kept_N]], axis=1)
            rows.append(_gap_row("group_calibration_gap", items, "calibration_gap"))
    return rows


def chance_limit(value: float, by_chance: ArrayLike) -> float:
    """What 95 % of values [R] by chance and `value` itself do not exceed: a value above it is told from chance.

    Where the value comes about as those do, it is above it in at most 5 % of cases, whatever R.
    """
    sorted_R = np.sort([*np.asarray(by_chance, np.float64), value])
    return float(sorted_R[int(np.ceil(0.95 * len(sorted_R))) - 1])


def chance_row(
    probe: str,
    items: np.ndarray,
    statistic: str,
    by_chance: ArrayLike,
    who: str,
    *,
    group: str = "",
    interval: tuple[float, float] | None = None,
) -> BiasRow:
    """A row of a statistic that is never below 0, its ideal, and above it by chance: as far as `by_chance` [R] says.

    `who` is who has those values; `interval` is one that allows for chance already.
    """
    value = float(STATISTICS[statistic](items[None])[0])
    low, high = interval or bootstrap(items, STATISTICS[statistic])
    if interval is None:
        low = max(0.0, min(low, 2 * value - high))
    limit = chance_limit(value, by_chance)
    away = value > limit + 1e-9  # equal values can differ by their rounding
    note = f"{'away' if away else 'not distinguishable'} from 0: {who} have up to {limit:.3g} by chance"
    ci95 = (low if away else 0.0, high)
    return BiasRow(probe, group, value, ci95, len(items), 0.0, note, statistic, items)


def _indexes(answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """The place of each answer among the labels that are counted: all, or of two labels the second; -1 for others."""
    counted = [normalise(label) for label in (labels[1:] if len(labels) == 2 else labels)]
    place = {label: i for i, label in enumerate(counted)}
    return np.array([place.get(normalise(answer), -1) for answer in answers], np.float64)


def _worst_row(items_N2: np.ndarray, names: Sequence[str]) -> BiasRow:
    lowest = int(np.argmin([items_N2[items_N2[:, 0] == i, 1].mean() for i in range(len(names))]))
    found = row("group_worst", items_N2, ideal=None, statistic="lowest_rate")
    return replace(found, note=f"that of {names[lowest]}")


def _gap_row(probe: str, items: np.ndarray, statistic: str, strata_N: np.ndarray | None = None) -> BiasRow:
    strata_N = np.zeros(len(items)) if strata_N is None else strata_N
    rng = np.random.default_rng(0)
    batch = max(1, _DRAWN_AT_ONCE // items.size)
    by_chance = [
        STATISTICS[statistic](_dealt(items, strata_N, min(batch, _SHUFFLES - done), rng))
        for done in range(0, _SHUFFLES, batch)
    ]
    return chance_row(probe, items, statistic, np.concatenate(by_chance), "equal groups")


def _dealt(items_NX: np.ndarray, strata_N: np.ndarray, shuffles: int, rng: np.random.Generator) -> np.ndarray:
    """[R, N, X]: the items, whose groups, the first number, are dealt anew within each stratum."""
    in_order_N = np.argsort(strata_N, kind="stable")
    _, rank_N = np.unique(strata_N, return_inverse=True)
    mixed_RN = np.argsort(rank_N + rng.random((shuffles, len(items_NX))), axis=1)
    dealt = np.repeat(items_NX[None], shuffles, axis=0)
    dealt[:, in_order_N, 0] = items_NX[mixed_RN, 0]
    return dealt


def _calibration_row(confidence_N: np.ndarray, hits_N: np.ndarray, name: str) -> BiasRow:
    drawn_RN = np.random.default_rng(0).random((_SHUFFLES, len(hits_N))) < confidence_N
    items_RN2 = np.stack([np.broadcast_to(confidence_N, drawn_RN.shape), drawn_RN], axis=-1)
    by_chance_R, items_N2 = STATISTICS["calibration"](items_RN2), np.stack([confidence_N, hits_N], axis=1)
    interval = calibration_error(confidence_N, hits_N, BINS).ci95
    return chance_row(
        "group_calibration", items_N2, "calibration", by_chance_R, "calibrated models", group=name, interval=interval
    )
