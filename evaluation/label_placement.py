"""Where a plot's labels go so that none covers another."""

from collections.abc import Sequence

import numpy as np


def spread_apart(places: Sequence[float] | np.ndarray, gap: float) -> np.ndarray:
    """Numbers moved as little as needed (least squares) for neighbours to be `gap` apart, in their order."""
    order = np.argsort(places, kind="stable")
    # Less their rank's gap, the moved numbers must not fall: isotonic regression, by pooling neighbours.
    pools: list[list[float]] = []
    for rank, index in enumerate(order):
        pools.append([float(places[index]) - rank * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    result = np.empty(len(order))
    result[order] = [np.mean(pool) for pool in pools for _ in pool] + gap * np.arange(len(order))
    return result


def place_labels(
    anchors: np.ndarray, sizes: np.ndarray, bounds: Sequence[float], obstacles: np.ndarray
) -> np.ndarray:
    """Centres [n, 2] of labels near `anchors` [n, 2], clear of each other and of `obstacles` [m, 4].

    `sizes` [n, 2]; `bounds` and each obstacle are (x0, y0, x1, y1); all lengths in points. Greedy: from the
    top down, each label takes the spot with the least overlap, the nearest of those.
    """
    angles = np.arange(16) * np.pi / 8
    reaches = np.array([9.0, 15.0, 23.0, 33.0, 46.0, 62.0, 80.0])
    reach = np.repeat(reaches, len(angles))
    spokes = np.tile(np.stack([np.cos(angles), np.sin(angles)], axis=1), (len(reaches), 1))
    low, high = np.asarray(bounds[:2], dtype=float), np.asarray(bounds[2:], dtype=float)
    taken = np.asarray(obstacles, dtype=float).reshape(-1, 4)
    centres = np.zeros(anchors.shape)
    for index in np.lexsort((anchors[:, 0], -anchors[:, 1])):
        half = sizes[index] / 2
        candidates = anchors[index] + spokes * (reach[:, None] + [half[0], half[1] * 0.6])
        start, stop = candidates - half, candidates + half
        overlap = np.minimum(stop[:, None], taken[:, 2:]) - np.maximum(start[:, None], taken[:, :2])
        area = np.prod(np.maximum(overlap, 0), axis=-1).sum(axis=1)
        outside = (np.maximum(low - start, 0) + np.maximum(stop - high, 0)).sum(axis=1)
        # Of spots equally near, one beside the point reads better than one above it.
        faults = 100 * (area > 0) + 10 * area + 100 * outside
        best = int(np.argmin(faults + reach - 2 * np.abs(spokes[:, 0])))
        centres[index] = candidates[best]
        taken = np.vstack([taken, np.concatenate([start[best], stop[best]])])
    return centres
