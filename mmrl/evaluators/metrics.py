"""Measures on arrays: AUROC with intervals, classifiers without training, concordance, maps."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sklearn import neighbors

# Number of weights that the bootstrap holds at once; bounds memory, does not change results.
_WEIGHTS_AT_ONCE = 2_000_000


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Some of N items, with their scores and true classes.

    Attributes:
      rows: i64[n], positions among the N items.
      scores: f[M, n]; M sets of scores of the same items, whose AUROCs are averaged.
      positive: bool[n], the true class.
    """

    rows: np.ndarray
    scores: np.ndarray
    positive: np.ndarray


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentile interval.

    Attributes:
      low, high: its ends; None if it is undefined.
      skipped: number of draws without a class.
      draws: f64[S] of the bootstrap, NaN where skipped; None if there is no interval.
    """

    low: float | None
    high: float | None
    skipped: int
    draws: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)


def auroc(scores: np.ndarray, positive: np.ndarray, *, tie: float = 0.0) -> float:
    """Area under the ROC curve.

    The share of (positive, negative) pairs in which the positive scores higher; ties count half
    (Hanley and McNeil 1982, Radiology 143, equation 1: the Mann-Whitney statistic).

    Args:
      scores: f[N], finite.
      positive: bool[N].
      tie: scores that differ by at most this are tied.

    Raises:
      ValueError: there are no positives or no negatives.
    """
    positive = np.asarray(positive, bool)
    if not 0 < positive.sum() < len(positive):
        raise ValueError(f"{int(positive.sum())} of {len(positive)} items are positive: no AUROC")
    return float(weighted_auroc(scores, positive, np.ones((1, len(positive))), tie=tie)[0])


def weighted_auroc(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, *, tie: float = 0.0
) -> np.ndarray:
    """f64[S]: the AUROC when item i counts weights[s, i] times; NaN where a class has no weight.

    Args:
      scores: f[N]. positive: bool[N]. tie: as in `auroc`.
      weights: f[S, N], not negative.
    """
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    high, low = scores[positive], scores[~positive]
    order = np.argsort(low, kind="stable")
    low = low[order]
    below = np.searchsorted(low, high - tie, side="left")
    up_to = np.searchsorted(low, high + tie, side="right")
    of_high, of_low = weights[:, positive], weights[:, ~positive][:, order]
    # Entry j is the weight of the j lowest negatives.
    sums = np.pad(np.cumsum(of_low, axis=1, dtype=np.float64), ((0, 0), (1, 0)))  # S 1+n
    won = (of_high * (sums[:, below] + sums[:, up_to])).sum(axis=1) / 2
    pairs = of_high.sum(axis=1) * sums[:, -1]
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def centred(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """f32[n, D] each: features minus the mean of the training features, scaled to length 1.

    The features of SimpleShot (Wang et al. 2019, section 3.1, CL2N). A zero row stays zero.

    Raises:
      ValueError: a feature is not finite.
    """
    if not all(np.isfinite(np.asarray(one, np.float32)).all() for one in (train, *others)):
        raise ValueError("features must be finite")
    mean = np.asarray(train).mean(axis=0, dtype=np.float64).astype(np.float32)
    found = []
    for one in (train, *others):
        moved = np.asarray(one, np.float32) - mean
        moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
        found.append(moved)
    return found


def class_distances(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """f64[N, C]: distance of each item to the mean of each class, classes ascending.

    Features are `centred`; means are not scaled to length 1.

    Args:
      train_x: f[n, D]. train_y: i[n], classes. test_x: f[N, D].
    """
    train, test = centred(train_x, test_x)
    classes, place = np.unique(train_y, return_inverse=True)
    means = np.stack(
        [train[place == c].mean(axis=0, dtype=np.float64) for c in range(len(classes))]
    )
    squares = (test.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
    apart = squares - 2 * (test @ means.T.astype(np.float32)) + (means**2).sum(axis=1)
    return np.sqrt(np.maximum(apart, 0))


def simple_shot(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """i[N]: the class with the nearest mean (SimpleShot, Wang et al. 2019), as UNI computes it.

    Args: as of `class_distances`. Of equally near classes, the smallest is given.
    """
    return np.unique(train_y)[class_distances(train_x, train_y, test_x).argmin(axis=1)]


def nearest(train_x: np.ndarray, test_x: np.ndarray, *, k: int = 5) -> np.ndarray:
    """i[N, k]: the nearest training items, by L2 among `centred` features.

    scikit-learn finds them in blocks, without n x N distances in memory.

    Args:
      train_x: f[n, D]. test_x: f[N, D]. k: neighbours.

    Raises:
      ValueError: there are fewer than k training items.
    """
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k is {k}; expected from 1 to the {len(train_x)} training items")
    train, test = centred(train_x, test_x)
    model = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train)
    return model.kneighbors(test, return_distance=False)


def neighbour_shares(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, *, k: int = 5
) -> np.ndarray:
    """f64[N, C]: share of the k nearest training items that each class has, classes ascending.

    Args:
      others: as of `class_distances`. k: neighbours.

    Raises:
      ValueError: there are fewer than k training items.
    """
    votes = np.asarray(train_y)[nearest(train_x, test_x, k=k)]
    return (votes[:, :, None] == np.unique(train_y)).mean(axis=1)


def knn(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, *, k: int = 5) -> np.ndarray:
    """i[N]: the class of most of the k nearest training items; of equal ones the smallest.

    Args and errors: as of `neighbour_shares`.
    """
    shares = neighbour_shares(train_x, train_y, test_x, k=k)
    return np.unique(train_y)[shares.argmax(axis=1)]


class Pairs(NamedTuple):
    """Numbers of comparable pairs of `concordance`; those of tied time are also in the others."""

    concordant: int
    discordant: int
    tied_risk: int
    tied_time: int


def concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's concordance index (Harrell et al. 1982): the share of pairs that risk orders.

    Of a comparable pair, the item whose event came first should have the greater risk. Ties of risk
    count half.

    Args: as of `concordance_pairs`.

    Raises:
      ValueError: no pair is comparable; arrays that do not fit or are not finite.
    """
    pairs = concordance_pairs(time, event, risk)
    total = pairs.concordant + pairs.discordant + pairs.tied_risk
    if not total:
        raise ValueError(f"none of {len(time)} items has an event before another item's time")
    return (pairs.concordant + pairs.tied_risk / 2) / total


