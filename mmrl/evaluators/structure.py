"""The method's own test: does the image prefer its report over rearranged copies of it?"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.data import perturb
from mmrl.evaluators import statistics
from mmrl.evaluators.base import Estimate, Evaluator, HeldOut, Predict, Results
from mmrl.types import InputError


@dataclasses.dataclass(frozen=True)
class Choices:
    """The fixed questions of one evaluator: n reports with K valid copies each.

    Attributes:
      rows: i64[n], positions in the held-out data.
      texts: n * K copies, report by report.
      kinds: str[n, K], what was done to each copy.
      excluded: reason -> number of reports left out.
      counts: kind -> what became of the drawn copies of that kind.
      sha256: digest over rows and copies; equal digests mean the same questions.
    """

    rows: np.ndarray
    texts: list[str]
    kinds: np.ndarray
    excluded: dict[str, int]
    counts: dict[str, dict[str, int]]
    sha256: str


def draw_choices(data: HeldOut, kinds: tuple[str, ...], num_perturbed: int, seed: int) -> Choices:
    """Draws `num_perturbed` copies of each report from a generator of (seed, record id) alone.

    A copy is valid when it differs from the original and from the report's earlier copies after
    tokenising and truncating, which is all the encoder sees. A report with an invalid copy is
    left out, so that every question has 1 + K distinct options and chance is 1 / (1 + K).

    Args:
      data: the held-out examples to ask about.
      kinds: names from `perturb.KINDS`.
      num_perturbed: K.
      seed: of the protocol.

    Raises:
      InputError: no report is left.
    """
    copies: list[tuple[int, str, str]] = []  # row, kind, text
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for row, (name, report) in enumerate(zip(data.ids, data.texts, strict=True)):
        rng = statistics.generator(seed, name)
        for kind in perturb.draw_kinds(kinds, num_perturbed, rng):
            copy = perturb.perturb(report, kind, rng)
            if copy is None:
                counts[kind]["cannot change the report"] += 1
            else:
                copies.append((row, kind, copy.text))
    seen = [{tokens} for tokens in _seen_by_encoder(data, data.texts)]
    originals = [next(iter(tokens)) for tokens in seen]
    valid: list[list[tuple[str, str]]] = [[] for _ in seen]
    tokens_of = _seen_by_encoder(data, [text for _, _, text in copies])
    for (row, kind, text), tokens in zip(copies, tokens_of, strict=True):
        if tokens not in seen[row]:
            seen[row].add(tokens)
            valid[row].append((kind, text))
            counts[kind]["valid"] += 1
        elif tokens == originals[row]:
            counts[kind]["equal to the original"] += 1
        else:
            counts[kind]["equal to another copy"] += 1
    rows = [row for row, copies_of in enumerate(valid) if len(copies_of) == num_perturbed]
    reason = f"fewer than {num_perturbed} valid copies"
    if not rows:
        raise InputError(
            f"every report of {data.name} has {reason} ({len(data)} reports, kinds "
            f"{', '.join(kinds)}); lower num_perturbed or choose more kinds"
        )
    texts = [text for row in rows for _, text in valid[row]]
    named = [*(data.ids[row] for row in rows), *texts]
    return Choices(
        rows=np.array(rows),
        texts=texts,
        kinds=np.array([[kind for kind, _ in valid[row]] for row in rows]),
        excluded={reason: len(data) - len(rows)} if len(rows) < len(data) else {},
        counts={kind: dict(counter) for kind, counter in counts.items()},
        sha256=hashlib.sha256("\x00".join(named).encode()).hexdigest(),
    )


def _seen_by_encoder(data: HeldOut, texts: Sequence[str]) -> list[bytes]:
    """The valid tokens of each text, as hashable bytes."""
    if not texts:
        return []
    tokens, mask = data.tokenize(texts)
    return [row[kept].tobytes() for row, kept in zip(tokens, mask, strict=True)]


def wins(images: np.ndarray, options: np.ndarray) -> np.ndarray:
    """Whether the original beats each copy; ties, within `statistics.TIE`, are lost.

    Args:
      images: f32[N, D], L2-normalised.
      options: f32[N, 1 + K, D], L2-normalised, the original first.

    Returns:
      bool[N, K].
    """
    scores = (options @ images[:, :, None])[..., 0]  # N C
    return scores[:, :1] - scores[:, 1:] > statistics.TIE


class Structure(Evaluator):
    """Perturbed-report choice: accuracy, the same with foreign images, and their difference.

    The image must score its report, by cosine, strictly above all K perturbed copies. A model
    that only knows how reports are worded can do that too, so the test is repeated with every
    image replaced by one of another patient, averaged over several permutations; only the
    paired difference, `grounded_gain`, shows that the image was read. Protocol
    "structure/choice-{1+K}way@1" (chance 1 / (1 + K)); per kind, original against that copy
    alone (chance 1/2). Intervals draw the reports' patients.

    Args:
      predict, data: as for every evaluator.
      kinds: perturbations to draw from.
      num_perturbed: K, valid copies per report; reports with fewer are excluded and counted.
      max_reports: evaluates a subset of this many, drawn once from `seed`; None takes all.
      permutations: of the images, for the foreign-image rows.
      bootstrap: draws for the intervals; 0 gives none.
      seed: of copies, subset, permutations and bootstrap: the same for every checkpoint.

    Raises:
      InputError: unknown kinds, options out of range, or no report with enough copies.
    """

    def __init__(
        self,
        predict: Predict,
        data: HeldOut,
        *,
        kinds: Sequence[str] = perturb.KINDS,
        num_perturbed: int = 5,
        max_reports: int | None = None,
        permutations: int = 5,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> None:
        statistics.at_least(
            1, num_perturbed=num_perturbed, max_reports=max_reports, permutations=permutations
        )
        statistics.at_least(0, bootstrap=bootstrap, seed=seed)
        unknown = [kind for kind in kinds if kind not in perturb.KINDS]
        if unknown or not kinds:
            given = ", ".join(unknown) or "none"
            raise InputError(f"kinds: {given} given; choices: {', '.join(perturb.KINDS)}")
        super().__init__(predict, statistics.fixed_subset(data, max_reports, seed))
        self.kinds, self.num_perturbed = tuple(kinds), num_perturbed
        self.permutations, self.bootstrap, self.seed = permutations, bootstrap, seed
        self.not_drawn = len(data) - len(self.data)
        self.choices = draw_choices(self.data, self.kinds, num_perturbed, seed)

    def run(self, state: Any) -> Results:
        """Evaluates `state`; values as in the class, per kind "kind/{name}/...".

        Raises:
          FloatingPointError: an embedding is not finite.
        """
        data, choices = self.data, self.choices
        images = self.predict.images(state, data)["image.embedding"]
        images = statistics.unit_rows(images, "image.embedding", data.ids)[choices.rows]
        originals = self.predict.texts(state, data, data.texts)["text.embedding"]
        originals = statistics.unit_rows(originals, "text.embedding", data.ids)[choices.rows]
        copies = self.predict.texts(state, data, choices.texts)["text.embedding"]
        ids = [data.ids[row] for row in choices.rows.tolist()]
        copies = copies.reshape(len(ids), self.num_perturbed, -1)  # N K D
        copies = statistics.unit_rows(copies, "perturbed text.embedding", ids)
        options = np.concatenate([originals[:, None], copies], axis=1)

        patients = np.asarray(data.patients)[choices.rows]
        rng = statistics.generator(self.seed, "images")
        permuted = [
            statistics.permutation_between_patients(patients, rng) for _ in range(self.permutations)
        ]
        own_patient = np.mean([patients[images_of] == patients for images_of in permuted])
        true = wins(images, options)
        foreign = [wins(images[images_of], options) for images_of in permuted]
        excluded = dict(choices.excluded)
        if self.not_drawn:
            excluded["not drawn (max_reports)"] = self.not_drawn
        return Results(
            protocol=f"structure/choice-{1 + self.num_perturbed}way@1",
            values=self._values(true, foreign, patients),
            n=len(ids),
            data={"name": data.name, "sha256": data.sha256},
            preprocessing=data.preprocessing,
            excluded=excluded,
            details=self._details(float(own_patient)),
        )

    def _values(
        self, true: np.ndarray, foreign: list[np.ndarray], patients: np.ndarray
    ) -> dict[str, Estimate]:
        """true bool[N, K]; foreign: bool[N, K] per permutation."""
        values = self._three_rows(
            "",
            true.all(axis=1).astype(float),
            np.mean([won.all(axis=1) for won in foreign], axis=0),
            patients,
            1 / (1 + self.num_perturbed),
        )
        mean_foreign = np.mean(foreign, axis=0)
        for kind in self.kinds:
            of_kind = self.choices.kinds == kind
            if of_kind.any():
                owners = patients[np.nonzero(of_kind)[0]]
                asked, blind = true[of_kind].astype(float), mean_foreign[of_kind]
                values |= self._three_rows(f"kind/{kind}/", asked, blind, owners, 0.5)
        return values

    def _three_rows(
        self, prefix: str, true: np.ndarray, foreign: np.ndarray, owners: np.ndarray, chance: float
    ) -> dict[str, Estimate]:
        rows: Mapping[str, tuple[np.ndarray, float]] = {
            "accuracy": (true, chance),
            "accuracy_images_permuted": (foreign, chance),
            "grounded_gain": (true - foreign, 0.0),
        }
        return {
            f"{prefix}{name}": statistics.estimate(
                values, owners, chance=by_chance, samples=self.bootstrap, seed=self.seed
            )
            for name, (values, by_chance) in rows.items()
        }

    def _details(self, own_patient: float) -> dict[str, Any]:
        return {
            "copies": self.choices.counts,
            "copies_sha256": self.choices.sha256,
            # Equal embeddings tie, and ties are wrong.
            "constant_predictor": {"accuracy": 0.0},
            "permuted_images_of_own_patient": own_patient,
            "ties": f"wrong, within {statistics.TIE:g}",
            "options": {
                "kinds": list(self.kinds),
                "num_perturbed": self.num_perturbed,
                "permutations": self.permutations,
                "bootstrap": self.bootstrap,
                "seed": self.seed,
            },
        }
