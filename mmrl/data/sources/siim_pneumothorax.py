"""SIIM-ACR Pneumothorax Segmentation 2019: 12,047 frontal radiographs with masks, no text.

Layout, as in https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation:

    train-rle.csv (or stage_2_train.csv)      ImageId, EncodedPixels; one row per mask
    dicom-images-train/{study}/{series}/{ImageId}.dcm
    dicom-images-test/{study}/{series}/{ImageId}.dcm     the test images of the first stage

or as PNG, https://www.kaggle.com/datasets/vbookshelf/pneumothorax-chest-xray-images-and-masks:

    stage_1_train_images.csv, stage_1_test_images.csv    new_filename, ImageId, has_pneumo
    png_images/{n}_{train|test}_{0|1}_.png, png_masks/ with the same names

Licence: the rules of the Kaggle competition, which must be clicked.

Official split: the folder of the image, train or test of the first stage. There is no official val,
so `val_fraction` of train is held out, by hash.

Also handled:
  * Runs are relative: each start counts from the end of the previous run, from 0 down the columns.
  * Images without pneumothorax have "-1" in one release and " -1" in another.
  * The column of runs is " EncodedPixels", with a space.
  * An image with several masks has several rows. It is one record; its mask is their union.
  * The images come from NIH ChestX-ray14 (Filice et al., Journal of Digital Imaging 2020,
    doi:10.1007/s10278-019-00299-9), but neither patients nor NIH names are known:
    `leakage_unit_known` is False, and a warning says so.
  * Projection, sex and age are in the DICOM headers only; `dicom_headers` reads them.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmrl.data.image import readers
from mmrl.data.image.masks import Mask, encode_mask
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.reading.paths import is_file_name
from mmrl.types import InputError, Reject

_SIDE = 1024  # height and width of every image, in pixels
_LABEL = "Pneumothorax"
_NONE = "-1"
_TABLES = ("train-rle.csv", "stage_2_train.csv")
_PNG_TABLES = {"train": "stage_1_train_images.csv", "test": "stage_1_test_images.csv"}
_FOLDERS = {"dicom-images-train": "train", "dicom-images-test": "test"}


class SiimPneumothorax(Listing):
    """One record per image, with the label "Pneumothorax" and, where it is 1, masks.

    Args:
      val_fraction: share of the official train that becomes val.
      others: see `mmrl.data.reading.listing.Listing`.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, bad_mask (runs that are not numbers or leave
        the image, or a mask file that cannot be read), and label_conflict (the rows of an image, or
        table and mask, contradict each other).

    Raises:
      InputError: no table, or a missing column.
    """

    facts = Facts(
        title="SIIM-ACR Pneumothorax Segmentation 2019",
        url="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
        license="rules of the Kaggle competition",
        access="click",
        version="stage 2",
        expected={
            "records": 12047,
            "images": 12047,
            "records/train": 10675,
            "records/test": 1372,
        },
        within=("nih14",),
    )
    label_names = (_LABEL,)

    def __init__(self, *, val_fraction: float = 0.1, **others: Any) -> None:
        super().__init__(val_fraction=val_fraction, **others)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the images in the order of their first rows."""
        self.warnings.append(
            f"{self.name()}: patients are not known, so images of one patient may fall into"
            " different splits"
        )
        if os.path.isdir(os.path.join(self.path, "png_images")):
            yield from self._png()
        else:
            yield from self._original()

    def _original(self) -> Iterator[Draft | Reject]:
        table = self.find(*(name + end for name in _TABLES for end in ("", ".gz")))
        places = self._places()
        masks: dict[str, list[str]] = {}
        for row in self.rows(table, ("ImageId", "EncodedPixels")):
            if isinstance(row, Reject):
                yield row
            elif not row[1]["ImageId"]:
                yield Reject(f"{self.name()}:{table} row {row[0]}", "bad_row", "ImageId is blank")
            else:
                masks.setdefault(row[1]["ImageId"], []).append(row[1]["EncodedPixels"])
        for image, cells in masks.items():
            path, split = places.pop(image, (f"dicom-images-train/{image}.dcm", ""))
            drawn: list[Mask] = []
            problem = None
            if _NONE in cells and set(cells) != {_NONE}:
                problem = "label_conflict", f"{len(cells)} rows, of which some say {_NONE}"
            elif _NONE not in cells:
                try:
                    drawn = [mask_of(cell) for cell in cells]
                except InputError as error:
                    problem = "bad_mask", str(error)
            if problem:
                yield Reject(f"{self.name()}:{image}", *problem)
            else:
                yield _draft(image, path, split, drawn)
        if places:
            self.warnings.append(
                f"{self.name()}: {len(places):,} images have no row in {table}; they are not read"
            )

    def _png(self) -> Iterator[Draft | Reject]:
        for split, name in _PNG_TABLES.items():
            table = self.find(name, f"{name}.gz")
            for row in self.rows(table, ("new_filename", "ImageId", "has_pneumo")):
                if isinstance(row, Reject):
                    yield row
                    continue
                number, cells = row
                image, file, stated = cells["ImageId"], cells["new_filename"], cells["has_pneumo"]
                if not image or not is_file_name(file) or stated not in ("0", "1"):
                    place = f"{self.name()}:{table} row {number}"
                    detail = f"ImageId {image!r}, new_filename {file!r}, has_pneumo {stated!r}"
                    yield Reject(place, "bad_row", detail)
                    continue
                drawn: list[Mask] = []
                if stated == "1":
                    try:
                        drawn = [self._mask_file(file)]
                    except InputError as error:
                        yield Reject(f"{self.name()}:{image}", "bad_mask", str(error))
                        continue
                if stated == "1" and not drawn[0].runs:
                    detail = f"has_pneumo is 1, but the mask of {file} is empty"
                    yield Reject(f"{self.name()}:{image}", "label_conflict", detail)
                    continue
                yield _draft(image, f"png_images/{file}", split, drawn)

    def _mask_file(self, file: str) -> Mask:
        """The mask in a PNG file: all pixels that are not black."""
        full = os.path.join(self.path, "png_masks", file)
        if not os.path.isfile(full):
            raise InputError(f"no file 'png_masks/{file}'")
        return encode_mask(_LABEL, readers.read(full) > 0)

    def _places(self) -> dict[str, tuple[str, str]]:
        """ImageId -> relative path and official split of every DICOM file in the folder."""
        found: dict[str, tuple[str, str]] = {}
        for folder, folders, files in os.walk(self.path):
            folders.sort()
            relative = os.path.relpath(folder, self.path)
            parts = relative.split(os.sep)
            split = next((_FOLDERS[part] for part in parts if part in _FOLDERS), "")
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                if suffix.lower() == ".dcm":
                    path = os.path.normpath(os.path.join(relative, file))
                    found.setdefault(stem, (path, split))
        return found


