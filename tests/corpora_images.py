"""A table of images of every kind: palettes, single bits, TIFF, WebP, DICOM without a suffix."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openjpeg
from pydicom import uid

from tests import dicoms
from tests.corpora import Options, corpus
from tests.corpus_files import write_csv
from tests.damage_binary import tiff

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
WIDE = GREY.astype(np.uint16) * 257
RAMP = dicoms.ramp(8)
ENTRIES = np.arange(256) * 255 % 65536


def palette(**fields: Any) -> bytes:
    tables = dicoms.palette(np.stack([ENTRIES, ENTRIES // 2, ENTRIES // 3]), 16)
    return dicoms.image(GREY, 8, PhotometricInterpretation="PALETTE COLOR", **tables, **fields)


def segmented() -> bytes:
    segments = np.array([0, 2, 9, 70, 1, 100, 60000, 2, 2, 0, 0, 1, 52, 5], "<u2").tobytes()
    fields = {
        f"Segmented{colour}PaletteColorLookupTableData": segments for colour in dicoms.COLOURS
    }
    empty = {f"{colour}PaletteColorLookupTableData": b"" for colour in dicoms.COLOURS}
    tables = dicoms.palette(np.zeros((3, 256), int), 16) | empty | fields
    return dicoms.image(GREY, 8, PhotometricInterpretation="PALETTE COLOR", **tables)


def packed() -> bytes:
    bits = np.packbits(GREY > 99, bitorder="little").tobytes()
    return dicoms.image(GREY // 255, 1, BitsAllocated=1, PixelData=bits)


def coded(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


COLOUR = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
FILES = {
    "palette.dcm": palette(),
    "segmented.dcm": segmented(),
    "packed.dcm": packed(),
    "IM000001": palette(WindowCenter="", VOILUTSequence=[]),
    "j2k.dcm": dicoms.compressed(
        dicoms.dataset(RAMP, 8), uid.JPEG2000Lossless, openjpeg.encode(RAMP), b"\xff"
    ),
    "grey.tif": tiff(GREY),
    "wide.tif": coded(".tiff", WIDE),
    "colours.tif": tiff(GREY // 16, ">", t258=8, t262=3, t320=list(range(0, 65280, 85))),
    "planes.tif": tiff(COLOUR),
    "bits.tif": tiff(np.packbits(GREY > 99, axis=1), t256=8, t258=1),
    "lossy.webp": coded(".webp", COLOUR, cv2.IMWRITE_WEBP_QUALITY, 80),
    "lossless.webp": coded(".webp", np.dstack([COLOUR, GREY]), cv2.IMWRITE_WEBP_QUALITY, 101),
    "deep.png": coded(".png", WIDE),
}


@corpus
def image_table(folder: Path) -> Options:
    """Images of every kind; "source" says which source reads them."""
    (folder / "images").mkdir()
    for name, data in FILES.items():
        (folder / "images" / name).write_bytes(data)
    rows = [(f"images/{name}", f"Clear {name}.", name) for name in FILES]
    write_csv(folder / "t.csv", ("image", "report", "patient"), rows)
    return {"source": "table", "path": "t.csv", "patient_column": "patient"}
