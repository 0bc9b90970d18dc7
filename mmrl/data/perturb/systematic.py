"""Systematic sampling: which kinds a report's copies are of, for many reports at once."""

import numpy as np


def numbers_needed(kinds: int, count: int) -> int:
    """How many random numbers `systematic` takes for a report."""
    return kinds + 1 + count


def systematic(weights: np.ndarray, count: int, uniforms: np.ndarray) -> np.ndarray:
    """i64[n, count]: indices of weights in random order, each as often as its share.

    Index i comes floor(count w / W) times or once more, with the probability that makes its
    expected number exact. Extra copies are taken at equal distances along the shares that are left,
    of the indices in random order, for neighbours would else exclude each other.

    Args:
      weights: f64[M], positive.
      uniforms: f64[n, numbers_needed(M, count)] in [0, 1).
    """
    kinds = len(weights)
    order = np.argsort(uniforms[:, :kinds], axis=1)
    shares = count * weights / weights.sum()
    sure = np.floor(shares + 1e-9).astype(np.int64)
    times = sure[order]
    if extra := count - int(sure.sum()):
        ends = np.cumsum(np.maximum(shares - sure, 0)[order], axis=1)
        steps = ends[:, -1:] / extra
        points = (uniforms[:, kinds : kinds + 1] + np.arange(extra)) * steps
        chosen = (ends[:, None] <= points[:, :, None]).sum(axis=2)
        np.add.at(times, (np.arange(len(times))[:, None], np.minimum(chosen, kinds - 1)), 1)
    picks = np.repeat(order.ravel(), times.ravel()).reshape(len(uniforms), count)
    return np.take_along_axis(picks, np.argsort(uniforms[:, kinds + 1 :], axis=1), axis=1)
