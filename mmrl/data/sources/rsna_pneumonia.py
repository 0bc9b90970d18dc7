"""RSNA Pneumonia Detection Challenge 2018: 26,684 frontal radiographs, boxes of pneumonia, no text.

Layout, as in https://www.kaggle.com/c/rsna-pneumonia-detection-challenge:

    stage_2_train_images/{patientId}.dcm
    stage_2_train_labels.csv           patientId,x,y,width,height,Target; one row per box
    stage_2_detailed_class_info.csv    patientId,class; one row per box

The 3,000 images of stage_2_test_images have no labels and are not read.

Licence: the rules of the Kaggle competition, which must be clicked. Official split: none.
Paper: Shih et al., Radiology: Artificial Intelligence 2019, doi:10.1148/ryai.2019180041.

Also handled:
  * `patientId` identifies an image, not a patient. All images come from NIH ChestX-ray14, where the
    26,684 images belong to about 11,400 patients, so a split by `patientId` divides patients. RSNA
    publishes the NIH image of each in pneumonia-challenge-dataset-mappings_2018.json
    (https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018), see
    `nih_mapping`. Without it, `leakage_unit_known` is False, and a warning says so.
  * An image has one row per box and is one record.
  * Projection, sex and age are in the DICOM headers only; `dicom_headers` reads them. Ages up to
    155 occur; those above 120 are left out.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from mmrl.data.reading import tabular
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.types import Box, InputError, Reject, first_line

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"

_SIDE = 1024  # height and width of every image, in pixels
_BOX = ("x", "y", "width", "height")
_OPACITY = "Lung Opacity"
_CLASSES = ("Normal", "No Lung Opacity / Not Normal", _OPACITY)
_IMAGE_COLUMNS = ("img_id", "image index", "nih image index", "nih_image", "nih_image_index")
_PATIENT_COLUMNS = ("patient id", "nih patient", "nih_patient", "nih_patient_id")


class RsnaPneumonia(Listing):
    """One record per image, with labels "Pneumonia" (Target) and "Normal", and boxes "Pneumonia".

    `attributes["class"]` is the detailed class: Normal, "No Lung Opacity / Not Normal" (both labels
    are 0), or Lung Opacity.

    Args:
      nih_mapping: file with the NIH image of each `patientId`. It is the JSON file that RSNA
        publishes, a list of {"subset_img_id": patientId, "img_id": "00000042_000.png"}, or a CSV
        file with a column patientId and a column of NIH images ("img_id" or "Image Index") or NIH
        patients ("Patient ID" or "nih_patient"). By default it is the JSON file in the folder of
        the corpus, if it exists. A record in it has the NIH patient and the alias
        "nih14:{patient}".
      others: see `mmrl.data.reading.listing.Listing`.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, bad_label (an unknown Target or class),
        label_conflict (the rows of an image contradict each other), and bad_box (not four numbers,
        no area, or outside the image; the record is kept).

    Raises:
      InputError: no table of labels, a missing column, or a mapping that cannot be used.
    """

    facts = Facts(
        title="RSNA Pneumonia Detection Challenge 2018",
        url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        license="rules of the Kaggle competition",
        access="click",
        version="stage 2",
        expected={"records": 26684, "images": 26684},
        within=("nih14",),
    )
    label_names = ("Pneumonia", "Normal")

    def __init__(self, *, nih_mapping: str = "", **others: Any) -> None:
        self._mapping = nih_mapping
        super().__init__(**others)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the images in the order of their first rows."""
        labels = "stage_2_train_labels.csv"
        table = self.find(labels, f"{labels}.gz")
        patients = self._patients()
        classes = self._classes()
        images: dict[str, list[tuple[int, dict[str, str]]]] = {}
        for row in self.rows(table, ("patientId", *_BOX, "Target")):
            if isinstance(row, Reject):
                yield row
            elif not row[1]["patientId"]:
                yield Reject(
                    f"{self.name()}:{labels} row {row[0]}", "bad_row", "patientId is blank"
                )
            else:
                images.setdefault(row[1]["patientId"], []).append(row)
        unmapped = unclassed = 0
        for image, rows in images.items():
            problem = _contradiction(rows, classes.get(image, set()))
            if problem:
                yield Reject(f"{self.name()}:{image}", *problem)
                continue
            boxes: list[Box] = []
            for number, cells in rows:
                found = _box(cells)
                if isinstance(found, Box):
                    boxes.append(found)
                elif found:
                    yield Reject(f"{self.name()}:{image}#row {number}", "bad_box", found)
            kind = next(iter(classes.get(image, ())), "")
            unclassed += not kind
            unmapped += image not in patients
            yield self._draft(image, rows[0][1]["Target"], kind, boxes, patients.get(image, ""))
        self._warn(bool(patients), unmapped, unclassed)

    def _draft(self, image: str, target: str, kind: str, boxes: list[Box], patient: str) -> Draft:
        return Draft(
            image,
            patient=patient,
            images=(ImageFile(f"stage_2_train_images/{image}.dcm"),),
            labels=(int(target), int(kind == "Normal") if kind else -2),
            boxes=tuple(boxes),
            aliases=(f"nih14:{patient}",) if patient else (),
            attributes={"class": kind} if kind else {},
        )

    def _warn(self, mapped: bool, unmapped: int, unclassed: int) -> None:
        if not mapped:
            self.warnings.append(
                f"{self.name()}: patientId names an image and there is no nih_mapping, so images of"
                " one patient may fall into different splits"
            )
        elif unmapped:
            self.warnings.append(
                f"{self.name()}: {unmapped:,} images are not in nih_mapping; each counts as a"
                " patient"
            )
        if unclassed:
            self.warnings.append(
                f"{self.name()}: {unclassed:,} images have no detailed class; 'Normal' is not"
                " stated for them"
            )

    def _classes(self) -> dict[str, set[str]]:
        """Image -> its detailed classes, which should be a single one."""
        name = "stage_2_detailed_class_info.csv"
        found: dict[str, set[str]] = {}
        for table in (name, f"{name}.gz"):
            if os.path.isfile(os.path.join(self.path, table)):
                for row in self.rows(table, ("patientId", "class")):
                    if isinstance(row, Reject):  # "#" marks a part of a record
                        self.rejects.append(
                            Reject(f"{self.name()}:class#{row.id}", row.reason, row.detail)
                        )
                    else:
                        found.setdefault(row[1]["patientId"], set()).add(row[1]["class"])
                break
        return found

    def _patients(self) -> dict[str, str]:
        """Image -> NIH patient; {} when there is no mapping."""
        path = self._mapping or os.path.join(self.path, MAPPING)
        if not os.path.isfile(path):
            if self._mapping:
                raise InputError(f"{self.name()}: nih_mapping '{path}' is not a file")
            return {}
        found: dict[str, str] = {}
        entries = _json_entries(path) if path.lower().endswith(".json") else _table_entries(path)
        for place, image, patient in entries:
            if not image or not patient:
                raise InputError(
                    f"{path}: {place} names no image and NIH patient; expected a patientId and"
                    " an NIH image such as 00000042_000.png, or an NIH patient's number"
                )
            if found.setdefault(image, patient) != patient:
                raise InputError(f"{path}: {place} gives {image} a second NIH patient, {patient}")
        if not found:
            raise InputError(f"{path}: empty; expected an entry for each image")
        return found


