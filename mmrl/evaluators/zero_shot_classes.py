"""Zero-shot classification into exclusive classes, by the published ways to use prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmrl import build, sequences
from mmrl.evaluators import pictures, prompt_sets, scoring, statistics
from mmrl.evaluators.base import (
    Estimate,
    Evaluator,
    Figure,
    HeldOut,
    Predict,
    Results,
    identity,
)
from mmrl.evaluators.pointing_game import softmax
from mmrl.evaluators.scoring import Answers
from mmrl.evaluators.subgroups import subgroups
from mmrl.evaluators.truth import exclusive, know
from mmrl.types import InputError
from mmrl.wiring import parse

PROTOCOL = "zero_shot_classes@1"


class Variant(NamedTuple):
    """A published way to make the score of a class from its prompts.

    Attributes:
      drawn: prompts that are drawn for each class; None: all are used.
      local: whether the score of an image and a prompt is the mean of cosine and local score.
      combine: (scores f[N, P] of the prompts of a class) -> f[N]; None: the prompt embeddings are
        averaged instead, and the score is the cosine with their L2-normalised mean.
      standardised: whether the scores of a class are z-scored over the images.
    """

    drawn: int | None
    local: bool
    combine: Callable[[np.ndarray], np.ndarray] | None
    standardised: bool


def _greatest(scores: np.ndarray) -> np.ndarray:
    return scores.max(axis=1)


def _mean(scores: np.ndarray) -> np.ndarray:
    return scores.mean(axis=1)


VARIANTS = {
    "gloria": Variant(5, True, _greatest, True),  # Huang et al. 2021
    "medclip": Variant(10, False, _mean, False),  # Wang et al. 2022
    "cxr_clip": Variant(None, False, _mean, False),  # You et al. 2023
    "biovil": Variant(None, False, None, False),  # Boecking et al. 2022
}

_GLOBAL = ("medclip", "cxr_clip", "biovil")


def local_scores(
    words: np.ndarray,
    word_mask: np.ndarray,
    regions: np.ndarray,
    *,
    temperature: float = 4.0,
    sharpness: float = 5.0,
    chunk: int = 64,
) -> np.ndarray:
    """The local score of every image with every text (GLoRIA, Huang et al. 2021, equations 4-6).

    The attention of a word over the regions is a softmax over the valid words of region . word,
    multiplied by `temperature`, then a softmax over the regions. The context of a word is the mean
    of the regions under its attention, and the score is `sharpness` times the greatest cosine of a
    valid word with its context. The loss has a sum over words in place of the maximum.

    Args:
      words: f[T, W, D]. word_mask: bool[T, W]. regions: f[N, R, D]. None is normalised.
      chunk: images at once; it bounds the memory and changes no result.

    Returns:
      f32[N, T].

    Raises:
      ValueError: a text without a valid word.
    """
    if not word_mask.any(axis=1).all():
        raise ValueError(f"text {int(np.argmin(word_mask.any(axis=1)))} has no valid word")
    scores = np.empty((len(regions), len(words)), np.float32)
    for start in range(0, len(regions), chunk):
        part = np.asarray(regions[start : start + chunk], np.float32)  # n R D
        for text, (of_text, valid) in enumerate(zip(words, word_mask, strict=True)):
            own = np.asarray(of_text[valid], np.float32)  # W D
            attention = softmax(temperature * softmax(part @ own.T, axis=2), axis=1)  # n R W
            context = attention.transpose(0, 2, 1) @ part  # n W D
            norms = np.linalg.norm(context, axis=2) * np.linalg.norm(own, axis=1)
            cosines = (context * own).sum(axis=2) / np.maximum(norms, 1e-12)
            scores[start : start + chunk, text] = sharpness * cosines.max(axis=1)
    return scores


def standardised(scores: np.ndarray) -> np.ndarray:
    """z-scores of each column over the images, by the population deviation.

    A column of equal scores becomes 0; a single image keeps its scores.

    Args:
      scores: f[N, C].
    """
    if len(scores) < 2:
        return scores
    deviation = scores.std(axis=0)
    # Equal numbers can have a deviation of one rounding error.
    flat = np.ptp(scores, axis=0) == 0
    return np.where(flat, 0.0, (scores - scores.mean(axis=0)) / np.where(flat, 1.0, deviation))


class ZeroShotClasses(Evaluator):
    """Classifies images into exclusive classes by prompts, in published ways that are never mixed.

    The class with the greatest score is chosen. The studies are those for which exactly one of the
    classes is present and all others are absent; the label policy decides what blank labels are.
    Every variant has rows of its own, "{variant}/{measure}":

    * `gloria`: 5 prompts drawn for each class; the mean of the cosine and the local score, the
      maximum over prompts, and z-scores of each class over the images. These depend on the test
      set: the same image may be classified differently among other images.
    * `medclip`: 10 prompts drawn for each class, mean cosine.
    * `cxr_clip`: all prompts, mean cosine.
    * `biovil`: all prompts, cosine with the L2-normalised mean of their embeddings.

    With drawn prompts, every measure is the mean over `draws` draws, and the details state its
    range. A class with fewer prompts uses all of them. Measures are those of `scoring` for classes:
    macro AUROC, accuracy, balanced accuracy, macro and weighted F1, and the mean area under the
    precision-recall curve, each beside images of other patients and a constant predictor. Scores
    within `statistics.TIE` are equal, and the first of equal classes is chosen. Protocol
    "zero_shot_classes@1".

    Args:
      predict, data: as for every evaluator.
      prompts: a prompt set of classes, such as chexpert_5x200@1, or FILE.json; see `prompt_sets`.
      variants: names of `VARIANTS`. gloria needs features of regions and words.
      draws: how often prompts are drawn, for the variants that draw some.
      permutations: how often the images are permuted between patients.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the draws, the permutations and the resamples.

    Raises:
      InputError: unknown prompts, variants or classes, encoders without the features of a variant,
        studies of fewer than two classes or in other languages only, options out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "image": "image.embedding",
        "text": "text.embedding",
        "regions": "image.regions",
        "words": "text.words",
        "word_mask": "text.word_mask",
    }
    prompted: ClassVar[tuple[str, ...]] = ("text", "words", "word_mask")
    headline: ClassVar[Mapping[str, str]] = {
        f"{name}/accuracy": f"accuracy of zero-shot classes as in {name}" for name in VARIANTS
    }

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        prompts: str = "chexpert_5x200@1",
        variants: Sequence[str] = _GLOBAL,
        draws: int = 5,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, draws=draws, permutations=permutations, variants=len(variants))
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        self.prompts = prompt_sets.load(prompts, "classes", where="prompts of zero_shot_classes")
        for name in sequences.of(variants, "zero_shot_classes.variants"):
            if name not in VARIANTS:
                raise InputError(build.unknown("variant of zero_shot_classes", name, VARIANTS))
        known = know(data, purpose="zero_shot_classes", language=self.prompts.language)
        classed = exclusive(known, list(self.prompts.classes), where=f"prompts {prompts}")
        super().__init__(predict, statistics.Subset(data, classed.rows.tolist()), reads=reads)
        self.truth, self.excluded = classed.truth, classed.excluded
        self.groups = subgroups(self.data)
        self.variants = tuple(dict.fromkeys(variants))
        self.draws, self.permutations = draws, permutations
        self.bootstrap, self.seed = bootstrap, seed
        needed = {self.names[one] for one in ("regions", "words", "word_mask")}
        if any(VARIANTS[name].local for name in variants) and not needed <= set(predict.provides):
            heads = " and ".join(sorted({parse(name).feature for name in needed} - {"word_mask"}))
            raise InputError(
                f"variant gloria needs {', '.join(sorted(needed))}, the encoders provide "
                f"{', '.join(predict.provides)}; give the towers heads {heads}"
            )

    @classmethod
    def needed(cls, names: Mapping[str, str], options: Mapping[str, Any]) -> tuple[str, ...]:
        """See Evaluator."""
        local = set(options.get("variants", _GLOBAL)) - set(_GLOBAL)
        return tuple(names[one] for one in names if local or one in ("image", "text"))

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        data, classes = self.data, tuple(self.prompts.classes)
        drawn = {name: self._drawn(VARIANTS[name]) for name in self.variants}
        texts = list(
            dict.fromkeys(t for sets in drawn.values() for one in sets for own in one for t in own)
        )
        images, embedded = self._embeddings(state, texts)
        place = {text: column for column, text in enumerate(texts)}
        rng = statistics.generator(self.seed, "images")
        foreign = statistics.permutations_between_patients(data.patients, rng, self.permutations)
        values: dict[str, Estimate] = {}
        details: dict[str, Any] = {}
        answers: dict[str, Answers] = {}
        for name in self.variants:
            variant = VARIANTS[name]
            sets = [[[place[text] for text in own] for own in one] for one in drawn[name]]
            similarity = images @ embedded.T  # N T
            if variant.local:
                used = sorted({column for one in sets for own in one for column in own})
                local = self._local(state, [texts[column] for column in used])
                similarity[:, used] = (similarity[:, used] + local) / 2
            scores = [class_scores(variant, similarity, images, embedded, one) for one in sets]
            # Each permutation meets one draw of prompts.
            blind = [scores[n % len(scores)][rows] for n, rows in enumerate(foreign)]
            answers[name] = Answers("classes", scores[0], self.truth, data.patients, classes)
            found, details[name] = scoring.report(
                answers[name],
                repeats=scores[1:],
                rows={"images_permuted": blind},
                subgroups=self.groups,
                bootstrap=self.bootstrap,
                seed=self.seed,
            )
            values |= {f"{name}/{measure}": estimate for measure, estimate in found.items()}
            if variant.drawn is not None:
                details[name]["prompts"] = [dict(zip(classes, o, strict=True)) for o in drawn[name]]
        return Results(
            protocol=PROTOCOL,
            values=dict(sorted(values.items(), key=lambda item: item[0].count("/") > 1)),
            n=len(data),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded=self.excluded,
            answers=answers,
            details={
                "prompt_set": self.prompts.to_dict(),
                "variants": details,
                "depends_on_the_test_set": [n for n in self.variants if VARIANTS[n].standardised],
                "ties": f"the first class, within {statistics.TIE:g}",
                "options": {
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
        """How the answers lie to the truth."""
        return pictures.of_answers(results.answers)

    def _drawn(self, variant: Variant) -> list[list[list[str]]]:
        """The prompts of each draw and class; one draw if all prompts are used."""
        prompts = self.prompts.classes
        if variant.drawn is None:
            return [[list(own) for own in prompts.values()]]
        return [
            [
                _draw(own, variant.drawn, statistics.generator(self.seed, "prompts", name, str(n)))
                for name, own in prompts.items()
            ]
            for n in range(self.draws)
        ]

    def _embeddings(self, state: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Images f32[N, D] and texts f32[T, D], L2-normalised."""
        data, of_image, of_text = self.data, self.names["image"], self.names["text"]
        encoded = self.predict.encode(state, data, [of_image])
        images = statistics.require_present(encoded, of_image, data)
        rows = self.predict.encode(state, data.with_texts(texts), [of_text])[of_text]
        return (
            statistics.unit_rows(images, of_image, data.ids),
            statistics.unit_rows(rows, of_text, texts),
        )

    def _local(self, state: Any, texts: Sequence[str]) -> np.ndarray:
        """f32[N, T]: the local scores of all images with some texts."""
        data, names = self.data, self.names
        words, mask = names["words"], names["word_mask"]
        found = self.predict.encode(state, data.with_texts(texts), [words, mask])
        regions = names["regions"]
        blocks = [  # not all regions at once, which are many
            (local_scores(found[words], found[mask], block[regions]), block["present"])
            for block in self.predict.stream(state, data, [regions])
        ]
        scores, present = (np.concatenate(part) for part in zip(*blocks, strict=True))
        statistics.require_present({regions: scores, "present": present}, regions, data)
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise FloatingPointError(
                f"local scores are not finite, first {data.ids[int(np.argmin(finite))]}"
            )
        return scores


def class_scores(
    variant: Variant,
    similarity: np.ndarray,
    images: np.ndarray,
    texts: np.ndarray,
    prompts: Sequence[Sequence[int]],
) -> np.ndarray:
    """The scores of all classes for all images.

    Args:
      similarity: f32[N, T], of images and texts.
      images: f32[N, D]. texts: f32[T, D]. Both L2-normalised.
      prompts: for each of the C classes, which texts are its prompts.

    Returns:
      f64[N, C]; scores within `statistics.TIE` are equal.
    """
    if variant.combine is None:
        means = np.stack([texts[list(own)].mean(axis=0) for own in prompts])
        ensembles = statistics.unit_rows(
            means, "prompt ensemble", [str(n) for n in range(len(means))]
        )
        scores = images @ ensembles.T
    else:
        scores = np.stack([variant.combine(similarity[:, list(own)]) for own in prompts], axis=1)
    scores = statistics.snapped(scores)
    return standardised(scores) if variant.standardised else scores


def _draw(prompts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Some prompts in their order, without replacement; all if there are not more."""
    chosen = rng.choice(len(prompts), min(count, len(prompts)), replace=False)
    return [prompts[place] for place in sorted(chosen.tolist())]
