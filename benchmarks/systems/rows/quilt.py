"""Quilt-1M: the audit finds planted duplicates and leaks, and prompts tell tiles apart."""

import contextlib
import csv
import io
import json
import uuid
from pathlib import Path

import cv2
import numpy as np

from benchmarks.systems.check import UNTRAINED, Claim, Runs, value
from mmrl.data.sources.stained_tiles import StainedTiles
from mmrl.preparation import audit
from mmrl.preparation.job import Settings, prepare
from mmrl.preparation.storage import Storage

NUMBERS = (43,)
EXPRESSED = "the source `quilt1m`, its audit of duplicates and leaks, and training with captions"
DIFFERS = "trains from random weights on stained tiles; captions are read as they are released"
RUNS = {"trained": ("quilt",), "untrained": ("quilt", *UNTRAINED)}

TILES, EXACT, SMALLER, SPOKEN = 80, 7, 5, 9
"""Tiles of a corpus, and how many of them are planted again: in equal pixels in a video of the
other split, at half the size, and with another caption for the same image."""


def values(runs: Runs) -> dict[str, float]:
    """What the audit finds of one seed, and zero-shot AUROC."""
    _write(runs.scratch / "quilt", runs.seed)
    settings = Settings(Storage(size=128, format="png"), workers=0)
    with contextlib.redirect_stdout(io.StringIO()):
        prepare("quilt1m", {"path": str(runs.scratch / "quilt")}, runs.scratch / "out", settings)
        audit.audit([str(runs.scratch / "out")])
    found = json.loads((runs.scratch / "out-audit" / audit.NUMBERS).read_text(encoding="utf-8"))
    found = found["corpora"]["out"]
    images = found["repeats"]["images"]
    crossing = found["crossing"]["train/val"]
    auroc = "tasks/auroc"
    return {
        # Images with several captions are records of their own with equal pixels.
        "exact": images["exact"]["sets"] / (EXACT + SPOKEN),
        "near": images["near"]["same_picture_pairs"] / SMALLER,
        "leaks": crossing["images"]["records"] / EXACT,
        "units": float(crossing["leakage_units"]["records"]),
        "AUROC": value(runs["trained"], "zero_shot", auroc),
        "images permuted": value(runs["trained"], "zero_shot", f"{auroc}_images_permuted"),
        "untrained": value(runs["untrained"], "zero_shot", auroc),
        "chance": 0.5,
    }


def _write(folder: Path, seed: int) -> None:
    """A corpus in the layout of Quilt-1M: videos of eight tiles, and planted repetitions."""
    tiles = StainedTiles(
        split="train", length=TILES, seed=seed, render_size=128, fractions=(1.0, 0.0, 0.0)
    )
    (folder / "images").mkdir(parents=True)
    rows: list[tuple[str, str, str]] = []

    def add(video: str, pixels: np.ndarray, caption: str, split: str) -> str:
        name = f"{video}_image_{uuid.UUID(int=len(rows))}.png"
        cv2.imwrite(str(folder / "images" / name), pixels[..., ::-1])
        rows.append((name, caption, split))
        return name

    names = []
    for number in range(TILES):
        split = "val" if number // 8 % 5 == 4 else "train"
        caption = f"Tile {number}: {tiles[number].sections['findings']}"
        names.append(add(f"video{number // 8}", tiles.image(number), caption, split))
    for number in range(EXACT):  # of a training video, again in a video of validation
        add("copied", tiles.image(number), f"Seen again, copy {number}.", "val")
    for number in range(8, 8 + SMALLER):
        small = cv2.resize(tiles.image(number), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        add("small", small, f"Seen in the distance, copy {number}.", "train")
    for number in range(16, 16 + SPOKEN):
        rows.append((names[number], f"What is said of tile {number} later.", rows[number][2]))
    with (folder / "quilt_1M_lookup.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image_path", "caption", "split"))
        writer.writerows(rows)


CLAIMS = (
    Claim("planted equal images, share found, without others", "exact", least=1, most=1),
    Claim("planted smaller images, share found, without others", "near", least=1, most=1),
    Claim("planted leaks of images into validation, share found", "leaks", least=1, most=1),
    Claim("videos in two splits", "units", most=0),
    Claim("zero-shot AUROC", "AUROC", beside=("images permuted", "untrained", "chance")),
)
