"""Writes the files that synthetic corpora are made of."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrl.types import Record, Source


def every(source: Source) -> list[Record]:
    return [source[index] for index in range(len(source))]


def write_image(path: Path, pixels: np.ndarray | int = 7) -> None:
    """Writes grey, BGR or BGRA pixels, or 6 x 8 pixels of one level; PNG whatever the suffix
    when there are four channels, for JPEG has no opacity.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, int):
        pixels = np.full((6, 8), pixels, np.uint8)
    suffix = ".png" if pixels.ndim == 3 and pixels.shape[2] == 4 else path.suffix
    path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_jsonl(path: Path, *objects: Any) -> None:
    write_lines(path, *(json.dumps(value) for value in objects))
