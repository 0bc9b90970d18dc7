"""Measures of classification and regression under weights of the items, for the bootstrap.

A bootstrap draw is a row of weights: how often each item was drawn. Every function here computes a
measure under all S rows at once. With weights of one they equal scikit-learn, which computes the
values themselves (see `scoring`). A measure is NaN where a draw lacks what it needs.
"""

import numpy as np


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """f64[S]: average precision, sum of (recall step) x precision; ties form one threshold.

    Args:
      scores: f[n]. positive: bool[n]. weights: f[S, n], not negative.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    weights = weights[:, order]
    found = np.cumsum(weights * positive[order], axis=1)[:, ends]
    taken = np.cumsum(weights, axis=1)[:, ends]
    precision = _ratio(found, taken, empty=0.0)
    recall = _ratio(found, found[:, -1:])
    return (np.diff(recall, axis=1, prepend=0.0) * precision).sum(axis=1)


def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """f64[S]: mean of values f[n]."""
    return _ratio(weights @ values.astype(np.float64), weights.sum(axis=1))


def confusion(truth: np.ndarray, chosen: np.ndarray, count: int, weights: np.ndarray) -> np.ndarray:
    """f64[S, C, C]: the weight of items of each true class (rows) and chosen class (columns).

    Args:
      truth, chosen: i[n], from 0 to `count` - 1.
    """
    cell = truth * count + chosen
    # Sums over the items of each cell that occurs: an n x C^2 table of them would be large.
    order = np.argsort(cell, kind="stable")
    cells, starts = np.unique(cell[order], return_index=True)
    table = np.zeros((len(weights), count * count))
    table[:, cells] = np.add.reduceat(weights[:, order], starts, axis=1)
    return table.reshape(-1, count, count)


def balanced_accuracy(table: np.ndarray) -> np.ndarray:
    """f64[S]: mean recall over the classes that occur, from `confusion`."""
    recall = _ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2))
    with np.errstate(invalid="ignore"):
        occurring = np.isfinite(recall).sum(axis=1)
    return _ratio(np.nansum(recall, axis=1), occurring)


def f1(table: np.ndarray) -> np.ndarray:
    """f64[S, C]: F1 of each class, 0 where it is neither true nor chosen, from `confusion`."""
    right = np.diagonal(table, axis1=1, axis2=2)
    return _ratio(2 * right, table.sum(axis=1) + table.sum(axis=2), empty=0.0)


def weighted_f1(table: np.ndarray) -> np.ndarray:
    """f64[S]: F1 averaged over classes by their frequency, from `confusion`."""
    support = table.sum(axis=2)
    return _ratio((f1(table) * support).sum(axis=1), support.sum(axis=1))


def explained_variance(truth: np.ndarray, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """f64[S]: R^2, one minus the squared error over that of the draw's mean.

    NaN for a draw whose items have the same number, up to rounding.
    """
    moved = truth - truth.mean()
    spread = (weights * (moved - mean(moved, weights)[:, None]) ** 2).sum(axis=1)
    rounding = 1e-24 * weights.sum(axis=1) * np.abs(moved).max() ** 2
    error = (weights * (truth - value) ** 2).sum(axis=1)
    return 1 - _ratio(error, np.where(spread > rounding, spread, 0.0))


def calibration_error(
    confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, *, bins: int
) -> np.ndarray:
    """f64[S]: expected calibration error over equal bins of confidence (Guo et al. 2017, eq. 3).

    Args:
      confidence: f[n] from 0 to 1. right: bool[n]. weights: f[S, n].
    """
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.zeros((len(place), bins))
    gap[np.arange(len(place)), place] = right.astype(np.float64) - confidence
    return _ratio(np.abs(weights @ gap).sum(axis=1), weights.sum(axis=1))


def _ratio(above: np.ndarray, below: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
    """above / below, `empty` where below is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), below)
    return np.divide(above, below, out=np.full(above.shape, empty), where=below > 0)