def _contradiction(
    rows: list[tuple[int, dict[str, str]]], classes: set[str]
) -> tuple[str, str] | None:
    """The reason and detail for which the rows of an image give no label, or None."""
    targets = {cells["Target"] for _, cells in rows}
    if not targets <= {"0", "1"} or not classes <= set(_CLASSES):
        given = f"Target {sorted(targets)}, class {sorted(classes)}"
        return "bad_label", f"{given}; expected 0 or 1 and one of {', '.join(_CLASSES)}"
    positive = "1" in targets
    boxed = any(cells[name] for _, cells in rows for name in _BOX)
    agree = not classes or (_OPACITY in classes) == positive
    if len(targets) > 1 or len(classes) > 1 or not agree or (boxed and not positive):
        detail = f"Target {sorted(targets)}, class {sorted(classes)}, {'a' if boxed else 'no'} box"
        return "label_conflict", detail
    return None


def _box(cells: dict[str, str]) -> Box | str:
    """The box of a row, its problem, or "" for a row of Target 0, which has no box."""
    if cells["Target"] == "0":
        return ""
    try:
        x, y, width, height = (float(cells[name]) for name in _BOX)
    except ValueError:
        return f"{[cells[name] for name in _BOX]}; expected four numbers"
    if not (0 <= x < x + width <= _SIDE and 0 <= y < y + height <= _SIDE):
        return f"x {x}, y {y}, width {width}, height {height} in {_SIDE} x {_SIDE} pixels"
    return Box((x, y, x + width, y + height), "Pneumonia")


def _patient_of(image: str) -> str:
    """The number of the patient in the name of an NIH image, "00000042_000.png", or ""."""
    match = re.fullmatch(r"(\d+)_\d+(\.png)?", image)
    return str(int(match[1])) if match else ""


def _json_entries(path: str) -> Iterator[tuple[str, str, str]]:
    """Yields the place, image and NIH patient of each entry."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {first_line(error)}") from error
    if not isinstance(entries, list):
        raise InputError(f"{path}: {type(entries).__name__}; expected a list of objects")
    for number, entry in enumerate(entries, 1):
        entry = entry if isinstance(entry, dict) else {}
        image, nih = entry.get("subset_img_id"), entry.get("img_id")
        yield f"entry {number}", str(image or ""), _patient_of(str(nih or ""))


def _table_entries(path: str) -> Iterator[tuple[str, str, str]]:
    """As `_json_entries`, from a table."""
    names = {name.strip().casefold(): name for name in tabular.columns(path)}
    image = names.get("patientid") or names.get("subset_img_id")
    column = next((name for name in (*_IMAGE_COLUMNS, *_PATIENT_COLUMNS) if name in names), "")
    if not image or not column:
        raise InputError(
            f"{path}: columns {', '.join(map(repr, names))}; expected patientId and one of"
            f" {', '.join((*_IMAGE_COLUMNS, *_PATIENT_COLUMNS))}"
        )
    for number, cells, problem in tabular.rows(path, [image, names[column]]):
        if problem:
            raise InputError(f"{path} row {number}: {problem}")
        value = cells[names[column]].strip()
        if column in _PATIENT_COLUMNS:
            value = str(int(value)) if value.isdecimal() else ""
        else:
            value = _patient_of(value)
        yield f"row {number}", cells[image].strip(), value
