"""A tiny valid corpus of every source, for tests that damage it.

`CORPORA` maps the name of a source to a function that writes the corpus into an empty folder and
returns the options of the constructor; of these, `path` is relative to the folder, and `source`
names the source where the function does not. A new source is one more function here or beside.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus_files import write_csv, write_image, write_jsonl, write_lines

Options = dict[str, Any]
CORPORA: dict[str, Callable[[Path], Options]] = {}


def corpus(write: Callable[[Path], Options]) -> Callable[[Path], Options]:
    """Registers a function in CORPORA under its name, which is that of the source."""
    CORPORA[write.__name__] = write
    return write


@corpus
def table(folder: Path) -> Options:
    rows = [
        (f"images/{n}.{'png' if n % 2 else 'jpg'}", f"Clear {n}.", f"p{n}", "PA", n % 2)
        for n in range(4)
    ]
    for row in rows:
        write_image(folder / row[0])
    write_csv(folder / "pairs.csv", ("image", "report", "patient", "view", "effusion"), rows)
    columns = {
        "patient_column": "patient",
        "projection_column": "view",
        "label_columns": "effusion",
    }
    return {"path": "pairs.csv", **columns}


@corpus
def annotated_table(folder: Path) -> Options:
    """A table with all that may be said of an image; "source" says which source reads it."""
    rows = [(f"images/{n}.png", f"masks/{n}.png", "ab"[n % 2], "x|y", "F") for n in range(4)]
    for image, mask, *_ in rows:
        write_image(folder / image)
        write_image(folder / mask)
    write_csv(folder / "t.csv", ("image", "mask", "class", "labels", "sex"), rows)
    boxes = [(image, "box", n, 1, 2.5, 3) for n, (image, *_) in enumerate(rows)]
    write_csv(folder / "boxes.csv", ("image", "label", "x", "y", "w", "h"), boxes)
    return {
        "source": "table",
        "path": "t.csv",
        "boxes": "boxes.csv",
        "report_columns": (),
        "class_column": "class",
        "labels_column": "labels",
        "attribute_columns": "sex",
        "mask_column": "mask",
    }


@corpus
def roco(folder: Path) -> Options:
    for part, natives in {"train": (1, 2), "test": (3,)}.items():
        base = folder / "data" / part / "radiology"
        write_lines(base / "captions.txt", *(f"ROCO_{n}\t A mass, {n}." for n in natives))
        rows = [(f"ROCO_{n}", f"PMC{n}_a-g0{n}.jpg", "CC BY") for n in natives]
        write_csv(base / "licences.txt", ("ROCO_ID", "PMC_ID", "CC"), rows)
        write_lines(base / "cuis.txt", *(f"ROCO_{n}\t\tC00{n}" for n in natives))
        for n in natives:
            write_image(base / "images" / f"ROCO_{n}.jpg")
    return {"path": "."}


@corpus
def pmc_oa(folder: Path) -> Options:
    names = [f"PMC{n}_Fig{n}.jpg" for n in range(3)]
    for name in names:
        write_image(folder / "images" / name)
    rows = ({"image": name, "caption": f"{name}.", "alignment_score": 0.5} for name in names)
    write_jsonl(folder / "pmc_oa.jsonl", rows)
    write_csv(folder / "licenses.csv", ("PMCID", "License"), [("PMC1", "CC BY"), ("PMC2", "CC0")])
    return {"path": ".", "licenses": "licenses.csv"}


@corpus
def quilt1m(folder: Path) -> Options:
    names = [f"v{n}_image_0a-{n}.jpg" for n in range(3)]
    for name in names:
        write_image(folder / "images" / name, np.full((6, 8, 3), 90, np.uint8))
    header = ("", "caption", "image_path", "split", "pathology", "magnification", "not_histology")
    rows = [
        (n, f"Caption {n}.", names[n % 3], "train", "['Skin', 'Renal']", 1.0, 0) for n in range(4)
    ]
    write_csv(folder / "quilt_1M_lookup.csv", header, rows)
    return {"path": "."}
