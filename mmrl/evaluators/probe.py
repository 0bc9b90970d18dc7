"""Probes: what simple models read from frozen features, beside what they read from pixels."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np

from mmrl import build, sequences, wiring
from mmrl.data import draws as drawing
from mmrl.data.image import dicom
from mmrl.evaluators import linear, metrics, pictures, scoring, statistics
from mmrl.evaluators.base import (
    Estimate,
    Evaluator,
    Figure,
    HeldOut,
    Predict,
    Results,
    identity,
)
from mmrl.evaluators.scoring import UNKNOWN, Answers
from mmrl.evaluators.subgroups import subgroups
from mmrl.types import InputError

PROTOCOL = "probe@1"
KINDS = ("labels", "classes", "binary", "number")
METHODS = ("linear", "adamw", "uni", "knn", "simple_shot")
SIDE = 32  # pixels per side of the images of the row raw_pixels
FOLDS = 5  # of the training patients, where no validation split can choose
_GRID_PATIENCE = 2
_EPOCH_PATIENCE = 10
_AT_ONCE = 256  # images in memory at a time


class _Part(NamedTuple):
    """Items of a split: features f32[n, D], truth as in `Answers`, and patients."""

    x: np.ndarray
    truth: np.ndarray
    patients: np.ndarray

    def take(self, rows: np.ndarray) -> "_Part":
        return _Part(self.x[rows], self.truth[rows], self.patients[rows])


class _Parts(NamedTuple):
    """The items to learn from, to choose by (None: folds of the former), and to answer."""

    train: _Part
    check: _Part | None
    test: _Part


@dataclasses.dataclass
class _Split:
    """A split before anything is encoded.

    Attributes:
      rows: i64[n], the examples whose truth is known. truth: of these, as in `Answers`.
      excluded: reason -> number of examples left out.
    """

    data: HeldOut
    rows: np.ndarray
    truth: np.ndarray
    excluded: dict[str, int]

    def keep(self, inside: np.ndarray, reason: str) -> None:
        """Leaves out the rows where `inside` bool[n] is False."""
        if not inside.all():
            self.excluded[reason] = int((~inside).sum())
        self.rows, self.truth = self.rows[inside], self.truth[inside]


class _Fitted(NamedTuple):
    """Scores of the evaluated items, those of the items that chose, and what was chosen.

    SimpleShot chooses nothing, so that its `check` is None.
    """

    answers: Answers
    check: Answers | None
    chosen: dict[str, Any]


_Model = Callable[[np.ndarray], np.ndarray]


class Probe(Evaluator):
    """Simple models on frozen features: fitted on the training split, judged on another one.

    Each method gives the measures of `scoring.report`, with rows of the same method on raw pixels
    (the prepared image, averaged down to 32 x 32), of images of other patients, and of a constant
    predictor; subgroups; calibration; and, for labels, sensitivity, specificity and F1 at two
    thresholds. Values are named "{method}_{percent of the training labels}%/{measure}" and
    "simple_shot_{shots}_shots/{measure}". Protocol "probe@1".

    Strengths, epochs and thresholds are chosen on the validation split by cross-entropy (squared
    error for numbers). If that is the evaluated split, or there is none, five folds of the training
    patients choose, and the final model is fitted on all of them. The evaluated split chooses
    nothing.

    Methods:

      linear       logistic regression on standardised features by L-BFGS; ridge regression for
                   kind="number". Every label has its own strength
      adamw        a linear layer trained by AdamW as MGCA does: learning rate 5e-4, decay 1e-6,
                   batch 48, at most 50 epochs, patience 10 on the validation loss
      uni          UNI's linear probe, which penalises the norm of the weights and chooses nothing
      knn          share of votes among the nearest training items, features centred, length 1
      simple_shot  nearest class mean of a few training items per class, on the same features

    Args:
      predict, data: as for every evaluator.
      kind: what is asked: "labels", any number at once; "classes", exclusive ones that the labels
        give one-hot; "binary", the one label `target`; "number", the attribute `target` of records,
        such as age.
      target: the label or attribute of kind="binary" and kind="number".
      labels: names of labels or classes; empty: config.data.label_names or, if that is empty, all
        labels of the corpus. config.data.label_policy says how they are read.
      min_positives: examples of both classes that a label of kind="labels" needs in every split;
        labels with fewer are left out, and the details state the reason.
      methods: any of linear, adamw, uni, knn and simple_shot; kind="number" has linear alone.
      fractions: parts of the training labels, drawn by patient; simple_shot has shots instead.
      shots: training items per class of simple_shot, from as many patients; 0: all items.
      draws: random draws for each fraction below 1 and each number of shots. Values are means over
        draws, and the details have their range.
      strengths: penalties that linear may choose; empty: powers of ten from 1e-4 to 10 or, for
        kind="number", from 1e-3 to 100.
      neighbours: training items that vote in knn; all of them where there are fewer.
      sensitivity: sensitivity that the operating point has on the items that choose.
      permutations: how often the images are permuted between patients, at least once per draw.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of draws, folds, permutations, starts and resamples.

    Raises:
      InputError: the evaluated split is the training split; no label has both classes in every
        split; an option is invalid.
    """

    reads: ClassVar[Mapping[str, str]] = {"features": "image.pooled"}
    headline: ClassVar[Mapping[str, str]] = {
        "linear_100%/macro_auroc": "linear probe, mean AUROC",
        "linear_100%/auroc": "linear probe, AUROC",
        "linear_100%/r2": "linear probe, R²",
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        reads: Mapping[str, str] | None = None,
        kind: str = "labels",
        target: str = "",
        labels: Sequence[str] = (),
        min_positives: int = 1,
        methods: Sequence[str] = ("linear",),
        fractions: Sequence[float] = (1.0,),
        shots: Sequence[int] = (1, 4, 16),
        draws: int = 3,
        strengths: Sequence[float] = (),
        neighbours: int = 5,
        sensitivity: float = 0.9,
        permutations: int = 1,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> None:
        statistics.at_least(
            1,
            draws=draws,
            neighbours=neighbours,
            permutations=permutations,
            min_positives=min_positives,
        )
        statistics.at_least(0, bootstrap=bootstrap, seed=seed, shots=min(shots, default=0))
        super().__init__(predict, data, reads=reads)
        self.kind, self.target, self.min_positives = kind, target, min_positives
        self.methods = tuple(sequences.each(methods, "probe.methods"))
        self.fractions, self.shots = tuple(fractions), tuple(shots)
        self.draws, self.neighbours, self.sensitivity = draws, neighbours, sensitivity
        self.permutations, self.bootstrap, self.seed = permutations, bootstrap, seed
        usual = linear.RIDGE_STRENGTHS if kind == "number" else linear.STRENGTHS
        self.strengths = tuple(sorted(strengths, reverse=True)) or usual
        self._check_options()
        self.asked: tuple[str, ...] = (target,)
        if kind in ("labels", "classes"):
            self.asked = data.labels(labels)[0]
        elif labels:
            raise InputError(f"labels={tuple(labels)}: kind={kind!r} has the target {target!r}")
        self.left_out: dict[str, str] = {}
        self._splits = self._read_splits()
        self._subgroups: dict[str, np.ndarray] | None = None
        self._of_pixels: dict[str, list[_Fitted]] | None = None

    def _check_options(self) -> None:
        """Refuses options out of range.

        Raises:
          InputError: names the first one.
        """
        if self.kind not in KINDS:
            raise InputError(build.unknown("kind of probe", self.kind, KINDS))
        if (self.kind in ("binary", "number")) != bool(self.target):
            needed = "a target" if not self.target else "no target"
            raise InputError(f"target={self.target!r}: kind={self.kind!r} needs {needed}")
        offered = METHODS[:1] if self.kind == "number" else METHODS
        for method in self.methods:
            if method not in offered:
                raise InputError(build.unknown(f"method of kind={self.kind!r}", method, offered))
        if not self.methods:
            raise InputError(f"no methods; choose from {', '.join(offered)}")
        for fraction in self.fractions:
            drawing.check(fraction, 0)
        if not self.fractions and set(self.methods) - {"simple_shot"}:
            raise InputError("no fractions; expected numbers above 0 and at most 1")
        if not self.shots and "simple_shot" in self.methods:
            raise InputError("no shots; simple_shot needs at least one number")
        if not 0 < self.sensitivity <= 1:
            raise InputError(f"sensitivity={self.sensitivity}; expected above 0 and at most 1")
        if min(self.strengths) <= 0:
            raise InputError(f"strengths {self.strengths}; expected numbers above 0")

    # --- what is asked, before anything is encoded

    def _read_splits(self) -> dict[str, _Split]:
        """The splits by role, with what every one of them can be asked.

        Raises:
          InputError: see the class.
        """
        data = self.data
        train, check = data.split("train"), data.split("val")
        # By name: corrupted images and subsets have other digests.
        if train.name == data.name:
            raise InputError(
                f"{data.name} is the training split, from which probes learn; evaluate another one"
            )
        of_role = {"train": train, "check": check, "test": data}
        if check.name == data.name or not len(check):
            del of_role["check"]
        splits = {role: self._read(one) for role, one in of_role.items()}
        if self.kind == "classes":
            self._keep_classes(splits)
        elif self.kind != "number":
            self._keep_labels(splits)
        for one in splits.values():
            if not len(one.rows):
                raise InputError(f"no example of {one.data.name} can be asked: {one.excluded}")
            if self.kind == "number":
                self._check_numbers(one, one.truth)
        return splits

    def _read(self, data: HeldOut) -> _Split:
        """The examples of a split whose truth is known."""
        every = np.arange(len(data))
        if self.kind == "number":
            numbers = np.array([self._number(data, row) for row in every.tolist()], np.float64)
            split = _Split(data, every, numbers, {})
            split.keep(np.isfinite(numbers), f"no number in attribute {self.target}")
            return split
        _, values, known = data.labels(self.asked)
        # Uncertain labels may be a class of their own, 2, which is neither absent nor present.
        labels = np.where(known & (values <= 1), values, UNKNOWN).astype(np.int8)
        if self.kind == "labels":
            return _Split(data, every, labels, {})
        if self.kind == "binary":
            split = _Split(data, every, labels, {})
            split.keep(labels[:, 0] != UNKNOWN, f"{self.target} is unknown")
            return split
        present = (labels == 1).sum(axis=1)
        split = _Split(data, every, np.where(present == 1, labels.argmax(axis=1), UNKNOWN), {})
        several = present > 1
        split.keep(~several, "several classes are present")
        split.keep(split.truth != UNKNOWN, "no class is present")
        return split

    def _number(self, data: HeldOut, row: int) -> float:
        """The attribute `target` of a record; NaN where it is no finite number."""
        text = data.record(row).attributes.get(self.target, "")
        if self.target == "age":
            years = dicom.years(text)
            return np.nan if years is None else years
        try:
            return float(text)
        except ValueError:
            return np.nan

    def _keep_labels(self, splits: Mapping[str, _Split]) -> None:
        """Leaves out labels without enough examples of both classes in every split."""
        kept = []
        for column, name in enumerate(self.asked):
            reasons = []
            for one in splits.values():
                yes, no = ((one.truth[:, column] == value).sum() for value in (1, 0))
                if min(yes, no) < self.min_positives:
                    reasons.append(f"{one.data.name}: {yes} present and {no} absent")
            if reasons:
                self.left_out[name] = "; ".join(reasons)
            else:
                kept.append(column)
        if not kept:
            least = "" if self.min_positives == 1 else f"{self.min_positives} examples of "
            raise InputError(
                f"no label has {least}both classes in every split that a probe needs: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            )
        self.asked = tuple(self.asked[column] for column in kept)
        for one in splits.values():
            one.truth = one.truth[:, kept]
            one.keep((one.truth != UNKNOWN).any(axis=1), "no label is known")

    def _keep_classes(self, splits: Mapping[str, _Split]) -> None:
        """Leaves out classes that a split lacks, with their examples."""
        kept = []
        for place, name in enumerate(self.asked):
            lacking = [one.data.name for one in splits.values() if not (one.truth == place).any()]
            if lacking:
                self.left_out[name] = f"no example in {', '.join(lacking)}"
            else:
                kept.append(place)
        if len(kept) < 2:
            raise InputError(
                f"{len(kept)} class has examples in every split that a probe needs, expected two: "
                + "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            )
        self.asked = tuple(self.asked[place] for place in kept)
        number = np.full(len(self.asked) + len(self.left_out), UNKNOWN)
        number[kept] = np.arange(len(kept))
        for one in splits.values():
            one.truth = number[one.truth]
            one.keep(one.truth != UNKNOWN, "its class is left out")

    # --- the evaluation

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          InputError: padded features, such as words; a class or label whose examples all lack the
            input.
          FloatingPointError: a feature is not finite.
        """
        features, present = {}, {}
        for role, split in self._splits.items():
            features[role], present[role] = self._features(state, split.data)
        inside = {role: present[role][split.rows] for role, split in self._splits.items()}
        parts = self._parts(features, inside)
        self._check_present(parts)
        pixels = self._pixel_answers(inside)
        test = self._splits["test"]
        rows = test.rows[inside["test"]]
        if self._subgroups is None:
            self._subgroups = subgroups(self.data)
        groups = {name: mask[rows] for name, mask in self._subgroups.items()}
        values: dict[str, Estimate] = {}
        details: dict[str, Any] = {}
        answers: dict[str, Answers] = {}
        for name, method, drawn in self._settings(parts.train):
            fitted = [self._fit(method, parts, train, draw) for draw, train in enumerate(drawn)]
            answers[name] = fitted[0].answers
            of_setting, details[name] = self._report(name, fitted, pixels, parts, groups)
            details[name] |= {
                "training_items": [len(train.truth) for train in drawn],
                "chosen": [one.chosen for one in fitted],
            }
            values |= {f"{name}/{measure}": one for measure, one in of_setting.items()}
        excluded = dict(test.excluded)
        if missing := int((~inside["test"]).sum()):
            excluded["an input is missing"] = missing
        return Results(
            protocol=PROTOCOL,
            # The first fraction of the first method comes first, measures of labels last.
            values=dict(sorted(values.items(), key=lambda item: item[0].count("/") > 1)),
            n=len(rows),
            data=identity(self.data),
            preprocessing=self.data.preprocessing,
            excluded=excluded,
            answers=answers,
            details={
                "features": self.names["features"],
                "kind": self.kind,
                "names": list(self.asked),
                "left_out": self.left_out,
                "learned_from": self._described("train", inside),
                "chosen_by": self._described("check", inside)
                if "check" in self._splits
                else f"{FOLDS} folds of the training patients",
                "probes": details,
                "raw_pixels": None
                if pixels is None
                else f"the prepared image, averaged down to {SIDE} x {SIDE}",
                "options": {
                    "strengths": list(self.strengths),
                    "min_positives": self.min_positives,
                    "neighbours": self.neighbours,
                    "sensitivity": self.sensitivity,
                    "draws": self.draws,
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                    "seed": self.seed,
                },
            },
        )

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """How the answers lie to the truth, of the first draw, and a map of the features."""
        features, present = self._features(state, self.data)
        rows = np.flatnonzero(present)
        name = self.names["features"]
        return [
            *pictures.of_answers(results.answers),
            *pictures.embedding_map(self.data, rows, features[rows], of=name, seed=self.seed),
        ]

    def _described(self, role: str, inside: Mapping[str, np.ndarray]) -> dict[str, Any]:
        split = self._splits[role]
        missing = int((~inside[role]).sum())
        excluded = split.excluded | ({"an input is missing": missing} if missing else {})
        return {
            "name": split.data.name,
            "items_sha256": split.data.items_sha256,
            "n": int(inside[role].sum()),
            "excluded": excluded,
        }

    def _features(self, state: Any, data: HeldOut) -> tuple[np.ndarray, np.ndarray]:
        """(f32[N, D], present bool[N]). Features of regions are averaged block by block."""
        name = self.names["features"]
        parsed = wiring.parse(name)
        if parsed.feature == "words":
            raise InputError(f"{name} has padding; a probe reads one vector, or regions")
        first = statistics.Subset(data, [0])
        (block,) = self.predict.stream(state, first, [name])
        if block[name].ndim == 2:  # small enough to be remembered, as other evaluators need it
            encoded = self.predict.encode(state, data, [name])
            features, present = np.asarray(encoded[name], np.float32), encoded["present"]
        elif block[name].ndim == 3:
            blocks = [
                (np.asarray(one[name], np.float32).mean(axis=1), one["present"])
                for one in self.predict.stream(state, data, [name])
            ]
            features, present = (np.concatenate(column) for column in zip(*blocks, strict=True))
        else:
            raise InputError(
                f"{name} has the shape {list(block[name].shape[1:])} per example; a probe reads "
                "one vector, or regions [R, D]"
            )
        finite = np.isfinite(features).all(axis=1) | ~present
        if not finite.all():
            raise FloatingPointError(
                f"{name} is not finite for {int((~finite).sum())} of {len(finite)} examples of "
                f"{data.name}, first {data.ids[int(np.argmin(finite))]}"
            )
        return features, present

    def _parts(
        self, features: Mapping[str, np.ndarray], inside: Mapping[str, np.ndarray]
    ) -> _Parts:
        """Features f32[N, D] by role -> those of the items with a truth and the input."""
        found: dict[str, _Part] = {}
        for role, split in self._splits.items():
            rows = split.rows[inside[role]]
            patients = np.asarray(split.data.patients)[rows]
            found[role] = _Part(features[role][rows], split.truth[inside[role]], patients)
        return _Parts(found["train"], found.get("check"), found["test"])

    def _check_present(self, parts: _Parts) -> None:
        """Refuses items of which those with the input lack a class.

        Raises:
          InputError: names it.
        """
        for role, part in zip(_Parts._fields, parts, strict=True):
            if part is None:
                continue
            if self.kind == "number":
                self._check_numbers(self._splits[role], part.truth)
                continue
            classes = range(len(self.asked)) if self.kind == "classes" else (0, 1)
            columns = part.truth.reshape(len(part.truth), -1).T
            if not all((column == one).any() for column in columns for one in classes):
                raise InputError(
                    f"the examples of {self._splits[role].data.name} that have "
                    f"{self.names['features']} lack a class of {', '.join(self.asked)}"
                )

    def _check_numbers(self, split: _Split, numbers: np.ndarray) -> None:
        """Refuses a split without two different numbers, of which nothing can be explained.

        Raises:
          InputError: names it.
        """
        if not len(numbers) or not np.ptp(numbers):
            raise InputError(
                f"{len(numbers)} examples of {split.data.name} can be asked for {self.target}, all "
                "with the same number; expected two numbers at least"
            )

    def _settings(self, train: _Part) -> Iterator[tuple[str, str, list[_Part]]]:
        """Name, method, and for each draw the training items."""
        truth = None if self.kind == "number" else train.truth
        draw_by_patient = functools.partial(
            drawing.draw_by_patient, train.patients, truth, seed=self.seed
        )
        for method in self.methods:
            if method == "simple_shot":
                for shots in self.shots:
                    drawn = [self._shots(train, shots, draw) for draw in self._draws(shots > 0)]
                    yield f"{method}_{shots or 'all'}_shots", method, drawn
                continue
            for fraction in self.fractions:
                drawn = [
                    train.take(draw_by_patient(fraction, draw=draw))
                    for draw in self._draws(fraction < 1)
                ]
                yield f"{method}_{100 * fraction:g}%", method, drawn

    def _draws(self, random: bool) -> range:
        return range(self.draws if random else 1)

    def _shots(self, train: _Part, shots: int, draw: int) -> _Part:
        """`shots` items of each class, each of another patient; all where there are fewer.

        Every label is a question of its own with two classes, absent and present; for the others,
        its items are unknown.
        """
        if not shots:
            return train
        rng = statistics.generator(self.seed, "probe", "shots", str(draw))
        order = rng.permutation(len(train.truth))
        drawn = np.full_like(train.truth, UNKNOWN)
        columns, taken = (one.reshape(len(order), -1) for one in (train.truth, drawn))
        for column, into in zip(columns.T, taken.T, strict=True):
            for one in np.unique(column[column != UNKNOWN]):
                rows = order[column[order] == one]
                firsts = np.unique(train.patients[rows], return_index=True)[1]
                into[rows[np.sort(firsts)[:shots]]] = one
        return _Part(train.x, drawn, train.patients).take((taken != UNKNOWN).any(axis=1))

    # --- fitting

    def _fit(self, method: str, parts: _Parts, train: _Part, draw: int) -> _Fitted:
        """Learns from some training items and scores the evaluated ones."""
        if method == "simple_shot":
            return _Fitted(self._answers(self._simple_shot(train), parts.test, method), None, {})
        folds = self._folds(train) if parts.check is None else [(train, parts.check)]
        chosen: dict[str, Any] = {}
        models: Sequence[_Model]
        if method == "knn":
            models = [self._knn(fit) for fit, _ in folds]
            model = self._knn(train) if parts.check is None else models[0]
        else:
            found = linear.choose(
                self._path(method, draw),
                [(self._items(fit), self._items(check)) for fit, check in folds],
                self._items(train) if parts.check is None else None,
                together=method == "adamw",
                patience={"linear": _GRID_PATIENCE, "adamw": _EPOCH_PATIENCE}.get(method),
            )
            chosen = self._stated(method, found)
            model, models = self._scoring(found.model), [*map(self._scoring, found.of_folds)]
        check = _together(
            [self._answers(one, part, method) for one, (_, part) in zip(models, folds, strict=True)]
        )
        return _Fitted(
            self._answers(model, parts.test, method, self._threshold(check)), check, chosen
        )

    def _folds(self, train: _Part) -> list[tuple[_Part, _Part]]:
        """Parts to fit and to choose by, so that every patient chooses once."""
        owner = np.unique(train.patients, return_inverse=True)[1]
        count = int(owner.max()) + 1
        if count < 2:
            raise InputError(
                f"the items that a probe learns from belong to {count} patient; choosing needs two"
            )
        rng = statistics.generator(self.seed, "probe", "folds")
        fold = (rng.permutation(count) % min(FOLDS, count))[owner]
        return [
            (train.take(fold != one), train.take(fold == one)) for one in range(min(FOLDS, count))
        ]

    def _items(self, part: _Part) -> linear.Items:
        if self.kind == "number":
            values = part.truth[:, None].astype(np.float32)
        elif self.kind == "classes":
            values = np.eye(len(self.asked), dtype=np.float32)[part.truth]
        else:
            values = (part.truth == 1).astype(np.float32)
        labels = self.kind in ("labels", "binary")
        known = part.truth != UNKNOWN if labels else np.ones(values.shape, bool)
        return linear.Items(part.x, linear.Targets(self._linear_kind, values, known))

    @property
    def _linear_kind(self) -> linear.Kind:
        if self.kind == "classes":
            return "classes"
        return "number" if self.kind == "number" else "labels"

    def _path(self, method: str, draw: int) -> Callable[[linear.Items], linear.Path]:
        if method == "adamw":
            return lambda items: linear.adamw(
                items, statistics.generator(self.seed, "probe", "adamw", str(draw))
            )
        if method == "uni":
            return linear.uni
        fit = linear.ridge if self.kind == "number" else linear.logistic
        return functools.partial(fit, strengths=self.strengths)

    def _stated(self, method: str, found: linear.Chosen) -> dict[str, Any]:
        """What was chosen, for the details."""
        if method == "uni":
            return {}
        if method == "adamw":
            return {"epochs": int(found.positions[0]) + 1, "tried": len(found.losses)}
        chosen = [self.strengths[place] for place in found.positions.tolist()]
        shared = self.kind == "classes"
        return {"strength": chosen[0] if shared else dict(zip(self.asked, chosen, strict=True))}

    def _scoring(self, model: linear.Model) -> _Model:
        return lambda x: linear.probabilities(self._linear_kind, model(x))

    def _knn(self, part: _Part) -> _Model:
        def shares(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
            return metrics.neighbour_shares(x, y, test, k=min(self.neighbours, len(y)))

        def labels(x: np.ndarray) -> np.ndarray:
            found = np.zeros((len(x), len(self.asked)))  # where nothing can be learned
            # Labels that the same items have share their neighbours, which take the time.
            every, which = np.unique(part.truth != UNKNOWN, axis=1, return_inverse=True)
            for number, known in enumerate(every.T):
                truth = part.truth[known]
                several = (truth == 1).any(axis=0) & (truth == 0).any(axis=0)
                places = np.flatnonzero((which.ravel() == number) & several)
                if len(places):
                    near = metrics.nearest(part.x[known], x, k=min(self.neighbours, len(truth)))
                    found[:, places] = (truth[:, places] == 1)[near].mean(axis=1)
            return found

        return self._by_class(part, shares) if self.kind == "classes" else labels

    def _simple_shot(self, part: _Part) -> _Model:
        return self._by_class(part, lambda *given: -metrics.class_distances(*given))

    def _by_class(
        self,
        part: _Part,
        score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    ) -> _Model:
        """A model of scores by class; of labels, one question each about the known items."""

        def classes(x: np.ndarray) -> np.ndarray:
            found = np.full((len(x), len(self.asked)), -np.inf)
            found[:, np.unique(part.truth)] = score(part.x, part.truth, x)
            # A class that a fold lacks is less likely than all others.
            return np.where(np.isinf(found), found[np.isfinite(found)].min() - 1, found)

        def labels(x: np.ndarray) -> np.ndarray:
            columns = []
            for column in part.truth.T:
                known = column != UNKNOWN
                if len(np.unique(column[known])) < 2:
                    columns.append(np.zeros(len(x)))  # nothing can be learned in this fold
                    continue
                found = score(part.x[known], column[known], x)
                columns.append(found[:, 1] - found[:, 0])
            return np.stack(columns, axis=1)

        return classes if self.kind == "classes" else labels

    # --- answers

    def _answers(
        self, model: _Model, part: _Part, method: str, threshold: np.ndarray | None = None
    ) -> Answers:
        """What a model answers about some items."""
        scores, truth, patients, names = model(part.x), part.truth, part.patients, self.asked
        likely = method != "simple_shot"
        if method == "simple_shot":
            threshold = np.zeros(len(names))
        if self.kind == "number":
            return Answers("number", scores[:, 0], truth, patients, names)
        if self.kind == "classes":
            return Answers("classes", scores, truth, patients, names, probabilities=likely)
        if self.kind == "labels":
            return Answers("labels", scores, truth, patients, names, threshold, likely)
        one = None if threshold is None else float(threshold[0])
        return Answers("binary", scores[:, 0], truth[:, 0] == 1, patients, names, one, likely)

    def _threshold(self, check: Answers) -> np.ndarray | None:
        """f64[C], those with the best F1 on the items that choose; None for classes and numbers."""
        if self.kind not in ("labels", "binary"):
            return None
        return np.array([scoring.best_f1_threshold(c.scores, c.truth) for c in _columns(check)])

    def _report(
        self,
        name: str,
        fitted: Sequence[_Fitted],
        pixels: Mapping[str, list[_Fitted]] | None,
        parts: _Parts,
        groups: Mapping[str, np.ndarray],
    ) -> tuple[dict[str, Estimate], dict[str, Any]]:
        """Values and details of one method with one number of training labels."""
        rows: dict[str, list[Answers]] = {}
        if pixels is not None:
            rng = statistics.generator(self.seed, "images")
            count = max(self.permutations, len(fitted))
            orders = statistics.permutations_between_patients(parts.test.patients, rng, count)
            rows["images_permuted"] = []
            for number, order in enumerate(orders):
                own = fitted[number % len(fitted)].answers
                rows["images_permuted"].append(dataclasses.replace(own, scores=own.scores[order]))
            rows["raw_pixels"] = [one.answers for one in pixels[name]]
        reference = parts.train.truth
        if self.kind == "binary":
            reference = reference[:, 0] == 1
        values, details = scoring.report(
            fitted[0].answers,
            repeats=[one.answers for one in fitted[1:]],
            rows=rows,
            reference=reference,
            subgroups=groups,
            bootstrap=self.bootstrap,
            seed=self.seed,
        )
        if fitted[0].answers.kind in ("labels", "binary") and fitted[0].check is not None:
            points, details["thresholds"] = self._operating_points(fitted)
            values |= points
        return values, details

    def _operating_points(
        self, fitted: Sequence[_Fitted]
    ) -> tuple[dict[str, Estimate], dict[str, Any]]:
        """Measures at two thresholds of each label, both chosen on the items that choose."""
        measures = ("sensitivity", "specificity", "f1")
        values: dict[str, Estimate] = {}
        details: dict[str, Any] = {}
        for place, label in enumerate(self.asked):
            pairs = [
                (_columns(one.answers)[place], _columns(one.check)[place])
                for one in fitted
                if one.check is not None
            ]
            points = {
                f"at_{100 * self.sensitivity:g}%_sensitivity": [
                    scoring.threshold_at(check.scores, check.truth, self.sensitivity)
                    for _, check in pairs
                ],
                "at_best_f1": [
                    scoring.best_f1_threshold(check.scores, check.truth) for _, check in pairs
                ],
            }
            details[label] = points
            for point, thresholds in points.items():
                parts = [
                    scoring.estimates(
                        dataclasses.replace(answers, threshold=threshold, probabilities=False),
                        samples=self.bootstrap,
                        seed=self.seed,
                        only=measures,
                    )
                    for (answers, _), threshold in zip(pairs, thresholds, strict=True)
                ]
                where = "" if self.kind == "binary" else f"label/{label}/"
                for measure in measures:
                    values[f"{where}{measure}_{point}"] = scoring.average(
                        [part[measure] for part in parts]
                    )
        return values, details

    def _pixel_answers(self, inside: Mapping[str, np.ndarray]) -> dict[str, list[_Fitted]] | None:
        """Setting -> the answers of its draws from pixels; None if the features see no image.

        They do not depend on the state and are computed once.
        """
        if self._of_pixels is None:
            name = self.names["features"]
            if self.data.pixels(name, [0]) is None:
                return None
            features = {
                role: small_pixels(split.data, name) for role, split in self._splits.items()
            }
            parts = self._parts(features, inside)
            self._of_pixels = {
                setting: [self._fit(method, parts, rows, draw) for draw, rows in enumerate(draws)]
                for setting, method, draws in self._settings(parts.train)
            }
        return self._of_pixels


def _together(parts: Sequence[Answers]) -> Answers:
    """The answers about the items of all parts."""
    return dataclasses.replace(
        parts[0],
        scores=np.concatenate([one.scores for one in parts]),
        truth=np.concatenate([one.truth for one in parts]),
        patients=np.concatenate([np.asarray(one.patients) for one in parts]),
    )


def _columns(answers: Answers) -> list[Answers]:
    """One binary question for each label."""
    if answers.kind == "binary":
        return [answers]
    return [answers.column(place) for place in range(len(answers.names))]


def small_pixels(data: HeldOut, encoding: str, side: int = SIDE) -> np.ndarray:
    """f32[N, S * S * channels] from 0 to 1: images of an encoding, at most `side` px wide."""
    found = []
    for start in range(0, len(data), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(data)))
        pixels = data.pixels(encoding, rows)
        assert pixels is not None
        for one in pixels:
            size = min(side, one.shape[1]), min(side, one.shape[0])
            small = cv2.resize(one, size, interpolation=cv2.INTER_AREA)
            found.append(small.reshape(-1).astype(np.float32) / 255)
    return np.stack(found)
