"""Small prepared corpora, written record by record, and a reader of pages."""

import hashlib
import html.parser
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from array_record.python import array_record_module

from mmrl.data.overlap import duplicates
from mmrl.data.reading import shards
from mmrl.files import sha256
from mmrl.preparation.audit import audit
from mmrl.types import Box, Record

NAMES = ("Mass", "Effusion")


def picture(seed: int, height: int = 96, width: int = 80) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 50 * smooth, 0, 255).astype(np.uint8)


def stored(key: str, pixels: np.ndarray, projection: str = "PA") -> shards.StoredImage:
    _, data = cv2.imencode(".png", pixels)
    digest, value = shards.pixel_sha256(pixels), duplicates.perceptual_hash(pixels)
    height, width = pixels.shape
    return shards.StoredImage(
        key,
        data.tobytes(),
        height,
        width,
        2 * height,
        2 * width,
        projection,
        "label",
        None,
        digest,
        value,
    )


def record(name: str, split: str = "train", patient: str = "", **others: Any) -> Record:
    """Sections are given as `findings`, `impression` and so on."""
    known = ("findings", "impression", "caption")
    sections = {key: others.pop(key) for key in known if key in others}
    patient = patient or f"patient {name}"
    study = others.pop("study", f"study {name}")
    return Record(f"toy:{name}", "toy", patient, study, patient, split, (), sections, **others)


def write(
    folder: Path, held: list[tuple[Record, list[shards.StoredImage]]], **manifest: Any
) -> str:
    """A prepared corpus of one shard."""
    folder.mkdir()
    writer = array_record_module.ArrayRecordWriter(str(folder / "a"), shards.WRITER_OPTIONS)
    rows = []
    for position, (one, pictures) in enumerate(held):
        writer.write(shards.pack_payload(one, pictures))
        rows.append(shards.index_row(one, pictures) | {"shard": "a", "position": position})
    writer.close()
    sections = list(dict.fromkeys(name for one, _ in held for name in one.sections))
    pq.write_table(shards.index_table(rows, sections), folder / shards.INDEX)
    content = {
        "schema_version": shards.SCHEMA_VERSION,
        "facts": {"title": "A toy corpus"},
        "label_names": list(NAMES),
        "rejects": {"unreadable_image": 2, "bad_row": 1},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
            for name in ("a", shards.INDEX)
        },
    }
    (folder / shards.MANIFEST).write_text(json.dumps(content | manifest), encoding="utf-8")
    return str(folder)


def tiny(folder: Path) -> str:
    """Six records, whose statistics the tests know."""
    first, second = picture(1), picture(2)
    smaller = cv2.resize(second, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    hostile = "A <script>alert(1)</script> mass & <b>more</b>."
    box = Box((20.0, 30.0, 100.0, 90.0), "Mass")
    return write(
        folder,
        [
            (
                record("1", patient="p", findings="No effusion.", impression="Normal XXXX chest.",
                       labels=(0, 0), license="CC0-1.0", redistributable=True),
                [stored("1", first)],
            ),
            (
                record("2", findings="no  effusion", impression="Normal.", labels=(0, -1)),
                [stored("2", first)],
            ),
            (record("3", study="study 2", findings="", impression="normal", labels=(-2, -2)), []),
            (
                record("4", "val", findings=hostile, labels=(1, -2), boxes=(box,)),
                [stored("4", second), stored("4b", picture(3), "UNKNOWN")],
            ),
            (
                record("5", "test", patient="p", findings="None", impression="", labels=(1, 1)),
                [stored("5", smaller)],
            ),
            (record("6", "test", findings="No effusion", impression="Normal. "), []),
        ],
    )  # fmt: skip


class Page(html.parser.HTMLParser):
    """Tags of a page, and text by article."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "article":
            self.cards.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "article" in self.open:
            self.cards[-1] += data


def audit_tiny(root: Path) -> tuple[str, dict[str, Any], Page]:
    """Audits `tiny` in an empty folder: the corpus, its numbers, its page; it stays as it was."""
    folder = tiny(root / "toy")

    def digests() -> dict[str, str]:
        files = sorted(Path(folder).iterdir())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    audit([folder], lengths=(8, 300), batch_sizes=(2, 3))
    assert digests() == before
    out = root / "toy-audit"
    numbers = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    return folder, numbers["corpora"]["toy"], Page(out / "audit.html")
