"""Scores of items against their truth: measures, rows to compare them with, intervals, calibration.

Evaluators that end in a decision per item (zero-shot classification, probes, text inference,
multiple choice) state it through `report`, so that all of them say the same things: value,
interval, N, chance, a constant predictor, rows of blind or simpler predictors, subgroups and
calibration.
scikit-learn computes the values; `weighted` repeats them under the weights of the bootstrap.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from sklearn import metrics as sklearn_metrics

from mmrl.evaluators import metrics, weighted
from mmrl.evaluators.base import Estimate

Kind = Literal["binary", "classes", "labels", "number"]
UNKNOWN = -1
BINS = 15  # of confidence, for the calibration error


@dataclasses.dataclass(frozen=True)
class Answers:
    """The scores of n items with their truth.

    Attributes:
      kind: "binary"; "classes": exclusive ones; "labels": any number of C labels; "number".
      scores: f64[n] for "binary" (greater means positive) and "number" (the prediction), else
        f64[n, C].
      truth: bool[n]; i64[n], classes; i8[n, C] of 1, 0 and UNKNOWN, labels; f64[n], numbers.
      patients: n ids, over which the bootstrap draws.
      names: of the C classes or labels; of the one question for "binary" and "number".
      threshold: scores above it are positive: one number, or f64[C] for "labels". None: measures
        that need a decision are left out; "classes" needs none.
      probabilities: whether the scores are probabilities, whose calibration can be stated.

    Raises:
      ValueError: shapes that do not fit, scores that are not finite, or no items.
    """

    kind: Kind
    scores: np.ndarray
    truth: np.ndarray
    patients: Sequence[str] | np.ndarray
    names: Sequence[str] = ()
    threshold: float | np.ndarray | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        wide = self.kind in ("classes", "labels")
        size, width = len(self.truth), (len(self.names),) if wide else ()
        truth = (size, *width) if self.kind == "labels" else (size,)
        if np.shape(self.scores) != (size, *width) or np.shape(self.truth) != truth:
            raise ValueError(
                f"{self.kind}: scores {np.shape(self.scores)} and truth {np.shape(self.truth)}; "
                f"expected {(size, *width)} and {truth}"
            )
        if not size or len(self.patients) != size:
            raise ValueError(f"{size} items of {len(self.patients)} patients")
        if not np.isfinite(self.scores).all():
            raise ValueError(f"{self.kind}: scores are not finite")

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, rows: np.ndarray) -> "Answers":
        """Some of the items; `rows` is i64[m] or bool[n]."""
        return dataclasses.replace(
            self,
            scores=self.scores[rows],
            truth=self.truth[rows],
            patients=np.asarray(self.patients)[rows],
        )

    def column(self, place: int) -> "Answers":
        """One of the labels, as a binary question about the items for which it is known."""
        known = self.truth[:, place] != UNKNOWN
        threshold = None if self.threshold is None else np.ravel(self.threshold)
        return Answers(
            "binary",
            self.scores[known, place],
            self.truth[known, place] == 1,
            np.asarray(self.patients)[known],
            (self.names[place],),
            None if threshold is None else float(threshold[place if len(threshold) > 1 else 0]),
            self.probabilities,
        )


_Draws = Callable[[np.ndarray], np.ndarray]


class _Drawn:
    """A measure: its value, its draws, and its chance.

    Args:
      value: by scikit-learn, whose checks of its arguments take longer than the measures, so that
        it may be a function, which is called when the value is asked for.
      drawn: weights f64[S, n] -> f64[S].
      chance: expected value of random guessing, None if undefined.
      items: bool[n], the items that the measure is computed from; None: all.
    """

    def __init__(
        self,
        value: float | Callable[[], float],
        drawn: _Draws,
        chance: float | None,
        items: np.ndarray | None = None,
    ) -> None:
        self._value, self.drawn, self.chance, self.items = value, drawn, chance, items

    @property
    def value(self) -> float:
        """The measure."""
        return float(self._value() if callable(self._value) else self._value)


def constant(answers: Answers, reference: np.ndarray | None = None) -> np.ndarray:
    """The scores of a predictor that gives every item the same: the frequencies of the reference.

    Args:
      answers: what the scores are for.
      reference: truth from which the frequencies are taken, such as that of the training examples,
        in the form of `answers.truth`; by default that of the answers themselves.
    """
    truth = answers.truth if reference is None else np.asarray(reference)
    if answers.kind == "classes":
        given = np.bincount(truth, minlength=len(answers.names)) / len(truth)
    elif answers.kind == "labels":
        known = truth != UNKNOWN
        given = ((truth == 1) & known).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    else:
        given = np.asarray(np.mean(truth, dtype=np.float64))
    return np.broadcast_to(given, answers.scores.shape).astype(np.float64)


def report(
    answers: Answers,
    *,
    repeats: Sequence["np.ndarray | Answers"] = (),
    rows: Mapping[str, Sequence["np.ndarray | Answers"]] | None = None,
    reference: np.ndarray | None = None,
    subgroups: Mapping[str, np.ndarray] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    gain: bool = True,
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    """All measures of some answers, and of what they are compared with.

    Args:
      repeats: further scores of the same items by the same predictor, such as with other prompts.
        Every measure is the mean over `answers.scores` and these, and the details give its range.
      rows: name of another predictor -> sets of its scores for the same items, whose measures are
        averaged; for example "images_permuted", "raw_pixels". None: no row. A set, here and in
        `repeats`, is an array, which is decided on as `answers` are, or the Answers about these
        items with a threshold of their own.
      reference: as of `constant`, whose row is always there; it decides for what is more frequent.
      subgroups: name -> bool[n], the items in it.
      bootstrap: draws of patients for the intervals; 0: none.
      seed: of the draws. Equal items and seeds give equal draws, so that two results pair.
      gain: state the paired difference to each row, for the first measure.

    Returns:
      Values: "{measure}"; "{measure}_{row}" for every row, "{measure}_constant" among them;
      "{measure}_gain_over_{row}" for the first measure; "label/{name}/{measure}" or
      "class/{name}/{measure}"; "subgroup/{name}/{measure}". Details: items and prevalence of every
      class or label, labels left out because a class is missing, draws of the bootstrap without
      what a measure needs, the calibration curve of `answers.scores`, a digest of the truth, and,
      with `repeats`, the least and the greatest value of each measure.
    """
    answers, left_out = _askable(answers)
    draw: dict[str, Any] = {"samples": bootstrap, "seed": seed}
    again = [answers, *(_set(one, answers, left_out.kept) for one in repeats)]
    each = [estimates(one, **draw) for one in again]
    own = _averages(each)
    values = dict(own)
    others: dict[str, Sequence[np.ndarray | Answers]] = {
        "constant": (constant(answers, _columns(reference, left_out.kept)),)
    }
    others |= {
        name: [_set(one, answers, left_out.kept) for one in sets]
        for name, sets in (rows or {}).items()
        if sets
    }
    for name, sets in others.items():
        plain = [dataclasses.replace(_set(one, answers, None), probabilities=False) for one in sets]
        if name == "constant" and answers.threshold is not None:
            # The scores of a constant are frequencies, so it chooses what is more frequent.
            plain = [dataclasses.replace(one, threshold=0.5) for one in plain]
        for measure, mean in _averages([estimates(one, **draw) for one in plain]).items():
            if "/" not in measure:
                values[f"{measure}_{name}"] = mean
    first = next(iter(own))
    for name in others if gain else ():
        if name != "constant":
            values[f"{first}_gain_over_{name}"] = difference(own[first], values[f"{first}_{name}"])
    details: dict[str, Any] = {
        "prevalence": prevalence(answers),
        "left_out": left_out.reasons,
        "truth_sha256": _digest(answers),
    }
    if undefined := _undefined_draws(own):
        details["draws_left_out"] = undefined
    if repeats:
        details["range"] = _range(each)
    if answers.probabilities:
        details["calibration"] = reliability(answers)
    of_groups, skipped = _of_subgroups(again, subgroups or {}, draw)
    values |= of_groups
    if skipped:
        details["subgroups_without_measures"] = skipped
    order = sorted(values, key=lambda name: ("/" in name, name.startswith("subgroup/")))
    return {name: values[name] for name in order}, details


def _of_subgroups(
    sets: Sequence[Answers], subgroups: Mapping[str, np.ndarray], draw: Mapping[str, Any]
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Values of `report` of each subgroup, and why a subgroup has none."""
    values: dict[str, Estimate] = {}
    skipped: dict[str, str] = {}
    for name, inside in subgroups.items():
        try:
            parts = [one.take(np.asarray(inside, bool)) for one in sets]
            of_part = _averages([estimates(one, **draw) for one in parts])
        except ValueError as error:
            skipped[name] = str(error)
            continue
        for measure, estimate in of_part.items():
            if "/" not in measure:
                values[f"subgroup/{name}/{measure}"] = estimate
    return values, skipped


