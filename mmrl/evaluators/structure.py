"""Perturbed-report choice: does the image score its report above perturbed copies of it?"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl import build, sequences
from mmrl.evaluators import statistics
from mmrl.evaluators.base import Estimate, Evaluator, Figure, HeldOut, Predict, Results, identity
from mmrl.evaluators.ngrams import LanguageModel
from mmrl.evaluators.protocols import PROTOCOLS, SEED, Questions, draw
from mmrl.evaluators.subgroups import subgroups
from mmrl.types import InputError

PERMUTATIONS = 5  # of the images; `accuracy_images_permuted` is the mean over them
MAX_TRAINING_TEXTS = 20_000  # for the n-gram model of the text-only baseline

ROWS = ("accuracy", "accuracy_images_permuted", "accuracy_text_only", "grounded_gain")


def wins(images: np.ndarray, originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Cosine of image and original minus cosine of image and copy; see `beats`.

    Args:
      images: f32[Q, D]. originals: f32[Q, D]. copies: f32[Q, K, D]; all L2-normalised.

    Returns:
      f32[Q, K].
    """
    # One product for all options, so that equal texts have equal scores up to TIE.
    options = np.concatenate([originals[:, None], copies], axis=1)
    scores = (options @ images[:, :, None])[..., 0]  # Q 1+K
    return scores[:, :1] - scores[:, 1:]


def beats(margins: np.ndarray) -> np.ndarray:
    """Whether the original wins, elementwise; a margin within `statistics.TIE` is not a win."""
    return np.asarray(margins > statistics.TIE)


