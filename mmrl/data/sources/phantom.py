"""The phantom corpus as a source of any length, split by patient and drawn on demand."""

import functools
import math
from collections.abc import Callable

import numpy as np

from mmrl.data.phantom import lateral as phantom_lateral
from mmrl.data.phantom import study as phantom
from mmrl.data.phantom.vector import vector as phantom_vector
from mmrl.data.reading.drafts import Facts
from mmrl.data.reading.lazy import LazyBoxes
from mmrl.data.reading.splits import Fractions, split_of
from mmrl.types import Box, ImageRef, InputError, Record, Reject

_SPLITS = ("train", "val", "test")


def _boxes(seed: int, index: int, size: int) -> tuple[Box, ...]:
    return phantom.boxes(phantom.study(seed, index), size)


class _Images:
    """(position, number = 0) -> u8[S, S], without the rest of the record."""

    def __init__(self, seed: int, indices: np.ndarray, size: int, lateral: bool) -> None:
        self._seed, self._indices, self._size = seed, indices, size
        self._count = 2 if lateral else 1

    def __call__(self, position: int, number: int = 0) -> np.ndarray:
        if not 0 <= number < self._count:
            raise InputError(f"the record has {self._count} images, no number {number}")
        draw: Callable[[int, int, int], np.ndarray] = (
            phantom_lateral.load_image if number else phantom.load_image
        )
        return draw(self._seed, int(self._indices[position]), self._size)


class Phantom:
    """Procedural radiographs with reports and exact truth; see `mmrl.data.phantom.study`.

    Args:
      split: train, val or test.
      length: number of studies in all splits together.
      seed: another seed gives an independent corpus.
      render_size: side of the images in pixels.
      fractions: of patients in train, val and test.
      lateral: whether every study has a second image, a lateral one. It shows the same patient and
        findings, and does not show their sides. Boxes and masks are on the first image.
      vector: number of elements of the vector of a record, which codes its findings; 0 for none.
      vector_noise: standard deviation of the noise in each element.
      vector_missing: share of the records that have no vector.
      sided_labels: whether the labels also state the sides of findings, such as "left nodule"; see
        SIDED_LABELS of that module.

    Attributes:
      rejects, total: as of Source.
      image: (index, number = 0) -> image `number` of record `index`, u8[S, S].

    Raises:
      InputError: an unknown split, a length below 1, fractions that do not sum to 1, or an option
        of vectors outside of its range.
    """

    facts = Facts(
        title="Phantoms: procedural chest radiographs with grammar-made reports",
        url="",
        license="CC0-1.0 (procedural)",
        redistributable=True,
        templated=True,
    )

    def __init__(
        self,
        *,
        split: str,
        length: int = 6000,
        seed: int = 0,
        render_size: int = 64,
        fractions: Fractions = (0.8, 0.1, 0.1),
        lateral: bool = False,
        vector: int = 0,
        vector_noise: float = 0.5,
        vector_missing: float = 0.0,
        sided_labels: bool = False,
    ) -> None:
        if split not in _SPLITS:
            raise InputError(f"unknown split {split!r}; choices: {', '.join(_SPLITS)}")
        if length < 1 or render_size < 16:
            raise InputError(
                f"phantom length {length}, render_size {render_size}; expected at least 1 and 16"
            )
        if vector < 0 or not 0 <= vector_noise < math.inf or not 0 <= vector_missing <= 1:
            raise InputError(
                f"phantom vector {vector}, vector_noise {vector_noise}, vector_missing"
                f" {vector_missing}; expected at least 0, at least 0, and a share from 0 to 1"
            )
        self._split, self._seed, self._size = split, seed, render_size
        self._lateral, self._vector = lateral, (vector, vector_noise, vector_missing)
        self._sided_labels = sided_labels
        of_patient = functools.cache(
            lambda number: split_of(f"{seed}-{number}", fractions, salt="phantom")
        )
        chosen = [
            index for index in range(length) if of_patient(phantom.patient_number(index)) == split
        ]
        self._indices = np.array(chosen, np.int64)
        self.image = _Images(seed, self._indices, render_size, lateral)
        self.rejects: list[Reject] = []
        self.total = len(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Record:
        index = int(self._indices[position])
        key = (self._seed, index, self._size)
        study = phantom.study(self._seed, index)
        frontal = ImageRef(
            str(index), functools.partial(phantom.load_image, *key), study.technique.projection
        )
        side = ImageRef(
            f"{index}-lateral", functools.partial(phantom_lateral.load_image, *key), "LATERAL"
        )
        return Record(
            id=f"phantom:{self._seed}-{index}",
            source="phantom",
            patient_id=study.patient_id,
            study_id=f"{self._seed}-{index}",
            leakage_unit=study.patient_id,
            split=self._split,
            images=(frontal, side) if self._lateral else (frontal,),
            sections={
                "indication": study.indication,
                "findings": study.section("findings"),
                "impression": study.section("impression"),
            },
            label_names=phantom.LABELS + (phantom.SIDED_LABELS if self._sided_labels else ()),
            labels=study.labels + (study.sided_labels if self._sided_labels else ()),
            boxes=LazyBoxes(functools.partial(_boxes, *key)),
            findings=study.findings,
            sentences=tuple((sentence.section, sentence.text) for sentence in study.sentences),
            masks=functools.partial(phantom.load_masks, *key),
            vector=phantom_vector(study, *self._vector) if self._vector[0] else None,
            license=self.facts.license,
            redistributable=self.facts.redistributable,
        )