def _undefined_draws(values: Mapping[str, Estimate]) -> dict[str, int]:
    """Measure -> draws that lack what it needs, such as a positive; those without are not named."""
    counts = {
        name: int(np.isnan(one.draws).sum())
        for name, one in values.items()
        if one.draws is not None
    }
    return {name: count for name, count in counts.items() if count}


def _set(given: "np.ndarray | Answers", answers: Answers, kept: tuple[int, ...] | None) -> Answers:
    """A set of scores as Answers about the items of `answers`, without labels not kept."""
    if isinstance(given, Answers):
        return given if kept is None else _of_labels(given, kept)
    return dataclasses.replace(answers, scores=_columns(np.asarray(given), kept))


def _averages(parts: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {measure: average([part[measure] for part in parts]) for measure in parts[0]}


def _range(parts: Sequence[Mapping[str, Estimate]]) -> dict[str, Any]:
    """The least and the greatest value of each measure, and of how many sets of scores."""
    columns = {
        measure: [part[measure].value for part in parts]
        for measure in parts[0]
        if "/" not in measure
    }
    return {
        measure: {"min": min(column), "max": max(column), "sets": len(column)}
        for measure, column in columns.items()
    }


def estimates(
    answers: Answers,
    *,
    samples: int = 1000,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """The measures of some answers with intervals, the most important one first.

    Args:
      only: the measures wanted; None: all.

    Raises:
      ValueError: a class is missing, so that nothing can be ranked.
    """
    found = _measures(answers)
    if only is not None:
        found = {name: found[name] for name in only}
    owners = np.unique(np.asarray(answers.patients), return_inverse=True)[1]
    count = int(owners.max()) + 1
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in found}
    if count > 1 and samples:
        for times in metrics.patient_draws(count, samples, seed, max(count, len(owners))):
            weights = times[:, owners]
            for name, measure in found.items():
                drawn[name].append(measure.drawn(weights))
    values = {}
    for name, measure in found.items():
        own = owners if measure.items is None else owners[measure.items]
        # The items of one patient have one value in every draw, which is no interval.
        several = len(np.unique(own)) > 1 and drawn[name]
        draws = np.concatenate(drawn[name]) if several else None
        values[name] = estimate(measure.value, draws, n=len(own), chance=measure.chance)
    return values


def estimate(
    value: float, draws: np.ndarray | None, *, n: int, chance: float | None = None
) -> Estimate:
    """A value with the 95 % interval of its draws f64[S]; draws of NaN are left out."""
    kept = np.empty(0) if draws is None else draws[np.isfinite(draws)]
    if not len(kept):
        return Estimate(value, None, None, n, chance)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n, chance, draws)


