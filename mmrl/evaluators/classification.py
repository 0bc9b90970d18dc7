"""Classification by a trained head: AUROC of labels, or accuracy of exclusive classes."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy import special

from mmrl import build
from mmrl.evaluators import pictures, scoring, statistics
from mmrl.evaluators.base import (
    Evaluator,
    Figure,
    Predict,
    Results,
    identity,
)
from mmrl.evaluators.subgroups import subgroups
from mmrl.types import InputError

PROTOCOL = "classification@1"
KINDS = ("labels", "classes")


class Classification(Evaluator):
    """Logits of a trained head against the labels of the record.

    A label is evaluated on the studies in which it is known to be absent or present. Labels without
    both classes, and studies without the encoded input, are excluded and counted. With
    kind="classes" the labels exclude each other; studies of which not exactly one is known to be
    present are excluded and counted. Values are those of `scoring.report`: of labels `macro_auroc`,
    the mean over them, first; with `_images_permuted` the same by the logits of another patient's
    image. Decisions are those at a probability of one half, or the most likely class. Intervals are
    from a bootstrap over patients. Protocol "classification@1".

    Args:
      predict, data: as for every evaluator.
      kind: labels, any number of which may be present, or classes, of which one is.
      input: the input of labels whose names and policy count, as in config.inputs.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutation and the resamples.

    Raises:
      InputError: no label with both classes, studies of fewer than two classes, or options out of
        range.
    """

    reads: ClassVar[Mapping[str, str]] = {"logits": "image.labels"}
    headline: ClassVar[Mapping[str, str]] = {
        "macro_auroc": "mean AUROC over labels",
        "accuracy": "share of studies whose class is the most likely one",
    }

    def __init__(
        self,
        predict: Predict,
        data: Any,
        *,
        kind: str = "labels",
        reads: Mapping[str, str] | None = None,
        input: str = "labels",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> None:
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        if kind not in KINDS:
            raise InputError(build.unknown("kind of classification", kind, KINDS))
        super().__init__(predict, data, reads=reads)
        self.kind, self.bootstrap, self.seed = kind, bootstrap, seed
        self.label_names = tuple(data.input(input).label_names)
        arrays = data.arrays((input,), range(len(data)))
        self.values = arrays[f"{input}.values"]
        # Uncertain labels may be a class of their own, 2, which is neither absent nor present.
        self.known = arrays[f"{input}.mask"] & (self.values <= 1)
        self._truth(np.ones(len(data), bool))
        self.subgroups = subgroups(data)

    def _truth(self, present: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """The studies that count i64[n], their truth for `scoring.Answers`, and the labels kept.

        Raises:
          InputError: nothing can be ranked.
        """
        known = self.known & present[:, None]
        stated = known & (self.values > 0.5)
        if self.kind == "classes":
            rows = np.flatnonzero(stated.sum(axis=1) == 1)
            truth = stated[rows].argmax(axis=1)
            if len(np.unique(truth)) < 2:
                raise InputError(
                    f"{len(rows)} of {len(self.data)} examples of {self.data.name} have exactly "
                    f"one of {', '.join(self.label_names)}, of {len(np.unique(truth))} classes; "
                    "classification needs at least two"
                )
            return rows, truth, list(range(len(self.label_names)))
        kept = [
            column
            for column in range(len(self.label_names))
            if len(np.unique(stated[known[:, column], column])) == 2
        ]
        if not kept:
            raise InputError(
                f"no label of {self.data.name} has both classes among {len(self.data)} examples "
                f"({', '.join(self.label_names)}); classification needs at least one"
            )
        rows = np.flatnonzero(known[:, kept].any(axis=1))
        truth = np.where(known, stated, scoring.UNKNOWN).astype(np.int8)
        return rows, truth[rows][:, kept], kept

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          InputError: the logits are not one for each label; nothing is left to rank.
          FloatingPointError: a logit is not finite.
        """
        data, name = self.data, self.names["logits"]
        encoded = self.predict.encode(state, data, [name])
        present, scores = encoded["present"], np.asarray(encoded[name], np.float64)
        if scores.shape != self.values.shape:
            raise InputError(
                f"{name} has the shape {scores.shape}, the labels {self.values.shape}; the head "
                f"needs {len(self.label_names)} features, one for each label"
            )
        finite = np.isfinite(scores).all(axis=1) | ~present
        if not finite.all():
            raise FloatingPointError(
                f"{name} is not finite, first {data.ids[int(np.argmin(finite))]}"
            )
        rows, truth, kept = self._truth(present)
        classes = self.kind == "classes"
        chances = special.softmax(scores, axis=1) if classes else special.expit(scores)
        there = np.flatnonzero(present)
        rng = statistics.generator(self.seed, "images")
        patients = [data.patients[row] for row in there.tolist()]
        blind = []
        for order in statistics.permutations_between_patients(patients, rng, 1):
            foreign = chances.copy()
            foreign[there] = chances[there[order]]
            blind.append(foreign[rows][:, kept])
        answers = scoring.Answers(
            "classes" if classes else "labels",
            chances[rows][:, kept],
            truth,
            np.asarray(data.patients)[rows],
            [self.label_names[column] for column in kept],
            threshold=None if classes else 0.5,
            probabilities=True,
        )
        values, details = scoring.report(
            answers,
            rows={"images_permuted": blind},
            subgroups={group: inside[rows] for group, inside in self.subgroups.items()},
            bootstrap=self.bootstrap,
            seed=self.seed,
        )
        excluded = {
            "labels of one class only": len(self.label_names) - len(kept),
            "an input is missing": int((~present).sum()),
            "not exactly one class": int(present.sum()) - len(rows) if classes else 0,
        }
        return Results(
            protocol=PROTOCOL,
            values=values,
            n=len(rows) if classes else int(present.sum()),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded={reason: count for reason, count in excluded.items() if count},
            answers={self.kind: answers},
            details={
                **details,
                "labels": [self.label_names[column] for column in kept],
                "options": {"kind": self.kind, "bootstrap": self.bootstrap, "seed": self.seed},
            },
        )

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """How the answers lie to the truth."""
        return pictures.of_answers(results.answers)