def mask_of(cell: str) -> Mask:
    """The mask of a cell of EncodedPixels, on 1024 x 1024 pixels.

    The cell has pairs of offset and length. An offset counts from the end of the previous run, down
    the columns: "100 3 1021 4" is pixels 100 to 102 and 1124 to 1127.

    Raises:
      InputError: no pairs of whole numbers, an empty run, or a run outside the image.
    """
    try:
        numbers = np.array([int(word) for word in cell.split()], np.int64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise InputError(f"runs {cell[:40]!r}; expected pairs of offset and length") from error
    offsets, lengths = numbers[:, 0], numbers[:, 1]
    pixels = _SIDE * _SIDE
    if not len(numbers) or numbers.max() > pixels or offsets.min() < 0 or lengths.min() < 1:
        raise InputError(f"runs {cell[:40]!r}; expected offsets of 0 and lengths of 1 at least")
    ends = np.cumsum(offsets + lengths)
    if ends[-1] > pixels:
        raise InputError(f"runs end at pixel {ends[-1]}; expected at most {pixels}")
    runs = np.stack([ends - lengths, lengths], axis=1).reshape(-1)
    return Mask(_LABEL, _SIDE, _SIDE, tuple(runs.tolist()))


def _draft(image: str, path: str, split: str, masks: list[Mask]) -> Draft:
    return Draft(
        image,
        split=split,
        images=(ImageFile(path),),
        labels=(int(bool(masks)),),
        masks=tuple(masks),
    )
