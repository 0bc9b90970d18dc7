"""Writes the synthetic files that corpora are made of, and checks what all sources promise."""

import csv
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mmrl.types import Record, Source


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> None:
    """Uncompressed, 8 bits; `tags` by keyword, PhotometricInterpretation MONOCHROME2 at first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.PhotometricInterpretation = "CR", "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelData = np.ascontiguousarray(pixels, np.uint8).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def records_of(source: Source) -> dict[str, Record]:
    """Native id -> record."""
    return {source[at].id.partition(":")[2]: source[at] for at in range(len(source))}


def without_loaders(source: Source) -> list[tuple]:
    """What of the records can be compared with ==."""
    kept = []
    for at in range(len(source)):
        fields = dict(vars(source[at]))
        images = [(image.key, image.view, image.spacing) for image in fields.pop("images")]
        fields.pop("masks")
        kept.append((images, sorted(fields.items(), key=lambda item: item[0])))
    return kept


def check_promises(kind: type, path: Path, **options: Any) -> None:
    """Unique ids, fixed order, whole groups, splits that add up, small pickles that reload."""
    whole = kind(split="all", path=str(path), **options)
    assert len(whole) > 1
    ids = [whole[at].id for at in range(len(whole))]
    assert len(set(ids)) == len(ids)
    again = kind(split="all", path=str(path), **options)
    assert without_loaders(again) == without_loaders(whole)
    assert without_loaders(pickle.loads(pickle.dumps(whole))) == without_loaders(whole)
    split_of_group: dict[str, str] = {}
    for at in range(len(whole)):
        record = whole[at]
        assert split_of_group.setdefault(record.group_key, record.split) == record.split
    for split in sorted(set(split_of_group.values())):
        part = kind(split=split, path=str(path), **options)
        assert [part[at].id for at in range(len(part))] == [
            whole[at].id for at in range(len(whole)) if whole[at].split == split
        ]
