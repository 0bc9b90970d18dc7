"""Choice of the samples worth training on, by clusters of their encodings.

Wang et al. 2026 (CheXficient). `select` is the rule of the released code; `select_by_deviation` is
the rule with means and deviations, which an earlier release had.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mmrl.types import InputError

First = Sequence[int] | np.ndarray | Mapping[int, int]


def select(
    features: np.ndarray,
    prototypes: np.ndarray,
    *,
    outlier: float = 0.95,
    support: float = 0.85,
    most: int = 10,
    first: First | None = None,
) -> np.ndarray:
    """Keeps the outskirts of each cluster and few of its centre.

    A sample belongs to the nearest prototype. By quantiles of the distances within a cluster,
    samples beyond `outlier` are dropped as outliers, those beyond `support` are all kept, and of
    the rest at most `most`, by farthest-point sampling.

    Args:
      features: f[N, D], rows of length 1. prototypes: f[K, D].
      outlier, support: quantiles, from 0 to 1, with linear interpolation.
      most: greatest number of central samples of a cluster, at least 1.
      first: for each cluster, the central sample at which farthest-point sampling starts, counted
        among the central samples of the cluster in their order; the released code draws it. It is
        used only where there are more than `most`. None: 0 in all clusters.

    Returns:
      bool[N], True: kept.

    Raises:
      InputError: shapes that do not fit, or a number out of range.
    """
    if not (0 <= support <= outlier <= 1 and most >= 1):
        raise InputError(
            f"outlier {outlier}, support {support}, most {most}; expected quantiles "
            "0 <= support <= outlier <= 1, and at least 1"
        )
    features, distance, cluster = _nearest(features, prototypes)
    kept = np.zeros(len(features), bool)
    for k in np.unique(cluster):
        rows = np.flatnonzero(cluster == k)
        lower, upper = np.quantile(distance[rows], (support, outlier))
        central = rows[distance[rows] <= lower]
        kept[rows[(distance[rows] > lower) & (distance[rows] <= upper)]] = True
        start = _start(first, k, len(central), most)
        kept[central[_farthest(features[central], most, start)]] = True
    return kept


def select_by_deviation(
    features: np.ndarray,
    prototypes: np.ndarray,
    *,
    ratio: float = 0.2,
    first: First | None = None,
    first_outside: First | None = None,
) -> np.ndarray:
    """Keeps the tail of each cluster, and a share of the rest that thins its centre.

    A sample belongs to the nearest prototype. With mean and deviation of the distances within a
    cluster, samples from 3 deviations above the mean on are dropped, and those from 2 on are all
    kept. Of the rest, int(ratio * number) but at least 1 are kept, divided between those up to 1
    deviation above the mean and those beyond in proportion to the square roots of their numbers,
    each by farthest-point sampling.

    Args:
      features: f[N, D], rows of length 1. prototypes: f[K, D].
      ratio: from 0 to 1.
      first, first_outside: as in `select`, for the samples up to 1 deviation and for those beyond.

    Returns:
      bool[N], True: kept.

    Raises:
      InputError: shapes that do not fit, or a number out of range.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio {ratio}; expected a number from 0 to 1")
    features, distance, cluster = _nearest(features, prototypes)
    kept = np.zeros(len(features), bool)
    for k in np.unique(cluster):
        rows = np.flatnonzero(cluster == k)
        own = distance[rows]
        one, two, three = (own.mean() + n * own.std() for n in (1, 2, 3))
        kept[rows[(own >= two) & (own < three)]] = True
        central, outside = rows[own <= one], rows[(own > one) & (own < two)]
        shares = _shares(len(central), len(outside), ratio)
        for members, share, given in zip(
            (central, outside), shares, (first, first_outside), strict=True
        ):
            start = _start(given, k, len(members), share)
            kept[members[_farthest(features[members], share, start)]] = True
    return kept


def _nearest(
    features: np.ndarray, prototypes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features f64[N, D], distance to the nearest prototype f64[N], its number i64[N])."""
    features, prototypes = (np.asarray(x, np.float64) for x in (features, prototypes))
    if not (features.ndim == prototypes.ndim == 2 and features.shape[1] == prototypes.shape[1]):
        raise InputError(
            f"features {features.shape}, prototypes {prototypes.shape}; expected [N, D] and [K, D]"
        )
    if not len(prototypes):
        raise InputError("no prototypes; expected at least one")
    distance = np.stack([np.linalg.norm(features - p, axis=1) for p in prototypes], axis=1)
    cluster = distance.argmin(axis=1)
    return features, distance[np.arange(len(features)), cluster], cluster


def _farthest(points: np.ndarray, most: int, first: int) -> np.ndarray:
    """Indices i64 of at most `most` points: each is farthest from those chosen before it."""
    if len(points) <= most:
        return np.arange(len(points))
    if most == 0:
        return np.arange(0)
    chosen = [first]
    distance = np.full(len(points), np.inf)
    while len(chosen) < most:
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return np.array(chosen)


def _start(first: First | None, cluster: int, size: int, most: int) -> int:
    """The place among `size` points at which sampling of `most` starts."""
    if first is None or size <= most:
        return 0
    start = int(first[int(cluster)])
    if not 0 <= start < size:
        raise InputError(f"first of cluster {cluster} is {start}; expected 0 to {size - 1}")
    return start


def _shares(central: int, outside: int, ratio: float) -> tuple[int, int]:
    """How many central samples and how many outside of them are kept."""
    total = central + outside
    if not total:
        return 0, 0
    budget = max(1, int(total * ratio))
    if not central or not outside:
        return min(budget, central), min(budget, outside)
    share = central**0.5 / (central**0.5 + outside**0.5)
    first = round(budget * share)
    return min(first, central), min(budget - first, outside)