def item_mean(
    values: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    *,
    chance: float | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The mean of one number per item, such as whether it is answered correctly, with its draws.

    Args:
      values: f[n]. patients: n ids. chance: of the result. samples, seed: as of `estimates`.
    """
    values = np.asarray(values, np.float64)
    owners = np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(owners.max()) + 1
    drawn = None
    if count > 1 and samples:
        blocks = metrics.patient_draws(count, samples, seed, max(count, len(owners)))
        drawn = np.concatenate([weighted.mean(values, times[:, owners]) for times in blocks])
    return estimate(float(values.mean()), drawn, n=len(values), chance=chance)


def average(parts: Sequence[Estimate]) -> Estimate:
    """The mean of estimates of the same items, with the interval of the mean."""
    if len(parts) == 1:
        return parts[0]
    drawn = [part.draws for part in parts if part.draws is not None]
    return estimate(
        float(np.mean([part.value for part in parts])),
        np.mean(drawn, axis=0) if len(drawn) == len(parts) else None,
        n=parts[0].n,
        chance=parts[0].chance,
    )


def difference(one: Estimate, two: Estimate) -> Estimate:
    """One minus two with the interval of the paired difference; both have the same draws.

    Raises:
      ValueError: another number of draws or of items.
    """
    if one.n != two.n:
        raise ValueError(f"{one.n} and {two.n} items; a paired difference needs the same ones")
    drawn = None
    if one.draws is not None and two.draws is not None:
        if len(one.draws) != len(two.draws):
            raise ValueError(f"{len(one.draws)} and {len(two.draws)} draws; expected equally many")
        drawn = one.draws - two.draws
    return estimate(one.value - two.value, drawn, n=one.n, chance=0.0)


def _digest(answers: Answers) -> str:
    """Digest of the names and the truth of the items, in order."""
    names = json.dumps([answers.kind, *answers.names]).encode()
    return hashlib.sha256(names + np.ascontiguousarray(answers.truth).tobytes()).hexdigest()


def prevalence(answers: Answers) -> dict[str, Any]:
    """Number of items and share of positives of every class or label; mean and deviation."""
    truth = answers.truth
    if answers.kind == "number":
        return {"n": len(truth), "mean": float(truth.mean()), "deviation": float(truth.std())}
    if answers.kind == "binary":
        return {"n": len(truth), "share": float(truth.mean())}
    if answers.kind == "classes":
        counts = np.bincount(truth, minlength=len(answers.names))
        return {name: int(c) for name, c in zip(answers.names, counts, strict=True)}
    found = {}
    for place, name in enumerate(answers.names):
        known = truth[:, place] != UNKNOWN
        found[name] = {"n": int(known.sum()), "share": float((truth[known, place] == 1).mean())}
    return found


def reliability(answers: Answers) -> dict[str, Any]:
    """The reliability curve: for each bin of confidence its items, mean confidence and accuracy."""
    confidence, right = _confidence(answers)
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    return {
        "bins": BINS,
        "n": counts.tolist(),
        "confidence": _of_bins(confidence, place, counts),
        "accuracy": _of_bins(right.astype(np.float64), place, counts),
    }


def threshold_at(scores: np.ndarray, positive: np.ndarray, sensitivity: float) -> float:
    """The greatest threshold at which at least this share of positives scores above it.

    Args:
      scores: f[n]. positive: bool[n], with at least one positive. sensitivity: above 0, at most 1.

    Returns:
      A number just below the score of the last positive that must be found, so that "above" holds.
    """
    high = np.sort(np.asarray(scores, np.float64)[np.asarray(positive, bool)])[::-1]
    needed = int(np.ceil(sensitivity * len(high) - 1e-9))
    return float(np.nextafter(high[needed - 1], -np.inf))


def best_f1_threshold(scores: np.ndarray, positive: np.ndarray) -> float:
    """The threshold with the greatest F1, for choosing on validation; the highest of equals."""
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(positive, scores)
    total = precision + recall
    values = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    best = len(values) - 2 - int(np.argmax(values[:-1][::-1]))
    return float(np.nextafter(thresholds[best], -np.inf))


def _of_bins(values: np.ndarray, place: np.ndarray, counts: np.ndarray) -> list[float | None]:
    sums = np.bincount(place, values, minlength=BINS)
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]


@dataclasses.dataclass(frozen=True)
class _LeftOut:
    """Which labels are kept, None if the kind has no columns, and why the others are not."""

    kept: tuple[int, ...] | None
    reasons: dict[str, str]


def _askable(answers: Answers) -> tuple[Answers, _LeftOut]:
    """The answers without labels that lack a class.

    Raises:
      ValueError: no label is left.
    """
    if answers.kind != "labels":
        return answers, _LeftOut(None, {})
    kept, reasons = [], {}
    for place, name in enumerate(answers.names):
        column = answers.truth[:, place]
        yes, no = int((column == 1).sum()), int((column == 0).sum())
        if yes and no:
            kept.append(place)
        else:
            reasons[name] = f"{yes} present and {no} absent"
    if not kept:
        raise ValueError(f"no label has both classes: {reasons}")
    return _of_labels(answers, kept), _LeftOut(tuple(kept), reasons)


def _of_labels(answers: Answers, kept: Sequence[int]) -> Answers:
    """The answers about some of the labels."""
    threshold = answers.threshold
    if threshold is not None and np.ndim(threshold):
        threshold = np.asarray(threshold)[list(kept)]
    return dataclasses.replace(
        answers,
        scores=answers.scores[:, kept],
        truth=answers.truth[:, kept],
        names=tuple(answers.names[place] for place in kept),
        threshold=threshold,
    )


def _columns(array: Any, kept: tuple[int, ...] | None) -> Any:
    return array if array is None or kept is None else array[:, kept]


def _measures(answers: Answers) -> dict[str, _Drawn]:
    if answers.kind == "binary":
        return _binary(answers)
    if answers.kind == "classes":
        return _classes(answers)
    if answers.kind == "number":
        return _number(answers)
    return _labels(answers)


def _binary(answers: Answers) -> dict[str, _Drawn]:
    scores, truth = np.asarray(answers.scores, np.float64), answers.truth
    share = float(truth.mean())
    if share in (0.0, 1.0):
        raise ValueError(f"{int(truth.sum())} of {len(truth)} items are positive")
    found = {
        "auroc": _Drawn(
            lambda: sklearn_metrics.roc_auc_score(truth, scores),
            lambda w: metrics.weighted_auroc(scores, truth, w),
            0.5,
        ),
        "auprc": _Drawn(
            lambda: sklearn_metrics.average_precision_score(truth, scores),
            lambda w: weighted.average_precision(scores, truth, w),
            share,
        ),
    }
    if answers.threshold is not None:
        chosen = scores > answers.threshold
        table = _table(truth.astype(np.int64), chosen.astype(np.int64), 2)
        found |= {
            "f1": _Drawn(
                lambda: sklearn_metrics.f1_score(truth, chosen, zero_division=0.0),
                lambda w: weighted.f1(table(w))[:, 1],
                None,
            ),
            "accuracy": _Drawn(
                lambda: sklearn_metrics.accuracy_score(truth, chosen),
                lambda w: weighted.mean(chosen == truth, w),
                0.5,
            ),
            "balanced_accuracy": _Drawn(
                lambda: sklearn_metrics.balanced_accuracy_score(truth, chosen),
                lambda w: weighted.balanced_accuracy(table(w)),
                0.5,
            ),
            "sensitivity": _Drawn(
                lambda: sklearn_metrics.recall_score(truth, chosen),
                lambda w: weighted.mean(chosen, w * truth),
                None,
            ),
            "specificity": _Drawn(
                lambda: sklearn_metrics.recall_score(truth, chosen, pos_label=0),
                lambda w: weighted.mean(~chosen, w * ~truth),
                None,
            ),
        }
    return found | _calibration(answers)


def _classes(answers: Answers) -> dict[str, _Drawn]:
    scores, truth, count = answers.scores, answers.truth, len(answers.names)
    present = np.unique(truth)
    if len(present) < 2:
        raise ValueError(f"items of {len(present)} class; at least two are needed")
    chosen = scores.argmax(axis=1)
    table = _table(truth, chosen, count)
    every = [(truth == one, np.asarray(scores[:, one], np.float64)) for one in present.tolist()]
    areas = [_once(functools.partial(metrics.weighted_auroc, one, yes)) for yes, one in every]
    labels = np.arange(count)
    found = {
        "macro_auroc": _Drawn(
            float(np.mean([sklearn_metrics.roc_auc_score(*pair) for pair in every])),
            functools.partial(_mean_of, areas),
            0.5,
        ),
        "macro_auprc": _Drawn(
            float(np.mean([sklearn_metrics.average_precision_score(*pair) for pair in every])),
            functools.partial(
                _mean_of,
                [functools.partial(weighted.average_precision, one, yes) for yes, one in every],
            ),
            1 / len(present),  # the mean of shares that sum to 1
        ),
        "accuracy": _Drawn(
            sklearn_metrics.accuracy_score(truth, chosen),
            lambda w: weighted.mean(chosen == truth, w),
            1 / count,
        ),
        "balanced_accuracy": _Drawn(
            # Not by balanced_accuracy_score, which warns when a class is chosen but never true.
            sklearn_metrics.recall_score(
                truth, chosen, labels=present, average="macro", zero_division=0.0
            ),
            lambda w: weighted.balanced_accuracy(table(w)),
            1 / count,
        ),
        "macro_f1": _Drawn(
            sklearn_metrics.f1_score(
                truth, chosen, labels=labels, average="macro", zero_division=0.0
            ),
            lambda w: weighted.f1(table(w)).mean(axis=1),
            None,
        ),
        "weighted_f1": _Drawn(
            sklearn_metrics.f1_score(truth, chosen, average="weighted", zero_division=0.0),
            lambda w: weighted.weighted_f1(table(w)),
            None,
        ),
    }
    for one, pair, area in zip(present.tolist(), every, areas, strict=True):
        found[f"class/{answers.names[one]}/auroc"] = _Drawn(
            sklearn_metrics.roc_auc_score(*pair), area, 0.5
        )
    return found | _calibration(answers)


_OF_LABELS = ("auroc", "auprc", "f1", "accuracy", "balanced_accuracy")


def _labels(answers: Answers) -> dict[str, _Drawn]:
    known = answers.truth != UNKNOWN
    columns: dict[str, dict[str, _Drawn]] = {}
    for place, name in enumerate(answers.names):
        plain = dataclasses.replace(answers.column(place), probabilities=False)
        columns[name] = {
            measure: _Drawn(
                one.value,
                _once(functools.partial(_of_some, one.drawn, known[:, place])),
                one.chance,
                known[:, place],
            )
            for measure, one in _binary(plain).items()
            if measure in _OF_LABELS
        }
    parts = list(columns.values())
    found: dict[str, _Drawn] = {}
    for measure in _OF_LABELS:
        if measure not in parts[0]:
            continue
        of_labels = [part[measure] for part in parts]
        chances = [one.chance for one in of_labels if one.chance is not None]
        found[f"macro_{measure}"] = _Drawn(
            float(np.mean([one.value for one in of_labels])),
            functools.partial(_mean_of, [one.drawn for one in of_labels]),
            float(np.mean(chances)) if len(chances) == len(of_labels) else None,
            known.any(axis=1),
        )
    for name, part in columns.items():
        for measure in ("auroc", "auprc", "f1"):
            if measure in part:
                found[f"label/{name}/{measure}"] = part[measure]
    return found | _calibration(answers)


def _once(drawn: _Draws) -> _Draws:
    """Remembers the last result: a mean over classes reads what each class states of itself."""
    last: list[np.ndarray] = []

    def remembered(weights: np.ndarray) -> np.ndarray:
        if not last or last[0] is not weights:
            last[:] = weights, drawn(weights)
        return last[1]

    return remembered


def _of_some(drawn: _Draws, inside: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return drawn(weights[:, inside])


def _mean_of(parts: Sequence[_Draws], weights: np.ndarray) -> np.ndarray:
    return np.mean([drawn(weights) for drawn in parts], axis=0)


def _number(answers: Answers) -> dict[str, _Drawn]:
    truth, value = np.asarray(answers.truth, np.float64), np.asarray(answers.scores, np.float64)
    if not np.ptp(truth):
        raise ValueError(f"{len(truth)} items have the same number: there is nothing to explain")
    return {
        "r2": _Drawn(
            sklearn_metrics.r2_score(truth, value),
            lambda w: weighted.explained_variance(truth, value, w),
            0.0,
        ),
        "mean_absolute_error": _Drawn(
            sklearn_metrics.mean_absolute_error(truth, value),
            lambda w: weighted.mean(np.abs(truth - value), w),
            None,
        ),
    }


def _calibration(answers: Answers) -> dict[str, _Drawn]:
    """The expected calibration error, of scores that are probabilities."""
    if not answers.probabilities:
        return {}
    confidence, right = _confidence(answers)
    if answers.kind == "labels":
        known = answers.truth != UNKNOWN
        items, some = np.nonzero(known)[0], known.any(axis=1)
    else:
        items, some = np.arange(len(answers)), None

    def drawn(weights: np.ndarray) -> np.ndarray:
        return weighted.calibration_error(confidence, right, weights[:, items], bins=BINS)

    return {"calibration_error": _Drawn(drawn(np.ones((1, len(answers))))[0], drawn, None, some)}


def _confidence(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities f64[m] and whether what they are of is true; known labels are pooled.

    Of exclusive classes it is the greatest probability, and whether that class is right.
    """
    if answers.kind == "classes":
        chosen = answers.scores.argmax(axis=1)
        return answers.scores.max(axis=1), chosen == answers.truth
    if answers.kind == "labels":
        known = answers.truth != UNKNOWN
        return answers.scores[known], answers.truth[known] == 1
    return np.asarray(answers.scores, np.float64), np.asarray(answers.truth, bool)


def _table(truth: np.ndarray, chosen: np.ndarray, count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights: weighted.confusion(truth, chosen, count, weights)
