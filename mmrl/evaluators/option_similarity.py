"""Questions with a closed list of options, answered by the similarity of image and option."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.evaluators import corruption, questions, scoring, statistics
from mmrl.evaluators.base import Estimate, Evaluator, HeldOut, Predict, Results, identity
from mmrl.evaluators.questions import Question
from mmrl.evaluators.subgroups import subgroups
from mmrl.types import InputError

_FIELDS = ("{question}", "{option}")


class Choice(Evaluator):
    """How often the option that is most similar to the image is the right one.

    The score of an option is the cosine of the image with the text of question and option; an
    answer is right if its score is greater than that of every other option, and a tie is wrong.
    Values:

    * `accuracy`: with the true image;
    * `accuracy_images_permuted`: with an image of another patient, mean over several permutations;
    * `accuracy_text_only`: without an image; the score of an option is its mean over all images
      that are asked about, so this is what the prior of the encoder alone answers;
    * `accuracy_image_only`: without the question; only where the text contains it;
    * `accuracy_most_frequent`: always the option that is the answer most often, in all questions
      with that option, or the first of equal ones;
    * `accuracy_first_option`: always the first option;
    * `accuracy_gain_over_images_permuted`: the paired difference of the first two;
    * `corruption/{kind}={strength}/accuracy`: with corrupted images, see `corruption`;
    * `modality/image/accuracy`, `modality/text/accuracy`, `modality/both/accuracy`: with the option
      `case`, by the image alone, by the text about the case alone, and by the mean of both
      embeddings; `modality/both/accuracy_images_permuted`;
    * `type/{type}/accuracy` and `subgroup/{subgroup}/accuracy`.

    Chance is the mean of 1 / options. Intervals are from a bootstrap over patients.

    Args:
      predict, data: as for every evaluator.
      questions: a set that is made from the records (findings, laterality, presence), or a file of
        questions; see `mmrl.evaluators.questions`.
      options: number of options of each question of the set `findings`.
      findings: names of findings or labels that a set of questions is about; empty: all.
      template: text of an option, with {question} and {option}.
      corruptions: kind -> strengths, such as {"noise": (0.1, 0.3)}; noise, blur, occlusion and
        contrast, each from 0 to 1. Every point encodes all images again.
      case: the text about a case, for the values of each modality: "question", that of the
        question, or a section of the report that tells no finding of the image, such as
        "indication". Questions without it have no such values. "": there are none.
      permutations: how often the images are permuted between patients.
      bootstrap: resamples of the patients for the intervals; 0: no intervals.
      seed: seed of the questions, the permutations, the corruptions and the resamples.

    Raises:
      InputError: no questions, none with a text about its case, a template without {option}, or
        options out of range.
    """

    protocol: ClassVar[str]
    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    prompted: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        questions: str,
        options: int = 4,
        findings: Sequence[str] = (),
        template: str = "{question} {option}",
        corruptions: Mapping[str, Any] | None = None,
        case: str = "",
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
        reads: Mapping[str, str] | None = None,
    ) -> None:
        statistics.at_least(1, permutations=permutations)
        statistics.at_least(2, options=options)
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        own = self.protocol.partition("@")[0]
        if "{option}" not in template or any(sign in _removed(template) for sign in "{}"):
            raise InputError(
                f"template of {own} is {template!r}; expected a text with {{option}} and "
                "optionally {question}"
            )
        points = corruption.chosen(corruptions, where=f"{own}.corruptions")
        super().__init__(predict, data, reads=reads)
        self.asked = asked(questions, data, options=options, seed=seed, findings=findings)
        self.template, self.points, self.case = template, points, case
        self.permutations, self.bootstrap, self.seed = permutations, bootstrap, seed

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class.

        Raises:
          InputError: no image of a question is there.
          FloatingPointError: an embedding is not finite.
        """
        rows = sorted({question.row for question in self.asked.questions})
        data = statistics.Subset(self.data, rows)
        images, present = self._images(state, data)
        place = {row: n for n, row in enumerate(rows) if present[n]}
        chosen = [one for one in self.asked.questions if one.row in place]
        if not chosen:
            raise InputError(f"no example that is asked about has {self.names['image']}")
        of_image = np.array([place[one.row] for one in chosen])
        kept = np.flatnonzero(present)
        patients = np.asarray(data.patients)
        texts = Texts(self, state, data, chosen, self.template)
        own = texts.right(images, of_image)
        rng = statistics.generator(self.seed, "images")
        foreign = []  # for each permutation the image that each question is answered with
        for order in statistics.permutations_between_patients(
            patients[kept], rng, self.permutations
        ):
            places = np.arange(len(data))
            places[kept] = kept[order]
            foreign.append(places[of_image])
        blind = [texts.right(images, places) for places in foreign]
        mean = images[kept].mean(axis=0)[None]
        rows_of = {
            "": own,
            **({"_images_permuted": np.mean(blind, axis=0)} if blind else {}),
            "_text_only": texts.right(mean, np.zeros(len(chosen), np.int64)),
            "_most_frequent": _most_frequent(chosen),
            "_first_option": np.array([one.answer == 0 for one in chosen]),
        }
        alone = texts
        if "{question}" in self.template:
            alone = Texts(self, state, data, chosen, self.template.replace("{question}", ""))
            rows_of["_image_only"] = alone.right(images, of_image)
        chance = np.array([1 / len(one.options) for one in chosen])
        everyone = patients[of_image]

        def mean_of(right: np.ndarray, inside: np.ndarray | slice = slice(None)) -> Estimate:
            return scoring.item_mean(
                right[inside],
                everyone[inside],
                chance=float(chance[inside].mean()),
                samples=self.bootstrap,
                seed=self.seed,
            )

        values = {f"accuracy{row}": mean_of(right) for row, right in rows_of.items()}
        if blind:
            values["accuracy_gain_over_images_permuted"] = scoring.difference(
                values["accuracy"], values["accuracy_images_permuted"]
            )
        for kind, strength in self.points:
            spoiled = corruption.Corrupted(data, kind, strength, seed=self.seed)
            seen, _ = self._images(state, spoiled)
            point = corruption.curve_name(kind, strength)
            values[f"corruption/{point}/accuracy"] = mean_of(texts.right(seen, of_image))
        told: dict[str, Any] = {}
        if self.case:
            cases, inside = self._cases(state, data, chosen, [rows[place] for place in of_image])
            told["case"] = {"text": self.case, "questions": int(inside.sum())}
            for name, right in self._by_modality(alone, images, cases, of_image, foreign).items():
                values[f"modality/{name}"] = mean_of(right, inside)
        types = np.array([one.type for one in chosen])
        for name in sorted(set(types.tolist()) - {""}):
            values[f"type/{name}/accuracy"] = mean_of(own, types == name)
        for name, inside in subgroups(data).items():
            if inside[of_image].any():
                values[f"subgroup/{name}/accuracy"] = mean_of(own, inside[of_image])
        missing = len(self.asked.questions) - len(chosen)
        excluded = self.asked.excluded | ({"an input is missing": missing} if missing else {})
        return Results(
            protocol=self.protocol,
            values=values,
            n=len(chosen),
            data=identity(data),
            preprocessing=data.preprocessing,
            excluded=excluded,
            details={
                "questions": self.asked.source,
                "images": len(kept),
                "patients": len(set(everyone.tolist())),
                "template": self.template,
                **told,
                "ties": f"wrong, within {statistics.TIE:g}",
                # All options are tied.
                "constant_predictor": {"accuracy": 0.0},
                "options": {
                    "permutations": self.permutations,
                    "bootstrap": self.bootstrap,
                    "seed": self.seed,
                },
            },
        )

    def _cases(
        self, state: Any, data: HeldOut, chosen: Sequence[Question], rows: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The texts about the cases: f32[Q, D], L2-normalised, and bool[Q], which are there."""
        given = [
            one.text
            if self.case == "question"
            else self.data.record(row).sections.get(self.case, "")
            for one, row in zip(chosen, rows, strict=True)
        ]
        texts = list(dict.fromkeys(filter(None, given)))
        if not texts:
            raise InputError(
                f"case={self.case}: no example that is asked about has this section; expected "
                "'question', or a section of the reports"
            )
        name = self.names["text"]
        encoded = self.predict.encode(state, data.with_texts(texts), [name])[name]
        encoded = statistics.unit_rows(encoded, name, texts)
        place = {text: row for row, text in enumerate(texts)}
        inside = np.array([text in place for text in given])
        return encoded[[place.get(text, 0) for text in given]] * inside[:, None], inside

    def _by_modality(
        self,
        texts: "Texts",
        images: np.ndarray,
        cases: np.ndarray,
        of_image: np.ndarray,
        foreign: Sequence[np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Measure -> f[Q], whether, or how often, questions are answered right."""
        every = np.arange(len(cases))
        found = {
            "image/accuracy": texts.right(images, of_image),
            "text/accuracy": texts.right(cases, every),
            "both/accuracy": texts.right(images[of_image] + cases, every),
        }
        if foreign:
            blind = [texts.right(images[places] + cases, every) for places in foreign]
            found["both/accuracy_images_permuted"] = np.mean(blind, axis=0)
        return found

    def _images(self, state: Any, data: HeldOut) -> tuple[np.ndarray, np.ndarray]:
        """f32[N, D], L2-normalised, and bool[N]: which are there; the others are zero."""
        name = self.names["image"]
        encoded = self.predict.encode(state, data, [name])
        present = encoded["present"]
        rows = np.where(present[:, None], encoded[name], 0)
        return statistics.unit_rows(rows, name, data.ids), present


class Texts:
    """The embedded options of questions.

    Args:
      evaluator: whose text tower encodes them. chosen: the questions.
      template: text of an option.
    """

    def __init__(
        self,
        evaluator: Choice,
        state: Any,
        data: HeldOut,
        chosen: Sequence[Question],
        template: str,
    ) -> None:
        worded = [[_worded(template, one.text, option) for option in one.options] for one in chosen]
        texts = list(dict.fromkeys(text for own in worded for text in own))
        name = evaluator.names["text"]
        rows = evaluator.predict.encode(state, data.with_texts(texts), [name])[name]
        self.embedded = statistics.unit_rows(rows, name, texts)
        place = {text: row for row, text in enumerate(texts)}
        self.of_options = [[place[text] for text in own] for own in worded]
        self.answers = [one.answer for one in chosen]

    def right(self, images: np.ndarray, of_image: np.ndarray) -> np.ndarray:
        """bool[Q]: whether the answer scores higher than every other option; see `TIE`.

        Args:
          images: f32[N, D]. of_image: i64[Q], the image that each question is answered with.
        """
        found = np.empty(len(self.answers), bool)
        for n, (own, answer) in enumerate(zip(self.of_options, self.answers, strict=True)):
            scores = self.embedded[own] @ images[of_image[n]]
            others = np.delete(scores, answer)
            found[n] = scores[answer] > others.max() + statistics.TIE
        return found


def asked(
    name: str, data: HeldOut, *, options: int, seed: int, findings: Sequence[str] = ()
) -> questions.Asked:
    """The questions of a set, or of a file if the name has a suffix.

    Raises:
      InputError: an unknown set, or no questions.
    """
    if "." in name:
        return questions.read(name, data)
    return questions.make(name, data, options=options, seed=seed, findings=findings)


def _removed(template: str) -> str:
    for field in _FIELDS:
        template = template.replace(field, "")
    return template


def _worded(template: str, question: str, option: str) -> str:
    """The text of an option; a question or an option may itself contain braces."""
    parts = template.split("{option}")
    return option.join(part.replace("{question}", question) for part in parts).strip()


def _most_frequent(chosen: Sequence[Question]) -> np.ndarray:
    """bool[Q]: whether the option that is the answer most often is right."""
    counts: dict[str, int] = {}
    for one in chosen:
        text = one.options[one.answer]
        counts[text] = counts.get(text, 0) + 1
    picks = [
        max(range(len(one.options)), key=lambda n: counts.get(one.options[n], 0)) for one in chosen
    ]
    return np.array([pick == one.answer for pick, one in zip(picks, chosen, strict=True)])
