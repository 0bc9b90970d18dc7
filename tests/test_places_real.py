"""Grounding and segmentation on real radiographs with lung masks and boxes."""

import csv
import dataclasses
import functools
import hashlib

import numpy as np
import pytest

from mmrl.data.image import readers
from mmrl.data.image.images import Preprocess
from mmrl.evaluators.grounding import Grounding, box_mask
from mmrl.evaluators.segmentation import Segmentation, drawn_masks
from mmrl.types import Box
from tests.places import Places, Regions

pytestmark = [pytest.mark.real_data, pytest.mark.optax]

GRID, SIDE = (8, 8), 32


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def mask_of(path):
    return {"lungs": readers.read(path) > 0}


@dataclasses.dataclass
class Lungs(Places):
    """Images of one third of the patients, or of the other two, as `number` counts all of them."""

    folder: object = None
    held_out: bool = True

    def __post_init__(self):
        rows = rows_of(self.folder / "covid_cxr_masks" / "index.csv")
        third = [hashlib.sha256(row["patient_id"].encode()).digest()[0] % 3 == 0 for row in rows]
        chosen = [n for n, of_row in enumerate(third) if of_row == self.held_out]
        self.rows, self.count = rows, len(chosen)
        self.on = {}
        for box in rows_of(self.folder / "covid_cxr_masks" / "boxes.csv"):
            x, y, w, h = (float(box[key]) for key in "xywh")
            made = Box((x, y, x + w, y + h), box["label"])
            self.on.setdefault(box["image"], []).append(made)
        super().__post_init__()
        self.ids = [f"fake:{n}" for n in chosen]
        self.patients = [rows[n]["patient_id"] for n in chosen]
        self.sha256, self.preprocess = f"lungs {self.held_out}", Preprocess(SIDE)

    def record(self, index):
        number = self.number(index)
        row, made = self.rows[number], super().record(index)
        load = functools.partial(readers.load_file, str(self.folder), row["image"])
        mask = self.folder / "covid_cxr_masks" / row["mask"]
        return dataclasses.replace(
            made,
            images=(dataclasses.replace(made.images[0], load=load),),
            boxes=tuple(self.on[row["image"]]),
            sentences=(),
            masks=functools.partial(mask_of, mask),
        )

    def boxes(self, number):
        return ()

    def image(self, index):
        return self.preprocess(self.record(index).images[0].load())[..., None]


class LungRegions(Regions):
    """Regions of an 8 x 8 grid."""

    grids = {"image": GRID}  # noqa: RUF012


@pytest.fixture(scope="module")
def lungs(real_data):
    training = Lungs(0, folder=real_data, held_out=False, name="fake/train")
    return Lungs(0, folder=real_data, splits={"train": training, "val": training})


def shares(data, number):
    """Share of each region that the left and the right lung of the image cover, and the rest."""
    (found,), _ = drawn_masks(data, [data.ids.index(f"fake:{number}")], SIDE)
    share = found["lungs"].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    sides = np.stack([share, share], axis=-1)
    sides[:, 4:, 0], sides[:, :4, 1] = 0, 0
    rest = 1 - share[..., None]
    return np.concatenate([sides, rest], axis=-1).reshape(64, 3).astype(np.float32)


def test_boxes_and_masks_of_lungs_are_in_the_same_place(lungs):
    for index in range(len(lungs)):
        record = lungs.record(index)
        mask, image = record.masks()["lungs"], record.images[0].load()
        assert mask.shape == image.shape
        inside = box_mask([box.xyxy for box in record.boxes], *mask.shape)
        assert (mask & inside).sum() / mask.sum() > 0.98


def test_lungs_are_found_by_who_sees_them_and_nearly_by_who_knows_their_place(lungs):
    """The patient's right lung is at the left of the image."""
    phrases = dict(zip(("right lung", "left lung"), np.eye(2, 3, dtype=np.float32), strict=True))
    predict = LungRegions(lambda number: shares(lungs, number), phrases.get)
    values = Grounding(predict, lungs, sigma=0.5).run(None).values
    assert values["pointing"].value > 0.95 and values["cnr"].low > 1
    assert values["class/left lung/pointing"].n == len(lungs)
    # Lungs have a place of their own, which a map of that place finds without the image.
    assert values["pointing_prior_map"].value > 0.9 and values["cnr_prior_map"].low > 0.5
    swapped = LungRegions(lambda number: shares(lungs, number)[:, [1, 0, 2]], phrases.get)
    values = Grounding(swapped, lungs, sigma=0.5).run(None).values
    assert values["pointing"].value < 0.05 and values["cnr"].high < 0


def test_masks_of_lungs(lungs):
    training = lungs.splits["train"]

    def regions_of(number):
        own = lungs if f"fake:{number}" in lungs.ids else training
        return shares(own, number)

    data = dataclasses.replace(lungs, name="fake/val")
    evaluator = Segmentation(
        LungRegions(regions_of), data, decoder="linear", epochs=60, learning_rate=0.05
    )
    results = evaluator.run(None)
    values = results.values
    assert values["dice"].low > 0.85
    assert values["dice_foreground"].value < values["dice_mean_mask"].value < values["dice"].value
    assert values["dice_gain"].low > 0 and values["dice_background"].value == 0
    assert results.details["labels"]["lungs"]["empty_masks"] == 0