class Structure(Evaluator):
    """Perturbed-report choice under frozen protocols, with two baselines.

    An answer is correct if the cosine of the image with its report is greater than with every
    copy; a tie is incorrect. The same questions give four values:

    * `accuracy`: with the true image;
    * `accuracy_images_permuted`: with an image of another patient, mean over several permutations;
    * `accuracy_text_only`: without an image, choosing the text that is most likely under an n-gram
      model of the training reports;
    * `grounded_gain`: the paired difference of the first two, the contribution of the image.

    Values are named "{protocol}/{row}" and, for the report against the copy of one kind,
    "{protocol}/kind/{kind}/{row}"; those of subgroups "subgroup/{group}/{protocol}/{row}"; chance
    is 1 / options. Intervals are from a bootstrap over patients. Copies are made by rules for
    English, so other texts are excluded and counted. The published test counts ties as correct;
    `accuracy_ties_right` does the same.

    Args:
      predict, data: as for every evaluator.
      protocols: names of the frozen protocols to evaluate, see `protocols.PROTOCOLS`.
      max_reports: size of a fixed random subset of reports; None: all reports.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.

    Raises:
      InputError: a protocol is unknown, an option is out of range, or no protocol has a question.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    headline: ClassVar[Mapping[str, str]] = {
        "order-10way@1/accuracy": "true report among nine copies with reordered words",
        "order-10way@1/grounded_gain": "accuracy minus accuracy with images of other patients",
        "clinical@1/accuracy": "true report against a copy with one changed fact",
        "clinical@1/accuracy_text_only": "accuracy of an n-gram model without images",
        "clinical@1/grounded_gain": "accuracy minus accuracy with images of other patients",
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        protocols: Sequence[str] = tuple(PROTOCOLS),
        max_reports: int | None = None,
        bootstrap: int = 1000,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, max_reports=max_reports)
        statistics.at_least(0, bootstrap=bootstrap)
        for name in sequences.of(protocols, "structure.protocols"):
            if name not in PROTOCOLS:
                raise InputError(build.unknown("structure protocol", name, PROTOCOLS))
        if not protocols:
            raise InputError(f"structure: no protocols given; choices: {', '.join(PROTOCOLS)}")
        drawn = statistics.fixed_subset(data, max_reports, SEED)
        subset, self.foreign = statistics.in_english(drawn, "structure")
        super().__init__(predict, subset, reads=reads)
        self.bootstrap, self.not_drawn = bootstrap, len(data) - len(drawn)
        self.subgroups = subgroups(subset)
        self.training_texts = _limited(data.training_texts())
        halves = [self._half_model(half) for half in (0, 1)]
        self._halves = [model for model in halves if model] if all(halves) else []
        self.questions = {name: draw(PROTOCOLS[name], subset, self._halves) for name in protocols}
        if not any(map(len, self.questions.values())):
            reasons = "; ".join(
                f"{name}: {reason} ({count})"
                for name, asked in self.questions.items()
                for reason, count in asked.excluded.items()
            )
            raise InputError(
                f"structure: no report of {data.name} yields a question ({len(subset)} tried): "
                f"{reasons}"
            )
        self._text_only = {name: self._judge(asked) for name, asked in self.questions.items()}
        rng = statistics.generator(SEED, "images")
        self._permuted = [
            statistics.permutation_between_patients(subset.patients, rng)
            for _ in range(PERMUTATIONS)
        ]

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        data = self.data
        name = self.names["image"]
        encodings = self.predict.encode(state, data, [name])
        images = statistics.require_present(encodings, name, data)
        images = statistics.unit_rows(images, name, data.ids)
        encoded = self._encode(state)
        values: dict[str, Estimate] = {}
        for protocol, asked in self.questions.items():
            if len(asked):
                originals, copies = (encoded(texts) for texts in (asked.originals, asked.copies))
                true = wins(images[asked.rows], originals, copies)
                foreign = np.mean(
                    [
                        _per_question(beats(wins(images[order[asked.rows]], originals, copies)))
                        for order in self._permuted
                    ],
                    axis=0,
                )
                values |= self._values(protocol, asked, true, foreign)
        return Results(
            protocol="structure",
            values=values,
            n=len(data),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded=self._excluded(),
            details=self._details(),
        )

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """One bar chart per protocol, with bars per kind."""
        from mmrl.reporting import bars

        made = []
        stored = results.to_dict()
        for name, asked in self.questions.items():
            title = f"Perturbed-report choice: structure/{name}"
            file = f"structure_{name.replace('@', '_v')}"
            if not len(asked):
                why = "; ".join(f"{reason} ({n})" for reason, n in asked.excluded.items())
                made.append(Figure(file, title, f"There are no questions: {why}."))
                continue
            caption = (
                f"{asked.protocol.about.capitalize()}. Hatched bars: accuracy with another "
                "patient's image, or without an image. Only the difference to them shows that the "
                "model uses the image."
            )
            draw = functools.partial(bars.structure_per_kind, stored, name)
            made.append(Figure(file, title, caption, draw))
        return made

    def _encode(self, state: Any) -> Any:
        """Encodes every distinct text once; returns a function from texts to unit rows."""
        asked = [text for q in self.questions.values() for text in (*q.originals, *q.copies.flat)]
        texts = list(dict.fromkeys(asked))
        name = self.names["text"]
        rows = self.predict.encode(state, self.data.with_texts(texts), [name])[name]
        rows = statistics.unit_rows(rows, name, texts)
        place = {text: position for position, text in enumerate(texts)}

        def embeddings(wanted: np.ndarray) -> np.ndarray:
            positions = np.array([place[text] for text in wanted.flat]).reshape(wanted.shape)
            return rows[positions]

        return embeddings

    def _values(
        self, name: str, asked: Questions, true: np.ndarray, foreign: np.ndarray
    ) -> dict[str, Estimate]:
        """Estimates of all rows of one protocol.

        Args:
          true: f32[Q, K], margins with the true image.
          foreign: f64[Q, 1 + K], accuracy with other images: against all copies, then each.
        """
        patients = np.asarray(self.data.patients)[asked.rows]
        own = _per_question(beats(true))
        blind = self._text_only[name]
        values = {}
        whole = np.ones(len(asked), bool)
        if asked.protocol.form == "choice":
            groups = {f"{name}/": (whole, 0, 1 / asked.protocol.options)}
            for position, kind in enumerate(asked.protocol.kinds):
                groups[f"{name}/kind/{kind}/"] = (whole, 1 + position, 0.5)
        else:
            groups = {f"{name}/": (whole, 1, 0.5)}
            for kind in asked.protocol.kinds:
                groups[f"{name}/kind/{kind}/"] = (asked.kinds[:, 0] == kind, 1, 0.5)
        _, column, chance = groups[f"{name}/"]
        for group, inside in self.subgroups.items():
            groups[f"subgroup/{group}/{name}/"] = (inside[asked.rows], column, chance)
        for prefix, (chosen, column, chance) in groups.items():
            if not chosen.any():
                continue
            rows = {"accuracy": (own, chance), "accuracy_images_permuted": (foreign, chance)}
            if blind is not None:
                rows["accuracy_text_only"] = (blind, chance)
            rows["grounded_gain"] = (own - foreign, 0.0)
            for row, (of_questions, expected) in rows.items():
                values[f"{prefix}{row}"] = statistics.estimate(
                    of_questions[chosen, column],
                    patients[chosen],
                    chance=expected,
                    samples=self.bootstrap,
                    seed=SEED,
                )
        with_ties = (true >= -statistics.TIE).all(axis=1).astype(float)
        if asked.protocol.name.startswith("authors"):
            values[f"{name}/accuracy_ties_right"] = statistics.estimate(
                with_ties, patients, samples=self.bootstrap, seed=SEED
            )
        return values

    def _half_model(self, half: int) -> LanguageModel | None:
        """A language model of half of the training texts, split by digest."""
        texts = [t for t in self.training_texts if _half_of(t) == half]
        return LanguageModel(texts) if texts else None

    @functools.cached_property
    def _model(self) -> LanguageModel | None:
        return LanguageModel(self.training_texts) if self.training_texts else None

    def _judge(self, asked: Questions) -> np.ndarray | None:
        """f64[Q, 1 + K], correct answers of the text-only model; None without training texts."""
        model = self._model
        if model is None or not len(asked):
            return None
        margins = model.score(asked.originals)[:, None] - model.score(asked.copies.flat).reshape(
            asked.copies.shape
        )
        return _per_question(beats(margins))

    def _excluded(self) -> dict[str, int]:
        excluded = {
            f"{name}: {reason}": count
            for name, asked in self.questions.items()
            for reason, count in asked.excluded.items()
        }
        if self.not_drawn:
            excluded["not drawn (max_reports)"] = self.not_drawn
        return excluded | self.foreign

    def _details(self) -> dict[str, Any]:
        patients = np.asarray(self.data.patients)
        return {
            "protocols": {
                name: {
                    "about": asked.protocol.about,
                    "kinds": list(asked.protocol.kinds),
                    "questions": len(asked),
                    "copies": asked.counts,
                    "sha256": asked.sha256,
                    "excluded": asked.excluded,
                }
                for name, asked in self.questions.items()
            },
            # Equal embeddings are tied, and a tie is incorrect.
            "constant_predictor": {"accuracy": 0.0},
            "permutations": PERMUTATIONS,
            "permuted_images_of_own_patient": float(
                np.mean([patients[order] == patients for order in self._permuted])
            ),
            "ties": f"incorrect, within {statistics.TIE:g}",
            "text_only": {
                "model": "Kneser-Ney trigrams; chooses the most likely text",
                "training_texts": len(self.training_texts),
                "sha256": self._model.sha256 if self._model else None,
            },
            "bootstrap": self.bootstrap,
        }


def _per_question(won: np.ndarray) -> np.ndarray:
    """bool[Q, K] -> f64[Q, 1 + K]: wins against all copies, then against each."""
    return np.concatenate([won.all(axis=1, keepdims=True), won], axis=1).astype(np.float64)


def _half_of(text: str) -> int:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % 2


def _limited(texts: Sequence[str]) -> list[str]:
    """At most MAX_TRAINING_TEXTS texts, evenly spaced."""
    if len(texts) <= MAX_TRAINING_TEXTS:
        return list(texts)
    places = np.linspace(0, len(texts) - 1, MAX_TRAINING_TEXTS).round().astype(int)
    return [texts[place] for place in places]
