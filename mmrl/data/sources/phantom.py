"""The phantom corpus as a source of any length, split by patient and drawn on demand."""

import functools

from mmrl.data.phantom import study as phantom
from mmrl.data.reading.drafts import Facts
from mmrl.data.reading.lazy import LazyBoxes
from mmrl.data.reading.splits import Fractions, split_of
from mmrl.types import Box, ImageRef, InputError, Record, Reject

_SPLITS = ("train", "val", "test")


def _boxes(seed: int, index: int, size: int) -> tuple[Box, ...]:
    return phantom.boxes(phantom.study(seed, index), size)


class Phantom:
    """Procedural radiographs with reports and exact truth; see `mmrl.data.phantom.study`.

    Args:
      split: train, val or test.
      length: number of studies in all splits together.
      seed: another seed gives an independent corpus.
      render_size: side of the images in pixels.
      fractions: of patients in train, val and test.

    Raises:
      InputError: an unknown split, a length below 1, or fractions that do not sum to 1.
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
    ) -> None:
        if split not in _SPLITS:
            raise InputError(f"unknown split {split!r}; choices: {', '.join(_SPLITS)}")
        if length < 1 or render_size < 16:
            raise InputError(
                f"phantom length {length}, render_size {render_size}; expected at least 1 and 16"
            )
        self._split, self._seed, self._size = split, seed, render_size
        of_patient = functools.cache(
            lambda number: split_of(f"{seed}-{number}", fractions, salt="phantom")
        )
        self._indices = [
            index for index in range(length) if of_patient(phantom.patient_number(index)) == split
        ]
        self.rejects: list[Reject] = []
        self.total = len(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Record:
        index = self._indices[position]
        key = (self._seed, index, self._size)
        study = phantom.study(self._seed, index)
        return Record(
            id=f"phantom:{self._seed}-{index}",
            source="phantom",
            patient_id=study.patient_id,
            study_id=f"{self._seed}-{index}",
            leakage_unit=study.patient_id,
            split=self._split,
            images=(
                ImageRef(
                    str(index),
                    functools.partial(phantom.load_image, *key),
                    study.technique.projection,
                ),
            ),
            sections={
                "indication": study.indication,
                "findings": study.section("findings"),
                "impression": study.section("impression"),
            },
            label_names=phantom.LABELS,
            labels=study.labels,
            boxes=LazyBoxes(functools.partial(_boxes, *key)),
            findings=study.findings,
            sentences=tuple((sentence.section, sentence.text) for sentence in study.sentences),
            masks=functools.partial(phantom.load_masks, *key),
            license=self.facts.license,
            redistributable=self.facts.redistributable,
        )
