"""How well labels were chosen: one a record, or a set of them.

Dimension key: `N` records, `R` resamples, `C` classes, `I` memberships (a record's label, predicted or right).
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from limbeck.model.errors import UserError, one_of
from limbeck.tasks.intervals import Score, bootstrap_counts, share, some

NO_LABELS = "none"  # the text of the empty set


def normalise(answer: str) -> str:
    """The form in which two answers are compared: Unicode NFC, no white space around it."""
    return unicodedata.normalize("NFC", answer).strip()


def correct(predictions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """bool [N]: which predictions equal their answers, both normalised. No records is a UserError."""
    some(len(answers))
    return np.array([normalise(p) == normalise(a) for p, a in zip(predictions, answers, strict=True)])


def accuracy(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The share of exact matches after `normalise`, with Wilson's interval. No records is a UserError.

    Of sets of labels, as `join_labels` writes them, it is the subset accuracy: the whole set must be right.
    """
    return share(correct(predictions, answers))


def macro_f1(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The unweighted mean of F1 over the classes met in predictions or answers, with a bootstrap interval.

    No records is a UserError.
    """
    return _mean_f1(*([frozenset([normalise(text)]) for text in texts] for texts in (predictions, answers)))


def matthews(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The Matthews correlation of any number of classes (Gorodkin 2004), with a bootstrap interval.

    It is in [-1, 1]; 0, no better than chance, also where predictions or answers are all of one class.
    No records is a UserError.
    """
    n = some(len(answers))
    pairs = [(normalise(p), normalise(a)) for p, a in zip(predictions, answers, strict=True)]
    classes, codes = np.unique(np.array(pairs, dtype=object), return_inverse=True)
    codes_N2 = codes.reshape(n, 2)
    hit_N = codes_N2[:, 0] == codes_N2[:, 1]

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        predicted_RC = _sums_by_class(counts_RN, codes_N2[:, 0], len(classes))
        right_RC = _sums_by_class(counts_RN, codes_N2[:, 1], len(classes))
        covariance_R = n * (counts_RN @ hit_N) - (predicted_RC * right_RC).sum(axis=1)
        spread_R = np.sqrt((n**2 - (predicted_RC**2).sum(axis=1)) * (n**2 - (right_RC**2).sum(axis=1)))
        return np.divide(covariance_R, spread_R, out=np.zeros_like(spread_R), where=spread_R > 0)

    return _score(n, statistic, width=len(classes))


def split_labels(text: str) -> frozenset[str]:
    """The labels of "joy, love", each normalised; "none" and "" are the empty set."""
    labels = (normalise(label) for label in re.split(r",(?:\s|$)", normalise(text)))
    return frozenset(label for label in labels if label and label != NO_LABELS)


def join_labels(labels: Iterable[str], options: Sequence[str]) -> str:
    """Labels as one text, in the order of the options: "joy, love", or "none" for the empty set.

    Raises UserError for a label that is no option, and for one that `split_labels` could not give back.
    """
    chosen = {one_of("label", label, options) for label in labels}
    for label in chosen:
        if split_labels(label) != {normalise(label)}:
            raise UserError(
                f"label {label!r} cannot stand in a list of labels, which is joined by ', ' and {NO_LABELS!r} when"
                " empty: rename it"
            )
    return ", ".join(option for option in options if option in chosen) or NO_LABELS


def micro_f1(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """F1 of all labels of all records together, with a bootstrap interval over records.

    Each text is labels as `join_labels` writes them; nothing predicted where nothing was right is 1. No records
    is a UserError.
    """
    n = some(len(answers))
    met = _memberships(*([split_labels(text) for text in texts] for texts in (predictions, answers)))
    hits_N, all_N = (np.bincount(met.record_I, weights, minlength=n) for weights in (2 * met.both_I, 1 + met.both_I))
    return _score(n, lambda counts_RN: _ratio(counts_RN @ hits_N, counts_RN @ all_N))


def label_macro_f1(predictions: Sequence[str], answers: Sequence[str]) -> Score:
    """The unweighted mean of each label's F1, over the labels met, with a bootstrap interval over records.

    Each text is labels as `join_labels` writes them; nothing predicted where nothing was right is 1. No records
    is a UserError.
    """
    return _mean_f1(*([split_labels(text) for text in texts] for texts in (predictions, answers)))


class _Memberships(NamedTuple):
    """Sorted by class, each of which starts at its place in `starts_C`."""

    record_I: np.ndarray
    both_I: np.ndarray  # 1.0 where the label is predicted and right, 0.0 where it is only one of them
    starts_C: np.ndarray


def _memberships(predictions: Sequence[frozenset[str]], answers: Sequence[frozenset[str]]) -> _Memberships:
    pairs = zip(predictions, answers, strict=True)
    rows = sorted((label, i, label in p and label in a) for i, (p, a) in enumerate(pairs) for label in p | a)
    starts = [i for i, (label, _, _) in enumerate(rows) if i == 0 or label != rows[i - 1][0]]
    record_I, both_I = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 2).T
    return _Memberships(record_I, both_I.astype(np.float64), np.array(starts, dtype=np.int64))


def _mean_f1(predictions: Sequence[frozenset[str]], answers: Sequence[frozenset[str]]) -> Score:
    n = some(len(answers))
    met = _memberships(predictions, answers)

    def statistic(counts_RN: np.ndarray) -> np.ndarray:
        counts_RI = counts_RN[:, met.record_I]
        hits_RC, all_RC = (
            np.add.reduceat(counts_RI * weight_I, met.starts_C, axis=1) for weight_I in (2 * met.both_I, 1 + met.both_I)
        )
        f1_RC = np.divide(hits_RC, all_RC, out=np.zeros_like(all_RC), where=all_RC > 0)
        return _ratio(f1_RC.sum(axis=1), (all_RC > 0).sum(axis=1))

    return _score(n, statistic, width=met.record_I.size)


def _sums_by_class(counts_RN: np.ndarray, class_N: np.ndarray, classes: int) -> np.ndarray:
    resamples = len(counts_RN)
    flat = np.bincount(
        (class_N + classes * np.arange(resamples)[:, None]).ravel(), counts_RN.ravel(), resamples * classes
    )
    return flat.reshape(resamples, classes)


def _ratio(part_R: np.ndarray, whole_R: np.ndarray) -> np.ndarray:
    """part / whole, and 1 where there was nothing to find and nothing was said."""
    return np.divide(part_R, whole_R, out=np.ones(len(part_R)), where=whole_R > 0)


def _score(n: int, statistic: Callable[[np.ndarray], np.ndarray], width: int = 1) -> Score:
    return Score(float(statistic(np.ones((1, n)))[0]), bootstrap_counts(n, statistic, width=width), n)
