"""Writes the synthetic files of corpora, and checks the properties that all sources share."""

import csv
import gzip
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrl.types import Record, Source
from tests import dicoms


def write_image(path: Path, pixels: np.ndarray | int = 7, size: tuple[int, int] = (6, 8)) -> None:
    """Grey, BGR or BGRA pixels, or one grey level of size height and width.

    A PNG or JPEG by its suffix; four channels are a PNG anyway, for JPEG has no opacity.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, int):
        pixels = np.full(size, pixels, np.uint8)
    suffix = ".png" if pixels.ndim == 3 and pixels.shape[2] == 4 else path.suffix
    path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, gzipped if its name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_lines(path, *(json.dumps(row) for row in rows))


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def write_dicom(path: Path, pixels: np.ndarray, **fields: Any) -> None:
    """u8[H, W], uncompressed, MONOCHROME2 unless a field says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicoms.image(np.ascontiguousarray(pixels, np.uint8), 8, **fields))


def every(corpus: Any) -> list[Any]:
    """All records of a source."""
    return [corpus[index] for index in range(len(corpus))]


def records_of(source: Source) -> dict[str, Record]:
    """Native id -> record."""
    return {source[at].id.partition(":")[2]: source[at] for at in range(len(source))}


def without_loaders(source: Source) -> list[tuple]:
    """The records without their loaders, which cannot be compared."""
    kept = []
    for at in range(len(source)):
        fields = dict(vars(source[at]))
        images = [(image.key, image.projection, image.spacing) for image in fields.pop("images")]
        fields.pop("masks")
        kept.append((images, sorted(fields.items(), key=lambda item: item[0])))
    return kept


def check_promises(kind: type, path: Path, **options: Any) -> None:
    """Unique ids, fixed order, whole leakage units, splits that add up, small pickles."""
    whole = kind(split="all", path=str(path), **options)
    assert len(whole) > 1
    ids = [whole[at].id for at in range(len(whole))]
    assert len(set(ids)) == len(ids)
    again = kind(split="all", path=str(path), **options)
    assert without_loaders(again) == without_loaders(whole)
    assert without_loaders(pickle.loads(pickle.dumps(whole))) == without_loaders(whole)
    split_of_unit: dict[str, str] = {}
    for at in range(len(whole)):
        record = whole[at]
        assert split_of_unit.setdefault(record.leakage_unit, record.split) == record.split
    for split in sorted(set(split_of_unit.values())):
        part = kind(split=split, path=str(path), **options)
        assert [part[at].id for at in range(len(part))] == [
            whole[at].id for at in range(len(whole)) if whole[at].split == split
        ]
