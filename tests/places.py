"""Held-out images whose places are known, and encoders that know more or less of them."""

import dataclasses
import functools
import hashlib

import numpy as np

from mmrl.data.image.images import Preprocess
from mmrl.evaluators import statistics
from mmrl.types import Box, ImageRef, InputError, Record
from tests.fakes import Prompts

GRID, SIZE = (4, 4), 16


def blank(height, width):
    return np.zeros((height, width), np.uint8)


def place_of(index):
    """Row and column of the cell of record `index`, in no order that a label could tell."""
    digest = hashlib.sha256(f"place {index}".encode()).digest()
    return digest[0] % 4, digest[1] % 4


@dataclasses.dataclass
class Places:
    """Images of 32 x 32 pixels, each with one boxed cell of 8 x 8 pixels, its own phrase and mask.

    Attributes:
      count: of the images, which belong to as many patients.
      empty: every n-th mask is empty; 0: none.
      labels: names of the findings, in turn.
      splits: name of another split -> its data.
      pixels: record -> image.
    """

    count: int
    empty: int = 0
    labels: tuple = ("nodule", "effusion")
    name: str = "fake/test"
    splits: dict = dataclasses.field(default_factory=dict)
    first: int = 0
    preprocessing: dict = dataclasses.field(default_factory=lambda: {"size": SIZE})

    def __post_init__(self):
        numbers = range(self.first, self.first + self.count)
        self.ids = [f"fake:{n}" for n in numbers]
        self.patients = [f"p{n}" for n in numbers]
        self.texts = ["" for _ in numbers]
        self.groups = np.arange(self.count)
        self.sha256 = self.items_sha256 = f"{self.name}{self.first}{self.count}"
        self.foreign = frozenset()
        self.preprocess = Preprocess(SIZE)

    def __len__(self):
        return self.count

    def number(self, index):
        return int(self.ids[index].removeprefix("fake:"))

    def boxes(self, number):
        row, column = place_of(number)
        x, y = 8.0 * column, 8.0 * row
        label = self.labels[number % len(self.labels)]
        return (Box((x, y, x + 8, y + 8), label, sentence=0),)

    def masks(self, number):
        if self.empty and number % self.empty == 0:
            return {}
        row, column = place_of(number)
        mask = np.zeros((32, 32), bool)
        mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
        return {self.labels[number % len(self.labels)]: mask}

    def record(self, index):
        number = self.number(index)
        return Record(
            id=self.ids[index],
            source="fake",
            patient_id=self.patients[index],
            study_id="",
            leakage_unit="",
            split="test",
            images=(ImageRef(str(number), functools.partial(blank, 32, 32)),),
            sections={},
            boxes=self.boxes(number),
            sentences=(("findings", f"phrase {number}"),),
            masks=functools.partial(self.masks, number),
        )

    def image(self, index):
        return self.preprocess(blank(32, 32))[..., None]

    def split(self, name):
        if name not in self.splits:
            raise InputError(f"{self.name} has no other splits; asked for {name!r}")
        return self.splits[name]

    def with_texts(self, texts):
        return Prompts(list(texts))


@dataclasses.dataclass
class Regions:
    """Encodes regions with a function of the record's number, and phrases with one of the text.

    Attributes:
      regions_of: number -> f32[R, D]. phrase_of: text -> f32[D].
      block: rows of a block of `stream`.
    """

    regions_of: object
    phrase_of: object = None
    block: int = 5
    provides = ("image.regions", "text.sentence")
    grids = {"image": GRID}  # noqa: RUF012

    def encode(self, state, data, names):
        (name,) = names
        if name.startswith("text"):
            rows = [self.phrase_of(text) for text in data.texts]
        else:
            rows = [self.regions_of(int(one.removeprefix("fake:"))) for one in data.ids]
        return {"present": np.ones(len(rows), bool), name: np.stack(rows)}

    def stream(self, state, data, names):
        for start in range(0, len(data), self.block):
            rows = range(start, min(start + self.block, len(data)))
            yield self.encode(state, statistics.Subset(data, rows), names)
