"""The phantom corpus as a source of any length, split by patient and drawn on demand."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmrl.data.phantom import course as phantom_course
from mmrl.data.phantom import lateral as phantom_lateral
from mmrl.data.phantom import slices as phantom_slices
from mmrl.data.phantom import study as phantom
from mmrl.data.phantom.dice import stream
from mmrl.data.phantom.vector import vector as phantom_vector
from mmrl.data.reading.drafts import Facts
from mmrl.data.reading.lazy import LazyBoxes
from mmrl.data.reading.splits import Fractions, split_of
from mmrl.types import ImageRef, InputError, Record, Reject

_SPLITS = ("train", "val", "test")


Load = Callable[[int, int, int], np.ndarray]
"""(seed, index, size) -> u8[size, size], an image of a study."""


class _Images:
    """(position, number = 0) -> u8[S, S], without the rest of the record."""

    def __init__(self, seed: int, indices: np.ndarray, size: int, loads: Sequence[Load]) -> None:
        self._seed, self._indices, self._size, self._loads = seed, indices, size, loads

    def __call__(self, position: int, number: int = 0) -> np.ndarray:
        if not 0 <= number < len(self._loads):
            raise InputError(f"the record has {len(self._loads)} images, no number {number}")
        return self._loads[number](self._seed, int(self._indices[position]), self._size)


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
      slices: number of images of every study, sections of the chest that show each lesion in some
        of them only; see `mmrl.data.phantom.slices`. Labels are those of the study, boxes those of
        all images, masks those of the first. 0: one radiograph.
      priors: whether studies have a time and a course: the second study of a patient says in the
        section "comparison" what is new, unchanged or resolved since the first, and has labels
        such as "new nodule"; see `mmrl.data.phantom.course`.
      unreported: share of the studies that have labels and no report.

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
        slices: int = 0,
        priors: bool = False,
        unreported: float = 0.0,
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
        if not 0 <= unreported <= 1:
            raise InputError(f"phantom unreported {unreported}; expected a share from 0 to 1")
        if slices < 0 or (slices and lateral):
            raise InputError(
                f"phantom slices {slices} with lateral={lateral}; expected at least 0, and one of "
                "the two"
            )
        self._split, self._seed, self._size = split, seed, render_size
        self._vector = (vector, vector_noise, vector_missing)
        self._sided_labels, self._priors = sided_labels, priors
        self._unreported = unreported
        self._draw = draw = phantom_course.study if priors else phantom.study
        one: dict[str, Any] = {"draw": draw}
        self._boxes = functools.partial(phantom.load_boxes, **one)
        self._masks = functools.partial(phantom.load_masks, **one)
        self._loads: list[Load] = [functools.partial(phantom.load_image, **one)]
        self._keys, self._projections = ["{}"], [""]
        if lateral:
            self._loads.append(functools.partial(phantom_lateral.load_image, **one))
            self._keys, self._projections = ["{}", "{}-lateral"], ["", "LATERAL"]
        if slices:
            one["count"] = slices
            self._boxes = functools.partial(phantom_slices.load_boxes, **one)
            self._masks = functools.partial(phantom_slices.load_masks, **one)
            self._loads = [
                functools.partial(phantom_slices.load_image, number=number, **one)
                for number in range(slices)
            ]
            self._keys = [f"{{}}-{number}" for number in range(slices)]
            self._projections = ["OTHER"] * slices
        of_patient = functools.cache(
            lambda number: split_of(f"{seed}-{number}", fractions, salt="phantom")
        )
        chosen = [
            index for index in range(length) if of_patient(phantom.patient_number(index)) == split
        ]
        self._indices = np.array(chosen, np.int64)
        self.image = _Images(seed, self._indices, render_size, self._loads)
        self.rejects: list[Reject] = []
        self.total = len(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Record:
        index = int(self._indices[position])
        key = (self._seed, index, self._size)
        study = self._draw(self._seed, index)
        share = self._unreported
        reported = not share or stream(self._seed, "unreported", index).unit() >= share
        sections = {
            "indication": study.indication,
            "findings": study.section("findings"),
            "impression": study.section("impression"),
            phantom_course.SECTION: study.section(phantom_course.SECTION),
        }
        return Record(
            id=f"phantom:{self._seed}-{index}",
            source="phantom",
            patient_id=study.patient_id,
            study_id=f"{self._seed}-{index}",
            leakage_unit=study.patient_id,
            split=self._split,
            images=tuple(
                ImageRef(
                    name.format(index),
                    functools.partial(load, *key),
                    projection or study.technique.projection,
                )
                for name, load, projection in zip(
                    self._keys, self._loads, self._projections, strict=True
                )
            ),
            sections={name: text for name, text in sections.items() if text and reported},
            label_names=phantom.LABELS
            + (phantom.SIDED_LABELS if self._sided_labels else ())
            + (phantom_course.LABELS if self._priors else ()),
            labels=study.labels
            + (study.sided_labels if self._sided_labels else ())
            + (phantom_course.labels(study) if self._priors else ()),
            time=phantom_course.time(self._seed, index) if self._priors else None,
            boxes=LazyBoxes(functools.partial(self._boxes, *key)),
            findings=study.findings,
            sentences=tuple((one.section, one.text) for one in study.sentences if reported),
            masks=functools.partial(self._masks, *key),
            vector=phantom_vector(study, *self._vector) if self._vector[0] else None,
            license=self.facts.license,
            redistributable=self.facts.redistributable,
        )