def concordance_pairs(
    time: np.ndarray, event: np.ndarray, risk: np.ndarray, *, tie: float = 1e-8
) -> Pairs:
    """Counts comparable pairs: i has an event, and time_i < time_j, or times are equal and j none.

    Args:
      time: f[N], to the event or to the end of observation.
      event: bool[N], whether there was an event.
      risk: f[N], greater for an earlier event.
      tie: risks that differ by at most this are tied.

    Raises:
      ValueError: arrays that do not fit or are not finite, events other than 0 and 1.
    """
    time, risk = np.asarray(time, np.float64), np.asarray(risk, np.float64)
    if not np.isin(event, (0, 1)).all():  # NaN would count as an event
        raise ValueError("events must be 0 or 1")
    event = np.asarray(event, bool)
    if not time.shape == event.shape == risk.shape == (len(time),):
        raise ValueError(
            f"time {time.shape}, event {event.shape} and risk {risk.shape} must be [N]"
        )
    if not (np.isfinite(time).all() and np.isfinite(risk).all()):
        raise ValueError("times and risks must be finite")
    counts = np.zeros(4, np.int64)
    first = np.flatnonzero(event)
    rows = max(1, _WEIGHTS_AT_ONCE // max(len(time), 1))
    for start in range(0, len(first), rows):
        block = first[start : start + rows]
        same = (time[block, None] == time) & ~event
        comparable = (time[block, None] < time) | same
        above = risk[block, None] - risk
        tied = np.abs(above) <= tie
        counts += (
            (comparable & ~tied & (above > 0)).sum(),
            (comparable & ~tied & (above < 0)).sum(),
            (comparable & tied).sum(),
            same.sum(),
        )
    return Pairs(*counts.tolist())


def mean_auroc(task: Ranked, *, tie: float = 0.0) -> float:
    """The AUROC of a task, averaged over its M sets of scores.

    Raises:
      ValueError: there are no positives or no negatives.
    """
    return float(np.mean([auroc(scores, task.positive, tie=tie) for scores in task.scores]))


def intervals(
    tasks: Sequence[Ranked],
    patients: Sequence[str] | np.ndarray,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    tie: float = 0.0,
) -> tuple[list[Interval], Interval]:
    """Percentile intervals of each task's AUROC and of the macro AUROC, their unweighted mean.

    Each draw takes as many patients as there are, with replacement, and all items of each (Efron
    and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). All tasks use the same
    draws. A draw without a positive or a negative of a task is skipped for that task and for the
    mean, and counted.

    Args:
      tasks: at least one.
      patients: N patient ids, one per item.
      samples: number of draws. seed: of the draws. level: probability inside the interval.
      tie: as in `auroc`.

    Returns:
      One interval per task, and that of their mean. An interval is undefined if the items belong
      to fewer than two patients or all draws are skipped.
    """
    drawn = draws(tasks, patients, samples=samples, seed=seed, tie=tie)
    owner = np.asarray(patients)
    each = [
        _interval(column, level, several=len(np.unique(owner[task.rows])) > 1)
        for column, task in zip(drawn.T, tasks, strict=True)
    ]
    return each, _interval(drawn.mean(axis=1), level)


def draws(
    tasks: Sequence[Ranked],
    patients: Sequence[str] | np.ndarray,
    *,
    samples: int = 1000,
    seed: int = 0,
    tie: float = 0.0,
) -> np.ndarray:
    """f64[samples, tasks]: the AUROCs of the draws from which `intervals` takes its quantiles.

    NaN where a draw lacks a class of a task; no draws if the items belong to fewer than two
    patients. With the same items and seed the draws are the same, so those of two encoders can be
    subtracted.

    Args:
      others: as in `intervals`.
    """
    used = np.unique(np.concatenate([task.rows for task in tasks]))
    owners = np.unique(np.asarray(patients)[used], return_inverse=True)[1]
    owner = np.full(len(patients), -1)
    owner[used] = owners
    count = int(owners.max()) + 1
    if count < 2 or samples < 1:
        return np.empty((0, len(tasks)))
    return np.concatenate(
        [
            np.stack([_draws(task, times[:, owner[task.rows]], tie) for task in tasks], axis=1)
            for times in patient_draws(count, samples, seed, max(count, len(used)))
        ]
    )


def patient_draws(count: int, samples: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """Yields blocks f64[s, count] of how often each patient is drawn, `samples` rows in all."""
    rng = np.random.default_rng(seed)
    rows = max(1, _WEIGHTS_AT_ONCE // width)
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        picks = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(picks.ravel(), minlength=size * count)
        yield times.reshape(size, count).astype(np.float64)


def _draws(task: Ranked, weights: np.ndarray, tie: float) -> np.ndarray:
    """f64[S]: the task's AUROC under each row of weights [S, n]."""
    drawn = [weighted_auroc(scores, task.positive, weights, tie=tie) for scores in task.scores]
    return np.mean(drawn, axis=0)


def _interval(drawn: np.ndarray, level: float, *, several: bool = True) -> Interval:
    kept = drawn[np.isfinite(drawn)]
    skipped = len(drawn) - len(kept)
    if not several or not len(kept):
        return Interval(None, None, skipped)
    tail = (1 - level) / 2
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Interval(float(low), float(high), skipped, drawn)


def contrast_to_noise(heat: np.ndarray, mask: np.ndarray) -> float:
    """Contrast-to-noise ratio of a map inside and outside a mask.

    (mean inside - mean outside) / sqrt(variance inside + variance outside), with population
    variances (BioViL, Boecking et al. 2022, section 4.2). It is signed: a map that is lower inside
    has a negative ratio. The paper writes the absolute value, which would reward such a map.

    Args:
      heat: f[H, W]; pixels that are NaN are left out.
      mask: bool[H, W], True inside.

    Returns:
      The ratio; 0 for a constant map, infinite where the map is constant on either side.

    Raises:
      ValueError: shapes that differ, or no pixel is left inside or outside.
    """
    return float(cell_contrast(*_pixels(heat, mask)))


def mean_iou(
    heat: np.ndarray,
    mask: np.ndarray,
    *,
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
) -> float:
    """Intersection over union of `heat > threshold` with a mask, averaged over the thresholds.

    Published for cosines clamped at 0, which changes nothing at thresholds from 0 up (BioViL,
    Boecking et al. 2022, section 4.2). The map is not rescaled.

    Args:
      heat: f[H, W]; pixels that are NaN are left out, of the mask, too.
      mask: bool[H, W], True inside.
      thresholds: at least one.

    Raises:
      ValueError: shapes that differ, or no pixel is left inside.
    """
    values, inside, outside = _pixels(heat, mask, outside_needed=False)
    return float(cell_iou(values, inside, outside, thresholds=thresholds))


def cell_contrast(values: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """`contrast_to_noise` of maps that are constant in each of P cells of pixels: f64[...].

    Args:
      values: f[..., P], the map in each cell, finite.
      inside, outside: [..., P], number of pixels of each cell inside and outside the mask. Each
        has a pixel.
    """
    values = np.asarray(values, np.float64)
    means, variances = zip(*(_moments(values, counts) for counts in (inside, outside)), strict=True)
    contrast, noise = means[0] - means[1], np.sqrt(variances[0] + variances[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(contrast == 0, 0.0, contrast / noise)


def cell_iou(
    values: np.ndarray,
    inside: np.ndarray,
    outside: np.ndarray,
    *,
    thresholds: Sequence[float],
) -> np.ndarray:
    """`mean_iou` of maps that are constant in each of P cells of pixels: f64[...].

    Args:
      values, inside, outside: as of `cell_contrast`; `inside` has a pixel.
      thresholds: at least one.
    """
    found = []
    for threshold in thresholds:
        above = np.asarray(values) > threshold
        shared = (above * inside).sum(axis=-1)
        found.append(shared / (inside.sum(axis=-1) + (above * outside).sum(axis=-1)))
    return np.mean(found, axis=0)


def _moments(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population variance f64[...] of values [..., P], each `counts` times."""
    # Relative to one of the values, so that the variance of a constant is exactly 0.
    place = np.argmax(counts > 0, axis=-1)[..., None]
    first = np.take_along_axis(np.broadcast_to(values, counts.shape), place, axis=-1)
    total = counts.sum(axis=-1)
    moved = values - first
    mean = (moved * counts).sum(axis=-1) / total
    variance = ((moved - mean[..., None]) ** 2 * counts).sum(axis=-1) / total
    return first[..., 0] + mean, variance


def _pixels(
    heat: np.ndarray, mask: np.ndarray, *, outside_needed: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels of a map that are not NaN, f64[P], and whether each is inside and outside.

    Raises:
      ValueError: as of `contrast_to_noise`.
    """
    heat, mask = np.asarray(heat, np.float64), np.asarray(mask, bool)
    if heat.shape != mask.shape:
        raise ValueError(f"map {heat.shape} and mask {mask.shape} must be alike")
    kept = ~np.isnan(heat)
    inside = mask[kept]
    if not inside.any() or (outside_needed and inside.all()):
        raise ValueError(
            f"{int(inside.sum())} of {len(inside)} pixels that are not NaN lie inside the mask; "
            "expected some inside and some outside"
        )
    return heat[kept], inside, ~inside
