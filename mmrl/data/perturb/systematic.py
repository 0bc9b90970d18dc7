"""Systematic sampling of the kinds of a report's copies, for many reports at once."""

import numpy as np


def uniforms_needed(kinds: int, count: int) -> int:
    """How many random numbers `systematic` uses for one report."""
    return kinds + 1 + count


def systematic(weights: np.ndarray, count: int, uniforms: np.ndarray) -> np.ndarray:
    """Draws `count` indices for each of n reports, with numbers as equal as the weights allow.

    Index i has the share count * weights[i] / sum(weights). It is drawn floor(share) times, or once
    more with a probability that makes its expected number equal to its share.

    The fractional parts of the shares are laid end to end, with the indices in random order (in a
    fixed order, neighbours would rarely be drawn together). Points at equal distances along that
    line, beginning at a random offset, select the indices that are drawn once more.

    Args:
      weights: f64[M], positive.
      uniforms: f64[n, uniforms_needed(M, count)] in [0, 1): M to order the indices, one for the
        offset, `count` to order the result.

    Returns:
      i64[n, count], in random order.
    """
    kinds = len(weights)
    order = np.argsort(uniforms[:, :kinds], axis=1)
    shares = count * weights / weights.sum()
    whole = np.floor(shares + 1e-9).astype(np.int64)
    times = whole[order]
    if extra := count - int(whole.sum()):
        ends = np.cumsum(np.maximum(shares - whole, 0)[order], axis=1)
        distance = ends[:, -1:] / extra
        points = (uniforms[:, kinds : kinds + 1] + np.arange(extra)) * distance
        chosen = (ends[:, None] <= points[:, :, None]).sum(axis=2)
        np.add.at(times, (np.arange(len(times))[:, None], np.minimum(chosen, kinds - 1)), 1)
    drawn = np.repeat(order.ravel(), times.ravel()).reshape(len(uniforms), count)
    return np.take_along_axis(drawn, np.argsort(uniforms[:, kinds + 1 :], axis=1), axis=1)
