"""CheXpert: chest radiographs of Stanford with labels and without reports.

`path` is CheXpert-v1.0-small or CheXpert-v1.0, or its parent folder. It holds `train.csv`,
`valid.csv` and images such as `train/patient00042/study1/view1_frontal.jpg`. The labels of the 500
test studies were published later, as `test.csv` or `test_labels.csv` with fewer columns; they are
read if they exist.

Licence: Stanford University Dataset Research Use Agreement, which must be clicked; redistribution
is not permitted. Paper: Irvin et al., AAAI 2019, arXiv:1901.07031. Official split: train, valid
(val) and test, by patient.

There is one record per image, since labels, projection and the 5x200 protocol refer to images.
Images of a study share `study_id`. There is no text: the corpus serves zero-shot classification and
probing. Also handled:
  * Labels are 1, 0, -1 (uncertain) and -2 (blank). They are found by name, since some files swap
    Lung Lesion and Lung Opacity.
  * Paths begin with CheXpert-v1.0-small/, CheXpert-v1.0/ or neither; they are read relative to the
    folder of their table.
  * The large images are distributed as `CheXpert-v1.0 batch 1 (validate & csv)/` and, with the
    patients of the training set, `CheXpert-v1.0 batch 2 (train 1)/` to 4. These folders may remain
    side by side.
  * A few frontal images have LL or RL where AP or PA should be: they are FRONTAL.
  * Age 0 (three images) and sex Unknown (one image) are not among the attributes.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from mmrl.data.reading.chexpert_labels import LABELS, read_labels, select_per_class
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.types import InputError, Reject

_BATCH = "CheXpert-v1.0 batch {}"  # as the large images are downloaded
_TOPS = ("", "CheXpert-v1.0-small", "CheXpert-v1.0", _BATCH.format("1 (validate & csv)"))
_TABLES = {"train": ("train.csv",), "val": ("valid.csv",), "test": ("test.csv", "test_labels.csv")}
_OPTIONAL = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
_PATH = re.compile(
    r"(?:CheXpert[^/]*/)?((?:train|valid|test)/((patient\d+)/study\d+)/(view\d+_(\w+)\.\w+))"
)
_SEXES = {"Female": "F", "Male": "M"}


class Chexpert(Listing):
    """Records of CheXpert, one per image; a Source.

    Args:
      five_by: 200 makes the 5x200 test set of GLoRIA (Huang et al. 2021): for each of five
        conditions, 200 frontal training images that show only that condition are split test. They
        are chosen by a hash of their ids with `split_salt`, see
        `mmrl.data.reading.chexpert_labels.select_per_class`. Other images of their patients, and
        the official test images, are left out; a warning states their number. 0 uses the official
        split.
      others: see `Listing`.

    Attributes:
      rejects: reasons are those of `Listing`, bad_row (a path that is not of the corpus) and
        bad_label.

    Raises:
      InputError: no train.csv or valid.csv, a missing column, too few images for `five_by`.
    """

    facts = Facts(
        title="CheXpert",
        url="https://stanfordmlgroup.github.io/competitions/chexpert/",
        license="Stanford University Dataset Research Use Agreement",
        access="click",
        version="1.0",
        expected={
            "records/train": 223_414,
            "patients/train": 64_540,
            "records/val": 234,
            "images/train": 223_414,
            "images/val": 234,
        },
    )
    label_names = LABELS

    def __init__(self, *, five_by: int = 0, **others: Any) -> None:
        if five_by < 0 or (five_by and not others.get("official_split", True)):
            raise InputError(
                f"chexpert: five_by={five_by} with official_split="
                f"{others.get('official_split', True)}; expected 0, or a number of images per class"
                " and official_split=True"
            )
        self._five_by = five_by
        super().__init__(**others)

    def scan(self) -> Iterator[Draft | Reject]:
        """Yields the images in the order of the tables: train, valid, test."""
        drafts: list[Draft] = []
        tables = self._tables()
        for split, table in tables:
            for item in self._read(split, table):
                if isinstance(item, Reject):
                    yield item
                elif self._five_by:
                    drafts.append(item)
                else:
                    yield item
        if self._five_by:
            yield from self._five_by_count(drafts)

    def _tables(self) -> list[tuple[str, str]]:
        """(split, table) of the tables that exist."""
        tables = []
        for split, names in _TABLES.items():
            candidates = [os.path.join(top, name) for top in _TOPS for name in names]
            candidates += [f"{name}.gz" for name in candidates]
            there = [c for c in candidates if os.path.isfile(os.path.join(self.path, c))]
            tables += [(split, name) for name in there[:1]]
        if not {split for split, _ in tables} & {"train", "val"}:
            self.find("train.csv", "valid.csv")  # raises
        return tables

    def _read(self, split: str, table: str) -> Iterator[Draft | Reject]:
        folder = os.path.dirname(table)
        batches = self._batches() if split == "train" else {}
        for row in self.rows(table, ("Path", *LABELS), _OPTIONAL):
            if isinstance(row, Reject):
                yield row
                continue
            number, cell = row
            found = _PATH.fullmatch(cell["Path"])
            if not found:
                place = f"chexpert:{os.path.basename(table)} row {number}"
                yield Reject(place, "bad_row", f"path {cell['Path']!r} is not of the corpus")
                continue
            relative, study, patient, name, side = found.groups()
            view = os.path.splitext(name)[0]
            try:
                labels = read_labels(cell)
            except ValueError as error:
                yield Reject(f"chexpert:{study}/{view}", "bad_label", f"row {number}: {error}")
                continue
            age = re.sub(r"\.0$", "", cell["Age"])
            attributes = {"sex": _SEXES.get(cell["Sex"], ""), "age": "" if age == "0" else age}
            where = os.path.join(folder, relative)
            if patient in batches:
                where = os.path.join(batches[patient], study, name)
            image = ImageFile(where, *_projection(cell, side))
            yield Draft(
                f"{study}/{view}",
                patient=patient,
                study=study,
                split=split,
                images=(image,),
                labels=labels,
                attributes={name: text for name, text in attributes.items() if text},
            )

    def _batches(self) -> dict[str, str]:
        """Patient -> folder, where the training images are in several folders."""
        found: dict[str, str] = {}
        for name in sorted(os.listdir(self.path)):
            if re.fullmatch(re.escape(_BATCH.format("")) + r"\d \(train \d\)", name):
                for patient in sorted(os.listdir(os.path.join(self.path, name))):
                    found.setdefault(patient, name)
        return found

    def _five_by_count(self, drafts: list[Draft]) -> Iterator[Draft]:
        """Moves the selection to test, and removes all other images of its patients."""
        frontal = [
            (draft.id, draft.labels)
            for draft in drafts
            if draft.split == "train" and draft.images[0].projection in ("AP", "PA", "FRONTAL")
        ]
        chosen = select_per_class(frontal, self._five_by, salt=self._salt)
        patients = {draft.patient for draft in drafts if draft.id in chosen}
        left_out = 0
        for draft in drafts:
            if draft.id in chosen:
                yield dataclasses.replace(draft, split="test")
            elif draft.patient in patients or draft.split == "test":
                left_out += 1
            else:
                yield draft
        self.warnings.append(
            f"chexpert: {left_out:,} images left out: others of the {len(patients):,} patients of"
            f" the 5x{self._five_by} test set, and the official test set"
        )
        expected = {name: n for name, n in self.facts.expected.items() if name.endswith("/val")}
        self.facts = dataclasses.replace(self.facts, expected=expected)


def _projection(cell: dict[str, str], side: str) -> tuple[str, str]:
    """The projection and its source: the columns or, if they are blank, the name of the file."""
    stated, position = cell["Frontal/Lateral"].upper(), cell["AP/PA"].upper()
    if stated == "FRONTAL" and position in ("AP", "PA"):
        return position, "metadata"
    if stated in ("FRONTAL", "LATERAL"):
        return stated, "metadata"
    if side.upper() in ("FRONTAL", "LATERAL"):
        return side.upper(), "filename"
    return "UNKNOWN", ""
