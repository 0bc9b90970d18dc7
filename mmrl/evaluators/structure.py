"""The method's own test: does the image prefer its report over perturbed copies of it?"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl import build
from mmrl.evaluators import statistics
from mmrl.evaluators.base import Estimate, Evaluator, Figure, HeldOut, Predict, Results
from mmrl.evaluators.ngrams import LanguageModel
from mmrl.evaluators.protocols import PROTOCOLS, SEED, Questions, draw
from mmrl.types import InputError

PERMUTATIONS = 5  # of the images, averaged in the blind row
MAX_TRAINING_TEXTS = 20_000  # that the text-only judge learns from

ROWS = ("accuracy", "accuracy_images_permuted", "accuracy_text_only", "grounded_gain")


def wins(images: np.ndarray, originals: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """By how much the original beats each copy, as cosine; a tie is not a win, see `beats`.

    Args:
      images: f32[Q, D]. originals: f32[Q, D]. copies: f32[Q, K, D]; all L2-normalised.

    Returns:
      f32[Q, K].
    """
    # One product for all options, so that equal texts score equally to the last bit but TIE.
    options = np.concatenate([originals[:, None], copies], axis=1)
    scores = (options @ images[:, :, None])[..., 0]  # Q 1+K
    return scores[:, :1] - scores[:, 1:]


def beats(margins: np.ndarray) -> np.ndarray:
    """Wins that are no ties: bool, elementwise."""
    return np.asarray(margins > statistics.TIE)


class Structure(Evaluator):
    """Perturbed-report choice under frozen protocols, with the rows that keep it honest.

    The image must score its report, by cosine, strictly above every copy offered. Beside the
    `accuracy` stand, for the same questions,

    * `accuracy_images_permuted`: every image replaced by one of another patient, averaged over
      several permutations: what the encoders win without the right image;
    * `accuracy_text_only`: an n-gram model of the training reports takes the likeliest report:
      what anyone wins without any image;
    * `grounded_gain`: the paired difference of the first two: what the image contributed.

    Values are named "{protocol}/{row}" and, report against that copy alone,
    "{protocol}/kind/{kind}/{row}"; chance is 1 / options. Intervals are bootstrapped over
    patients. The published test counted ties as right; `accuracy_ties_right` says what that
    would give.

    Args:
      predict, data: as for every evaluator.
      protocols: names from `protocols.PROTOCOLS`.
      max_reports: evaluates a fixed subset of this many reports; None takes all.
      bootstrap: draws for the intervals; 0 gives none.

    Raises:
      InputError: unknown protocols, options out of range, or no question in any protocol.
    """

    headline: ClassVar[Mapping[str, str]] = {
        "order-10way@1/accuracy": "true report among nine rearranged copies",
        "order-10way@1/grounded_gain": "share of it that the right image contributed",
        "clinical@1/accuracy": "true report against one with a fact reworded",
        "clinical@1/accuracy_text_only": "the same, by an n-gram model of texts",
        "clinical@1/grounded_gain": "share of it that the right image contributed",
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        protocols: Sequence[str] = tuple(PROTOCOLS),
        max_reports: int | None = None,
        bootstrap: int = 1000,
    ) -> None:
        statistics.at_least(1, max_reports=max_reports)
        statistics.at_least(0, bootstrap=bootstrap)
        for name in protocols:
            if name not in PROTOCOLS:
                raise InputError(build.unknown("structure protocol", name, PROTOCOLS))
        if not protocols:
            raise InputError(f"structure: no protocols given; choices: {', '.join(PROTOCOLS)}")
        subset = statistics.fixed_subset(data, max_reports, SEED)
        super().__init__(predict, subset)
        self.bootstrap, self.not_drawn = bootstrap, len(data) - len(subset)
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
                f"no report of {data.name} gives a question to structure, {len(subset)} tried: "
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
        images = self.predict.images(state, data)["image.embedding"]
        images = statistics.unit_rows(images, "image.embedding", data.ids)
        encoded = self._encode(state)
        values: dict[str, Estimate] = {}
        for name, asked in self.questions.items():
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
                values |= self._values(name, asked, true, foreign)
        return Results(
            protocol="structure",
            values=values,
            n=len(data),
            data={"name": data.name, "sha256": data.sha256},
            preprocessing=data.preprocessing,
            excluded=self._excluded(),
            details=self._details(),
        )

    def figures(
        self, state: Any, results: Results, history: Sequence[Mapping[str, Any]]
    ) -> list[Figure]:
        """Bars of every protocol, kind by kind."""
        from mmrl.reporting import bars

        made = []
        stored = results.to_dict()
        for name, asked in self.questions.items():
            title = f"Perturbed-report choice: structure/{name}"
            file = f"structure_{name.replace('@', '_v')}"
            if not len(asked):
                why = "; ".join(f"{reason} ({n})" for reason, n in asked.excluded.items())
                made.append(Figure(file, title, f"No question could be asked: {why}."))
                continue
            caption = (
                f"{asked.protocol.about.capitalize()}. The hatched bars were reached with another "
                "patient's image, or without any image. Only the difference to them shows that the "
                "model uses the image."
            )
            draw = functools.partial(bars.structure_per_kind, stored, name)
            made.append(Figure(file, title, caption, draw))
        return made

    def _encode(self, state: Any) -> Any:
        """Encodes every distinct text once; answers a function from texts to unit rows."""
        asked = [text for q in self.questions.values() for text in (*q.originals, *q.copies.flat)]
        texts = list(dict.fromkeys(asked))
        rows = self.predict.texts(state, self.data, texts)["text.embedding"]
        rows = statistics.unit_rows(rows, "text.embedding", texts)
        place = {text: position for position, text in enumerate(texts)}

        def embeddings(wanted: np.ndarray) -> np.ndarray:
            positions = np.array([place[text] for text in wanted.flat]).reshape(wanted.shape)
            return rows[positions]

        return embeddings

    def _values(
        self, name: str, asked: Questions, true: np.ndarray, foreign: np.ndarray
    ) -> dict[str, Estimate]:
        """true: f32[Q, K], margins. foreign: f64[Q, 1 + K], all copies first, then each."""
        patients = np.asarray(self.data.patients)[asked.rows]
        own = _per_question(beats(true))
        blind = self._text_only[name]
        values = {}
        whole = np.ones(len(asked), bool)
        if asked.protocol.form == "choice":
            groups = {"": (whole, 0, 1 / asked.protocol.options)}
            for position, kind in enumerate(asked.protocol.kinds):
                groups[f"kind/{kind}/"] = (whole, 1 + position, 0.5)
        else:
            groups = {"": (whole, 1, 0.5)}
            for kind in asked.protocol.kinds:
                groups[f"kind/{kind}/"] = (asked.kinds[:, 0] == kind, 1, 0.5)
        for prefix, (chosen, column, chance) in groups.items():
            if not chosen.any():
                continue
            rows = {"accuracy": (own, chance), "accuracy_images_permuted": (foreign, chance)}
            if blind is not None:
                rows["accuracy_text_only"] = (blind, chance)
            rows["grounded_gain"] = (own - foreign, 0.0)
            for row, (of_questions, expected) in rows.items():
                values[f"{name}/{prefix}{row}"] = statistics.estimate(
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
        """A model of the training texts whose digest falls into this half."""
        texts = [t for t in self.training_texts if _half_of(t) == half]
        return LanguageModel(texts) if texts else None

    @functools.cached_property
    def _model(self) -> LanguageModel | None:
        return LanguageModel(self.training_texts) if self.training_texts else None

    def _judge(self, asked: Questions) -> np.ndarray | None:
        """f64[Q, 1 + K]: what the text-only model wins; None without training texts."""
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
        return excluded

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
            # Equal embeddings tie, and ties are wrong.
            "constant_predictor": {"accuracy": 0.0},
            "permutations": PERMUTATIONS,
            "permuted_images_of_own_patient": float(
                np.mean([patients[order] == patients for order in self._permuted])
            ),
            "ties": f"wrong, within {statistics.TIE:g}",
            "text_only": {
                "model": "Kneser-Ney trigrams, the likeliest report is taken",
                "training_texts": len(self.training_texts),
                "sha256": self._model.sha256 if self._model else None,
            },
            "bootstrap": self.bootstrap,
        }


def _per_question(won: np.ndarray) -> np.ndarray:
    """bool[Q, K] -> f64[Q, 1 + K]: all copies beaten, then each of them."""
    return np.concatenate([won.all(axis=1, keepdims=True), won], axis=1).astype(np.float64)


def _half_of(text: str) -> int:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % 2


def _limited(texts: Sequence[str]) -> list[str]:
    """At most MAX_TRAINING_TEXTS, evenly spread."""
    if len(texts) <= MAX_TRAINING_TEXTS:
        return list(texts)
    places = np.linspace(0, len(texts) - 1, MAX_TRAINING_TEXTS).round().astype(int)
    return [texts[place] for place in places]
