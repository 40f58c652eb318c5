"""What rows about groups are statistics of: resamples of items in, one number for each resample out.

Dimension key: `R` resamples, `N` items, `G` groups, `L` labels, `C` cells of a table.
"""

import numpy as np

BINS = 10  # of a calibration error


def rate_gap(items_RN2: np.ndarray) -> np.ndarray:
    """[R] the largest mean less the smallest, of items (group's index, value)."""
    return _spread(_means(items_RN2))


def lowest_rate(items_RN2: np.ndarray) -> np.ndarray:
    """[R] the smallest mean of a group, of items (group's index, value)."""
    return np.nanmin(_means(items_RN2), axis=1)


def tpr_gap(items_RN3: np.ndarray) -> np.ndarray:
    """[R] the gap of true positive rates, of items (group's index, right label, answered label).

    A group's rate for a label is the share of its records of that label that are answered so; the gap is the largest
    rate less the smallest, in the mean over the labels that two groups or more have records of. -1 is no label.
    """
    n_RGL, hits_RGL, _ = _tables(items_RN3)
    return _mean_gap(hits_RGL, n_RGL)


def fpr_gap(items_RN3: np.ndarray) -> np.ndarray:
    """[R] the gap of false positive rates, of items as `tpr_gap` has them: records of other labels answered so."""
    n_RGL, hits_RGL, said_RGL = _tables(items_RN3)
    size_RG1 = _cells(items_RN3[..., 0], n_RGL.shape[1])[..., None]
    return _mean_gap(said_RGL - hits_RGL, size_RG1 - n_RGL)


def calibration(items_RN2: np.ndarray) -> np.ndarray:
    """[R] the expected calibration error in ten bins of equal width, of items (confidence, hit)."""
    return _calibration(np.zeros(items_RN2.shape[:2]), items_RN2, 1)[:, 0]


def calibration_gap(items_RN3: np.ndarray) -> np.ndarray:
    """[R] the largest calibration error of a group less the smallest, of items (group's index, confidence, hit)."""
    group_RN = items_RN3[..., 0]
    return _spread(_calibration(group_RN, items_RN3[..., 1:], int(group_RN.max()) + 1))


def first_share(items_RNG: np.ndarray) -> np.ndarray:
    """[R] the first group's share of all counts, of items (counts of each group); of no counts an equal share."""
    return _shares(items_RNG)[:, 0]


def total_variation(items_RN2G: np.ndarray) -> np.ndarray:
    """[R] the total variation distance of shares, of items (counts of each group; the shares to hold them against).

    Of no counts it is 0.
    """
    counts_RNG, held_RG = items_RN2G[:, :, 0], items_RN2G[:, :, 1].mean(axis=1)
    some_R1 = counts_RNG.sum(axis=(1, 2))[:, None] > 0
    return 0.5 * np.abs(np.where(some_R1, _shares(counts_RNG), held_RG) - held_RG).sum(axis=1)


def _means(items_RN2: np.ndarray) -> np.ndarray:
    """[R, G], NaN for a group that was not drawn."""
    group_RN, value_RN = np.moveaxis(items_RN2, -1, 0)
    groups = int(group_RN.max()) + 1
    return _divided(_cells(group_RN, groups, value_RN), _cells(group_RN, groups))


def _tables(items_RN3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[R, G, L] each: records of a label, those of them answered so, and all that are answered so."""
    group_RN, right_RN, said_RN = np.moveaxis(items_RN3, -1, 0)
    groups, columns = int(group_RN.max()) + 1, max(int(items_RN3[..., 1:].max()), 0) + 2  # the first is no label's
    hit_RN = (right_RN == said_RN).astype(np.float64)

    def table(label_RN: np.ndarray, weight_RN: np.ndarray | None = None) -> np.ndarray:
        counts_RC = _cells(group_RN * columns + label_RN + 1, groups * columns, weight_RN)
        return counts_RC.reshape(-1, groups, columns)[..., 1:]

    return table(right_RN), table(right_RN, hit_RN), table(said_RN)


def _mean_gap(hits_RGL: np.ndarray, n_RGL: np.ndarray) -> np.ndarray:
    rate_RGL = _divided(hits_RGL, n_RGL)
    told_R1L = np.isfinite(rate_RGL).sum(axis=1, keepdims=True) >= 2
    gap_RL = _spread(np.where(told_R1L, rate_RGL, 0.0))
    return gap_RL.sum(axis=1) / np.maximum(told_R1L.sum(axis=(1, 2)), 1)


def _calibration(group_RN: np.ndarray, items_RN2: np.ndarray, groups: int) -> np.ndarray:
    """[R, G], NaN for a group that was not drawn."""
    confidence_RN, hit_RN = np.moveaxis(items_RN2, -1, 0)
    bin_RN = np.maximum(np.ceil(confidence_RN * BINS) - 1, 0)
    error_RC = _cells(group_RN * BINS + bin_RN, groups * BINS, hit_RN - confidence_RN)
    error_RG = np.abs(error_RC.reshape(-1, groups, BINS)).sum(axis=2)
    return _divided(error_RG, _cells(group_RN, groups))


def _shares(counts_RNG: np.ndarray) -> np.ndarray:
    counts_RG = counts_RNG.sum(axis=1)
    equal = np.full_like(counts_RG, 1 / counts_RG.shape[1])
    total_R1 = counts_RG.sum(axis=1, keepdims=True)
    return np.divide(counts_RG, total_R1, out=equal, where=total_R1 > 0)


def _spread(rates_RG: np.ndarray) -> np.ndarray:
    return np.nanmax(rates_RG, axis=1) - np.nanmin(rates_RG, axis=1)


def _divided(sums: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.divide(sums, n, out=np.full(sums.shape, np.nan), where=n > 0)


def _cells(cell_RN: np.ndarray, cells: int, weight_RN: np.ndarray | None = None) -> np.ndarray:
    """[R, C] how many items, or how much of their weight, fall into each cell."""
    resamples = len(cell_RN)
    flat = (cell_RN.astype(np.int64) + cells * np.arange(resamples)[:, None]).ravel()
    weights = None if weight_RN is None else weight_RN.ravel()
    return np.bincount(flat, weights, minlength=resamples * cells).reshape(resamples, cells).astype(np.float64)
