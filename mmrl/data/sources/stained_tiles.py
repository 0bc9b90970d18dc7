"""Stained tiles: a phantom corpus in colour, whose stains are told apart by colour alone.

Both stains have the same luma, so an encoder that reads grey images cannot answer which one a tile
has. Pattern and shape of the nuclei and glands are visible in grey as well.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from mmrl import build
from mmrl.data.phantom import tiles
from mmrl.data.reading.drafts import Facts
from mmrl.data.reading.splits import Fractions, check_split, split_of
from mmrl.types import ImageRef, InputError, Record, Reject


class _Images:
    """(position, number = 0) -> u8[S, S, 3], without the rest of the record."""

    def __init__(self, load: Callable[[int], np.ndarray], indices: np.ndarray) -> None:
        self._load, self._indices = load, indices

    def __call__(self, position: int, number: int = 0) -> np.ndarray:
        if number:
            raise InputError(f"the record has 1 image, no number {number}")
        return self._load(int(self._indices[position]))


class StainedTiles:
    """Procedural tiles of stained tissue with reports; see `mmrl.data.phantom.tiles`.

    Two tiles are of one slide, which is the study, and two slides of one patient. Labels are those
    of that module: stain, pattern and shape of the nuclei, and glands.

    Args:
      split: train, val or test.
      length: number of tiles in all splits together.
      seed: another seed gives an independent corpus.
      render_size: side of the images in pixels.
      fractions: of patients in train, val and test.
      prevalence: shares of the tiles with a pink stain, a crowded pattern, an elongated shape or a
        gland, such as {"gland": 0.05}; of those that are not named, a half.

    Attributes:
      rejects, total: as of Source.
      channels: 3.
      image: (index, number = 0) -> the image of record `index`, u8[S, S, 3].

    Raises:
      InputError: an unknown split, a length below 1, an image below 16 pixels, or fractions that
        do not sum to 1.
    """

    facts = Facts(
        title="Stained tiles: procedural tissue with grammar-made reports",
        url="",
        license="CC0-1.0 (procedural)",
        redistributable=True,
        templated=True,
    )
    channels = 3

    def __init__(
        self,
        *,
        split: str,
        length: int = 4000,
        seed: int = 0,
        render_size: int = 64,
        fractions: Fractions = (0.8, 0.1, 0.1),
        prevalence: Mapping[str, float] | None = None,
    ) -> None:
        check_split(split)
        if length < 1 or render_size < 16:
            raise InputError(
                f"stained_tiles length {length}, render_size {render_size}; expected at least 1 "
                "and 16"
            )
        given = dict(prevalence or {})
        for name, share in given.items():
            if name not in tiles.SHARES:
                raise InputError(build.unknown("label in prevalence", name, tiles.SHARES))
            if not 0 <= share <= 1:
                raise InputError(f"prevalence of {name} is {share}; expected a share from 0 to 1")
        self._split, self._seed, self._prevalence = split, seed, given
        self._load = functools.partial(tiles.load_image, seed, size=render_size, prevalence=given)
        of_patient = functools.cache(
            lambda number: split_of(f"{seed}-{number}", fractions, salt="stained_tiles")
        )
        chosen = [n for n in range(length) if of_patient(tiles.patient_number(n)) == split]
        self._indices = np.array(chosen, np.int64)
        self.image = _Images(self._load, self._indices)
        self.rejects: list[Reject] = []
        self.total = len(self._indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Record:
        index = int(self._indices[position])
        shown = tiles.tile(self._seed, index, self._prevalence)
        patient = f"{self._seed}-{tiles.patient_number(index)}"
        load = functools.partial(self._load, index)
        return Record(
            id=f"stained_tiles:{self._seed}-{index}",
            source="stained_tiles",
            patient_id=patient,
            study_id=f"{self._seed}-{tiles.slide_number(index)}",
            leakage_unit=patient,
            split=self._split,
            images=(ImageRef(str(index), load),),
            sections={"findings": " ".join(shown.findings), "impression": shown.impression},
            label_names=tiles.LABELS,
            labels=shown.labels,
            sentences=(
                *(("findings", sentence) for sentence in shown.findings),
                ("impression", shown.impression),
            ),
            license=self.facts.license,
            redistributable=self.facts.redistributable,
        )
