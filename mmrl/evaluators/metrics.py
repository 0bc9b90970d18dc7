"""The area under the ROC curve (AUROC), with an interval from a bootstrap over patients."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

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


class Interval(NamedTuple):
    """A percentile interval, None if undefined; `skipped` counts the draws without a class."""

    low: float | None
    high: float | None
    skipped: int


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
            for times in _patient_draws(count, samples, seed, max(count, len(used)))
        ]
    )


def _patient_draws(count: int, samples: int, seed: int, width: int) -> Iterator[np.ndarray]:
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
    return Interval(float(low), float(high), skipped)
