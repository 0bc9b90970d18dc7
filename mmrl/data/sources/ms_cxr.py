"""MS-CXR: phrases of MIMIC-CXR reports with the boxes that radiologists drew for them.

`path` holds `MS_CXR_Local_Alignment_v1.1.0.csv` or `.json` (COCO). Version 1.0.0, which states no
split, is read, too. Images are those of MIMIC-CXR-JPG, `files/p10/p10000032/...` below `images`.

Licence: PhysioNet Credentialed Health Data License 1.5.0; access is credentialed and redistribution
is not permitted. Paper: Boecking et al., ECCV 2022, arXiv:2204.09817.

There is one record per phrase of an image (1,162), since grounding evaluates one phrase at a time.
The phrase is the only sentence of the record, and all its boxes refer to it. Records of one image
share `study_id`, so they are not negatives of each other. Also handled:
  * A phrase with several boxes has several rows. Rows of the same image and text are one record.
  * Boxes are x, y, width and height, not corners.
  * A phrase with an impossible box is refused, since its remaining boxes would be incomplete truth.
  * All patients are of MIMIC-CXR, and the split differs from that of MIMIC-CXR. `aliases` names
    each patient as "mimic_cxr:{subject_id}", by which overlaps with pretraining are found.
  * CSV and JSON give the same ids: phrases of an image are numbered in alphabetical order.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.types import Box, InputError, Reject

_TABLES = tuple(
    f"MS_CXR_Local_Alignment_v{version}.{kind}"
    for version in ("1.1.0", "1.0.0")
    for kind in ("csv", "csv.gz", "json")
)
_COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h")
_SIZES = ("image_width", "image_height")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_PATH = re.compile(r"(?:.*/)?(files/p\d\d/p(\d+)/s(\d+)/([^/]+)\.(?:jpg|dcm|png))")
_MAX_JSON = 2**28  # bytes; the file has under a million
_SLACK = 1.0  # pixels by which a rounded box may leave its image


@dataclasses.dataclass
class _Phrase:
    image: str
    patient: str
    study: str
    text: str
    split: str
    boxes: list[Box] = dataclasses.field(default_factory=list)
    problem: tuple[str, str] | None = None  # reason and detail of a Reject


class MsCxr(Listing):
    """Records of MS-CXR, one per phrase of an image; a Source.

    Args:
      images: the folder of MIMIC-CXR-JPG that holds files/; "" is the folder of the corpus.
      others: see `Listing`.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row, and for whole phrases bad_box and bad_split
        (its rows state several splits).

    Raises:
      InputError: no table, a table that cannot be read, or no folder `images`.
    """

    facts = Facts(
        title="MS-CXR: Making the Most of Text Semantics to Improve Biomedical Vision-Language"
        " Processing",
        url="https://physionet.org/content/ms-cxr/",
        license="PhysioNet Credentialed Health Data License 1.5.0",
        access="credentialed",
        expected={"records": 1_162, "patients": 851},
        within=("mimic_cxr",),
    )

    def __init__(self, *, images: str = "", **others: Any) -> None:
        if images and not os.path.isdir(images):
            raise InputError(f"ms_cxr: images '{images}' is not a folder; expected MIMIC-CXR-JPG")
        self._images = images
        super().__init__(**others)

    @property
    def image_root(self) -> str:
        """The folder of MIMIC-CXR-JPG."""
        return self._images or self.path

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the phrases in the order of image and text."""
        table = self.find(*_TABLES)
        version = re.findall(r"\d\.\d\.\d", table)[0]
        self.facts = dataclasses.replace(self.facts, version=version)
        phrases: dict[tuple[str, str], _Phrase] = {}
        rows = self._json_rows(table) if table.endswith(".json") else self._csv_rows(table)
        for row in rows:
            problem = row if isinstance(row, Reject) else self._add(phrases, *row)
            if problem:
                yield problem
        numbers: dict[str, int] = {}
        for (image, _), phrase in sorted(phrases.items()):
            numbers[image] = number = numbers.get(image, 0) + 1
            native = f"{image}/{number}"
            if phrase.problem:
                yield Reject(f"ms_cxr:{native}", *phrase.problem)
                continue
            yield Draft(
                native,
                patient=phrase.patient,
                study=phrase.study,
                split=phrase.split,
                images=(ImageFile(phrase.image),),
                sections={"full": phrase.text},
                sentences=(("full", phrase.text),),
                boxes=tuple(phrase.boxes),
                aliases=(f"mimic_cxr:{phrase.patient}",),
            )

    def _csv_rows(self, table: str) -> Iterator[tuple[str, dict[str, str]] | Reject]:
        for row in self.rows(table, _COLUMNS, (*_SIZES, "split")):
            yield row if isinstance(row, Reject) else (f"row {row[0]}", row[1])

    def _json_rows(self, table: str) -> Iterator[tuple[str, dict[str, str]] | Reject]:
        """The annotations of the JSON file as rows of the CSV table."""
        content = _load(os.path.join(self.path, table))
        try:
            images = {image["id"]: image for image in content["images"]}
            categories = {one["id"]: str(one["name"]) for one in content["categories"]}
            annotations = list(content["annotations"])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{table}: {error!r}; expected images, categories and annotations as COCO has them"
            ) from error
        for number, one in enumerate(annotations, 1):
            try:
                image = images[one["image_id"]]
                x, y, width, height = one["bbox"]
                cells = {
                    "dicom_id": os.path.splitext(os.path.basename(image["file_name"]))[0],
                    "category_name": categories[one["category_id"]],
                    "label_text": one["label_text"],
                    "path": image["path"],
                    "image_width": image.get("width", ""),
                    "image_height": image.get("height", ""),
                    "split": one.get("split") or image.get("split") or "",
                } | {"x": x, "y": y, "w": width, "h": height}
                yield f"annotation {number}", {k: str(v).strip() for k, v in cells.items()}
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                yield Reject(f"ms_cxr:annotation {number}", "bad_row", repr(error))

    def _add(
        self, phrases: dict[tuple[str, str], _Phrase], place: str, cell: Mapping[str, str]
    ) -> Reject | None:
        """Adds a row to its phrase; a Reject when it belongs to none."""
        found, text = _PATH.fullmatch(cell["path"]), cell["label_text"]
        split = _SPLITS.get(cell["split"].lower(), "")
        detail = ""
        if not found or found[4] != cell["dicom_id"]:
            detail = f"path {cell['path']!r} is not that of image {cell['dicom_id']!r}"
        elif not text:
            detail = "no phrase"
        elif cell["split"] and not split:
            detail = f"split {cell['split']!r}, expected one of: {', '.join(_SPLITS)}"
        if detail or not found:
            return Reject(f"ms_cxr:{place}", "bad_row", detail)
        image, patient, study, dicom = found.groups()
        image = f"{os.path.splitext(image)[0]}.jpg"
        phrase = phrases.setdefault((dicom, text), _Phrase(image, patient, study, text, split))
        if phrase.split != split:
            detail = f"{place}: {split or 'none'}, other rows have {phrase.split or 'none'}"
            phrase.problem = "bad_split", detail
        try:
            corners = _corners(cell)
        except ValueError as error:
            phrase.problem = "bad_box", f"{place}: {error}"
            return None
        box = Box(corners, cell["category_name"], sentence=0)
        if box not in phrase.boxes:
            phrase.boxes.append(box)
        return None


def _corners(cell: Mapping[str, str]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a box; ValueError when it is empty or leaves the image."""
    x, y, width, height = (float(cell[name]) for name in ("x", "y", "w", "h"))
    limits = [float(cell[name]) if cell[name] else math.inf for name in _SIZES]
    right, bottom = x + width, y + height
    inside = right <= limits[0] + _SLACK and bottom <= limits[1] + _SLACK
    if not (x >= 0 and y >= 0 and width > 0 and height > 0 and inside and right + bottom < 1e9):
        raise ValueError(
            f"box x, y, w, h = {x:g}, {y:g}, {width:g}, {height:g} in an image of"
            f" {limits[0]:g} x {limits[1]:g}"
        )
    return x, y, right, bottom


def _load(path: str) -> Any:
    try:
        if (size := os.path.getsize(path)) > _MAX_JSON:
            raise InputError(f"{path}: {size} bytes; expected at most {_MAX_JSON}")
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read: {error}") from error
