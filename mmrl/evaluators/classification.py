"""Classification by a trained head: macro AUROC and the AUROC of every label."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.evaluators import metrics, statistics
from mmrl.evaluators.base import Estimate, Evaluator, Predict, Results
from mmrl.types import InputError

PROTOCOL = "classification@1"


class Classification(Evaluator):
    """AUROC of logits against the labels of the record.

    A label is evaluated on the studies in which it is known to be absent or present. Labels without
    both classes, and studies without the encoded input, are excluded and counted. `macro_auroc` is
    the mean over labels, and `macro_auroc_images_permuted` the same with the logits of another
    patient's image. Intervals are from a bootstrap over patients. Protocol "classification@1".

    Args:
      predict, data: as for every evaluator.
      input: the input of labels whose names and policy count, as in config.inputs.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the permutation and the resamples.

    Raises:
      InputError: no label with both classes, or options out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {"logits": "image.labels"}
    headline: ClassVar[Mapping[str, str]] = {"macro_auroc": "mean AUROC over labels"}

    def __init__(
        self,
        predict: Predict,
        data: Any,
        *,
        reads: Mapping[str, str] | None = None,
        input: str = "labels",
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> None:
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        super().__init__(predict, data, reads=reads)
        self.bootstrap, self.seed = bootstrap, seed
        self.label_names = data.input(input).label_names
        arrays = data.arrays((input,), range(len(data)))
        self.values = arrays[f"{input}.values"]
        # Uncertain labels may be a class of their own, 2, which is neither absent nor present.
        self.known = arrays[f"{input}.mask"] & (self.values <= 1)
        self._kept(self.known)

    def _kept(self, known: np.ndarray) -> list[int]:
        """The labels with both classes among the known ones.

        Raises:
          InputError: there are none.
        """
        kept = [
            column
            for column in range(len(self.label_names))
            if len(np.unique(self.values[known[:, column], column] > 0.5)) == 2
        ]
        if not kept:
            raise InputError(
                f"no label of {self.data.name} has both classes among {len(self.data)} examples "
                f"({', '.join(self.label_names)}); classification needs at least one"
            )
        return kept

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class, then "label/{name}/auroc".

        Raises:
          InputError: the logits are not one for each label; no label is left.
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
        known = self.known & present[:, None]
        kept = self._kept(known)
        rows = np.flatnonzero(present)
        rng = statistics.generator(self.seed, "images")
        patients = [data.patients[row] for row in rows.tolist()]
        foreign = scores.copy()
        foreign[rows] = scores[rows[statistics.permutation_between_patients(patients, rng)]]
        values: dict[str, Estimate] = {}
        of_labels: dict[str, Estimate] = {}
        for row, given in (("macro_auroc", scores), ("macro_auroc_images_permuted", foreign)):
            tasks = [self._task(given, known, column) for column in kept]
            areas = [metrics.auroc(task.scores[0], task.positive) for task in tasks]
            each, macro = metrics.intervals(
                tasks, data.patients, samples=self.bootstrap, seed=self.seed
            )
            studies = int(known[:, kept].any(axis=1).sum())
            values[row] = Estimate(float(np.mean(areas)), macro.low, macro.high, studies, 0.5)
            if given is scores:
                for column, area, one, task in zip(kept, areas, each, tasks, strict=True):
                    of_labels[f"label/{self.label_names[column]}/auroc"] = Estimate(
                        area, one.low, one.high, len(task.rows), 0.5
                    )
        excluded = {
            "labels of one class only": len(self.label_names) - len(kept),
            "an input is missing": int((~present).sum()),
        }
        return Results(
            protocol=PROTOCOL,
            values=values | of_labels,
            n=int(present.sum()),
            data={"name": data.name, "sha256": data.sha256},
            preprocessing=data.preprocessing,
            excluded={reason: count for reason, count in excluded.items() if count},
            details={
                "labels": [self.label_names[column] for column in kept],
                "bootstrap": self.bootstrap,
                "seed": self.seed,
            },
        )

    def _task(self, scores: np.ndarray, known: np.ndarray, column: int) -> metrics.Ranked:
        """The studies in which a label is known."""
        rows = np.flatnonzero(known[:, column])
        return metrics.Ranked(rows, scores[None, rows, column], self.values[rows, column] > 0.5)
