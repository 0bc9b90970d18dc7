"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients, text-mined labels, no reports.

Layout, as in https://nihcc.app.box.com/v/ChestXray-NIHCC:

    images_001/images/*.png ... images_012/images/*.png (or all of them in images/)
    Data_Entry_2017_v2020.csv (before: Data_Entry_2017.csv)
    BBox_List_2017.csv, train_val_list.txt, test_list.txt

Licence: use is unrestricted; the owner asks for attribution to the NIH Clinical Center and to Wang
et al., CVPR 2017 (arXiv:1705.02315). Access: open.

Official split: train_val_list.txt and test_list.txt, which share no patient. There is no official
val, so `val_fraction` of the patients of train_val is held out, by hash.

Also handled:
  * Column names contain commas ("OriginalImage[Width,Height]"), so the columns are
    "OriginalImage[Width" and "Height]". The last column of the first release has no name. "Patient
    Gender" is "Patient Sex" in some releases.
  * Ages of the first release are "058Y", "013M" or "004D"; `age` is in whole years. Impossible ages
    (414) are kept.
  * Pixel spacing is that of the original image; the distributed image is scaled to 1024 x 1024.
  * Boxes are named "Infiltrate" and labels "Infiltration"; both are "Infiltration" here. The label
    "Pleural_Thickening" is "Pleural Thickening". Box columns are "Bbox [x", "y", "w", "h]".
  * Boxes that leave the image by less than a pixel, due to rounding, are clipped.
  * Some PNG files are RGBA; they are read as one channel.
  * A finding that is not named is absent (0): the text miner has no uncertain labels.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from mmrl.data.reading import tabular
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.types import Box, InputError, Reject

_SIDE = 1024  # height and width of every distributed image, in pixels
_NO_FINDING = "No Finding"
_OTHER_NAMES = {"Pleural_Thickening": "Pleural Thickening", "Infiltrate": "Infiltration"}
_PROJECTIONS = {"PA": "PA", "AP": "AP", "": "UNKNOWN"}
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
_BOX = ("Bbox [x", "y", "w", "h]")
_SIZE = ("OriginalImage[Width", "Height]")
_SPACING = ("OriginalImagePixelSpacing[x", "y]")


class Nih14(Listing):
    """One record per image, with 14 labels, boxes for 880 images, and no text.

    `leakage_unit` is the number of the patient without leading zeros. Records of other corpora that
    come from this one have it as an alias, "nih14:42".

    Args:
      val_fraction: share of the patients of the official train_val list that becomes val.
      others: see `mmrl.data.reading.listing.Listing`.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, bad_label (an unknown finding, or "No
        Finding" with another), bad_box (not four numbers, no area, or outside the image), and
        unknown_image (a box of an image that is not in the table).

    Raises:
      InputError: no table, a missing column, one of the two split lists without the other, or an
        image in both.
    """

    facts = Facts(
        title="NIH ChestX-ray14",
        url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        license="unrestricted use with attribution to the NIH Clinical Center",
        redistributable=True,
        version="2017",
        expected={
            "records": 112120,
            "images": 112120,
            "patients": 30805,
            "records/train": 86524,
            "records/test": 25596,
        },
    )
    label_names = (
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural Thickening",
        "Hernia",
    )

    def __init__(self, *, val_fraction: float = 0.1, **others: Any) -> None:
        super().__init__(val_fraction=val_fraction, **others)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the images in the order of the table, then rejects of boxes without image."""
        names = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
        table = self.find(*(name + suffix for name in names for suffix in ("", ".gz")))
        places, splits = self._places(), self._splits()
        boxes: dict[str, list[Box]] = {}
        broken: list[Reject] = []
        for item in self._boxes():
            if isinstance(item, Reject):
                broken.append(item)
            else:
                boxes.setdefault(item[0], []).append(item[1])
        seen: set[str] = set()
        unlisted = 0
        required = ("Image Index", "Finding Labels", "Patient ID")
        sex = ("Patient Sex", "Patient Gender")
        optional = ("Follow-up #", "Patient Age", *sex, "View Position", *_SIZE, *_SPACING)
        for row in self.rows(table, required, optional):
            if isinstance(row, Reject):
                yield row
                continue
            cells = row[1]
            image = cells["Image Index"]
            seen.add(image)
            path, split = places.get(image, f"images/{image}"), splits.get(image, "")
            draft = self._draft(cells, path, split, boxes)
            unlisted += isinstance(draft, Draft) and bool(splits) and not split
            yield draft
        if unlisted:
            self.warnings.append(
                f"{self.name()}: {unlisted:,} images are in neither split list; their patients are"
                " divided by hash"
            )
        yield from broken
        for image in boxes:
            if image not in seen:
                place = f"{self.name()}:{image}#boxes"
                yield Reject(place, "unknown_image", "boxes of an image that is not in the table")

    def _draft(
        self, cells: dict[str, str], path: str, split: str, boxes: dict[str, list[Box]]
    ) -> Draft | Reject:
        image, patient = cells["Image Index"], cells["Patient ID"]
        place = f"{self.name()}:{image}"
        if not image or not patient.isdecimal():
            detail = f"image {image!r}, patient {patient!r}; expected a name and a number"
            return Reject(place, "bad_row", detail)
        names = [name.strip() for name in cells["Finding Labels"].split("|")]
        found = {_OTHER_NAMES.get(name, name) for name in names}
        unknown = sorted(found - {_NO_FINDING, *self.label_names})
        if unknown or (_NO_FINDING in found and len(found) > 1):
            return Reject(place, "bad_label", f"finding labels {cells['Finding Labels']!r}")
        attributes = {
            "age": _years(cells["Patient Age"]),
            "sex": cells["Patient Sex"] or cells["Patient Gender"],
            "follow_up": cells["Follow-up #"],
        }
        projection = _PROJECTIONS.get(cells["View Position"].upper(), "OTHER")
        source = "metadata" if cells["View Position"] else ""
        return Draft(
            image,
            patient=str(int(patient)),
            split=split,
            images=(ImageFile(path, projection, source, _spacing(cells)),),
            labels=tuple(int(name in found) for name in self.label_names),
            boxes=tuple(boxes.get(image, ())),
            attributes={name: value for name, value in attributes.items() if value},
        )

    def _places(self) -> dict[str, str]:
        """Image name -> relative path of every file in images*/ and images*/images/."""
        found: dict[str, str] = {}
        for folder in sorted(os.listdir(self.path)):
            if not folder.startswith("images"):
                continue
            for relative in (f"{folder}/images", folder):
                full = os.path.join(self.path, relative)
                if os.path.isdir(full):
                    for name in sorted(os.listdir(full)):
                        found.setdefault(name, f"{relative}/{name}")
        return found

    def _splits(self) -> dict[str, str]:
        """Image name -> train or test; {} with a warning when there are no lists."""
        present = [name for name in _LISTS if os.path.isfile(os.path.join(self.path, name))]
        if not present:
            self.warnings.append(
                f"{self.name()}: no {' and '.join(_LISTS)}; patients are divided by hash, which is"
                " not the official split"
            )
            return {}
        if len(present) < len(_LISTS):
            raise InputError(
                f"{self.name()}: '{self.path}' has {present[0]} alone; expected both or none of"
                f" {', '.join(_LISTS)}"
            )
        splits: dict[str, str] = {}
        for name, split in _LISTS.items():
            where = os.path.join(self.path, name)
            for number, line, problem in tabular.lines(where):
                if problem:
                    raise InputError(f"{where} line {number}: {problem}")
                image = line.strip()
                if image and splits.setdefault(image, split) != split:
                    raise InputError(f"{self.name()}: {image!r} is in both of {', '.join(_LISTS)}")
        return splits

    def _boxes(self) -> Iterator[tuple[str, Box] | Reject]:
        """Yields image name and box, in pixels of the 1024 x 1024 image."""
        table = "BBox_List_2017.csv"
        if not os.path.isfile(os.path.join(self.path, table)):
            self.warnings.append(f"{self.name()}: no {table}; no image has boxes")
            return
        for row in self.rows(table, ("Image Index", "Finding Label", *_BOX)):
            if isinstance(row, Reject):  # "#" marks a part of a record
                yield dataclasses.replace(row, id=f"{self.name()}:boxes#{row.id}")
                continue
            number, cells = row
            image, label = cells["Image Index"], cells["Finding Label"]
            place = f"{self.name()}:{image}#{table} row {number}"
            label = _OTHER_NAMES.get(label, label)
            if label not in self.label_names:
                yield Reject(place, "bad_label", f"box of finding {label!r}")
                continue
            try:
                x, y, w, h = (float(cells[name]) for name in _BOX)
            except ValueError:
                yield Reject(
                    place, "bad_box", f"{[cells[name] for name in _BOX]}; expected numbers"
                )
                continue
            x1, y1 = x + w, y + h
            if not (-1 < x < x1 < _SIDE + 1 and -1 < y < y1 < _SIDE + 1):
                yield Reject(place, "bad_box", f"x {x}, y {y}, w {w}, h {h} in {_SIDE} x {_SIDE}")
                continue
            yield image, Box((max(x, 0.0), max(y, 0.0), min(x1, _SIDE), min(y1, _SIDE)), label)


def _years(age: str) -> str:
    """Whole years of "58", "058Y", "013M" or "004D"; other text is not changed."""
    match = re.fullmatch(r"(\d+)([YMD]?)", age)
    if match is None:
        return age
    return str(int(match[1]) // {"": 1, "Y": 1, "M": 12, "D": 365}[match[2]])


def _spacing(cells: dict[str, str]) -> tuple[float, float] | None:
    """Millimetres per pixel of the scaled image, down and across; None when it is not stated."""
    try:
        width, height = (float(cells[name]) for name in _SIZE)
        across, down = (float(cells[name]) for name in _SPACING)
    except ValueError:
        return None
    if not (width > 0 and height > 0 and across > 0 and down > 0):
        return None
    return down * height / _SIDE, across * width / _SIDE
