"""Preparing a corpus: what goes in comes out, bytes depend on content alone, refusals are told."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from mmrl.data.image.images import Preprocess
from mmrl.data.image.masks import Mask
from mmrl.data.reading import listing, shards
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.sources import phantom
from mmrl.data.sources.prepared import Prepared
from mmrl.preparation import encode, inventory, job, source_options
from mmrl.preparation.storage import Storage
from mmrl.types import Box, DamageError, Entailment, Finding, InputError, Reject

LABELS = ("effusion", "nodule")


class Rich(listing.Listing):
    """Every field that a record can have; 3 studies, 5 images, one of which is cut short."""

    facts = Facts(
        title="Rich",
        url="https://example.org/rich",
        license="CC-BY-4.0",
        access="click",
        redistributable=True,
        version="2.1",
    )
    label_names = LABELS

    @classmethod
    def name(cls) -> str:
        return "rich"

    def scan(self):
        yield Draft(
            "a",
            patient="p1",
            study="s1",
            leakage_unit="g1",
            split="val",
            images=(
                ImageFile("wide.png", "PA", "metadata", (0.143, 0.2)),
                ImageFile("cut.png", "AP", "dicom"),
                ImageFile("deep.png", "LATERAL", "filename"),
            ),
            sections={"findings": "Kleiner Erguß.", "impression": " Effusion. "},
            labels=(1, -2),
            boxes=(
                Box((1.5, 2.0, 40.0, 30.0), "effusion", sentence=1, rater=2),
                Box((0.0, 0.0, 9.0, 9.0), "nodule", image=1),
                Box((0.0, 0.0, 30.0, 10.0), "nodule", image=2),
            ),
            findings=(Finding("effusion", "left", "lower", "small"), Finding("nodule")),
            sentences=(("findings", "Kleiner Erguß."), ("impression", "Effusion.")),
            masks=(Mask("effusion", 40, 80, (0, 40, 200, 5)), Mask("nodule", 40, 80, ())),
            aliases=("nih14:77",),
            prior_id="rich:z",
            time=86_400,
            attributes={"sex": "F", "age": "57"},
            language="de",
            license="CC0-1.0",
        )
        yield Draft(
            "b",
            split="train",
            images=(ImageFile("deep.png"),),
            sections={"caption": "Plain."},
            entailment=Entailment("It rains.", "It is wet.", "neutral"),
        )
        yield Draft("c", split="train", images=(ImageFile("cut.png"),), sections={"full": "No."})
        yield Reject("rich:row 9", "bad_row", "2 fields, expected 5")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "rich"
    root.mkdir()
    rng = np.random.default_rng(7)
    cv2.imwrite(str(root / "wide.png"), rng.integers(0, 256, (40, 80), np.uint8))
    cv2.imwrite(str(root / "deep.png"), rng.integers(0, 65536, (60, 30)).astype(np.uint16))
    cut = cv2.imencode(".png", rng.integers(0, 256, (50, 50), np.uint8))[1].tobytes()
    (root / "cut.png").write_bytes(cut[:-30])
    return root


@pytest.fixture(autouse=True)
def rich(monkeypatch: pytest.MonkeyPatch) -> None:
    find = inventory.build.find
    monkeypatch.setattr(
        inventory.build, "find", lambda kind, name: Rich if name == "rich" else find(kind, name)
    )


def prepare(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Prepares Rich in this process; "exists" lets the cut image through to the encoder."""
    storage = Storage(**{name: changes.pop(name) for name in ("size", "format") if name in changes})
    given = {"path": str(folder), "verify": "exists", **changes.pop("options", {})}
    settings = job.Settings(storage, **{"max_reject_fraction": 1.0, **changes})
    return job.prepare("rich", given, output, settings, say=lambda line: None)


def files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_every_field_of_a_record_comes_back(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "out", size=64, format="png")
    source = Rich(split="all", path=str(folder), verify="exists")
    original = source[0]
    made = Prepared(split="val", path=str(tmp_path / "out"))[0]
    changed = {"images", "boxes", "masks"}
    for field in dataclasses.fields(original):
        if field.name not in changed:
            assert getattr(made, field.name) == getattr(original, field.name), field.name
    wide, _, deep = original.images
    assert [dataclasses.replace(i, load=None, sha256="", phash=None) for i in made.images] == [
        dataclasses.replace(i, load=None) for i in (wide, deep)
    ]
    assert made.images[1].sha256 == shards.pixel_sha256(deep.load())
    assert made.images[0].spacing == (0.143, 0.2)
    # 80 x 40 is brought to 64 x 32; 30 x 60 stays. Boxes follow: 64 / 80 = 0.8.
    np.testing.assert_array_equal(
        made.images[0].load(), cv2.resize(wide.load(), (64, 32), interpolation=cv2.INTER_AREA)
    )
    np.testing.assert_array_equal(made.images[1].load(), deep.load())
    assert made.images[1].load().dtype == np.uint16
    scaled = tuple(0.8 * value for value in (1.5, 2.0, 40.0, 30.0))
    assert made.boxes[0].xyxy == pytest.approx(scaled)
    assert [dataclasses.replace(box, xyxy=()) for box in made.boxes] == [
        Box((), "effusion", sentence=1, rater=2),
        Box((), "nodule", image=1),  # of the third image, which is the second now
    ]
    assert made.boxes[1].xyxy == (0.0, 0.0, 30.0, 10.0)
    assert list(made.masks()) == ["effusion", "nodule"]
    assert made.masks()["effusion"].shape == (32, 64) and not made.masks()["nodule"].any()
    stored = shards.read_payload(str(tmp_path / "out" / "val-00000.array_record"), 0)
    assert stored["masks"] == (
        Mask("effusion", 40, 80, (0, 40, 200, 5)),
        Mask("nodule", 40, 80, ()),
    )
    second = Prepared(split="train", path=str(tmp_path / "out"))[0]
    assert second.entailment == Entailment("It rains.", "It is wet.", "neutral")
    assert (second.label_names, second.labels, second.boxes) == ((), (), ())
    assert (second.sections, second.leakage_unit_known) == ({"caption": "Plain."}, False)


def test_what_was_refused_is_listed_without_places(folder: Path, tmp_path: Path) -> None:
    manifest = prepare(folder, tmp_path / "out")
    listed = [
        Reject(**json.loads(line))
        for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    ]
    assert listed[0] == Reject("rich:row 9", "bad_row", "2 fields, expected 5")
    # Encoded split by split, train first.
    assert [(r.id, r.reason) for r in listed[1:]] == [
        ("rich:c", "unreadable_image"),
        ("rich:a#cut.png", "unreadable_image"),
    ]
    assert listed[1].detail.startswith("cut.png: truncated PNG")
    assert manifest["rejects"] == {"unreadable_image": 2, "bad_row": 1}
    assert manifest["counts"] == {
        "train": {"records": 1, "images": 1},
        "val": {"records": 1, "images": 2},
        "test": {"records": 0, "images": 0},
    }
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert Prepared(split="val", path=str(tmp_path / "out")).warnings == [
        "3 items were refused when the corpus was prepared"
    ]


def test_the_manifest_tells_what_was_made(folder: Path, tmp_path: Path) -> None:
    manifest = prepare(folder, tmp_path / "out", size=64)
    assert manifest["facts"]["title"] == "Rich" and manifest["facts"]["redistributable"]
    assert manifest["image"] == {"size": 64, "format": "jpeg", "quality": 95}
    assert manifest["label_names"] == list(LABELS)
    assert manifest["sections"] == ["caption", "findings", "impression"]
    assert manifest["options"] == {"verify": "exists"}
    assert set(manifest["files"]) == {
        "index.parquet",
        "rejects.jsonl",
        "train-00000.array_record",
        "val-00000.array_record",
    }
    for name, stated in manifest["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert stated["bytes"] == len(data)
        assert stated["sha256"] == hashlib.sha256(data).hexdigest()
    assert not (tmp_path / "out" / ".work").exists()
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    original = cv2.imread(str(folder / "deep.png"), cv2.IMREAD_UNCHANGED)
    of_deep = shards.pixel_sha256(original)
    assert [row["image_sha256"][-1] for row in index] == [of_deep, of_deep]
    assert index[0]["image_phash"][-1] == index[1]["image_phash"][-1] < 2**64
    assert [row["id"] for row in index] == ["rich:b", "rich:a"]


def test_jpeg_takes_all_of_16_bits_to_8() -> None:
    storage = Storage(size=16)
    ramp = np.array([[0, 257, 32768, 65535]], np.uint16)
    np.testing.assert_array_equal(storage.reduce(ramp), [[0, 1, 128, 255]])
    data = storage.encode(np.full((8, 8), 90, np.uint8))
    assert data[:2] == b"\xff\xd8" and data == storage.encode(np.full((8, 8), 90, np.uint8))


def test_png_at_the_size_of_training_trains_on_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (91, 57), np.uint8)
    direct = Preprocess(size=32)
    data = Storage(size=32, format="png")
    kept = cv2.imdecode(np.frombuffer(data.encode(data.reduce(image)), np.uint8), -1)
    assert kept.shape == (32, 20)
    np.testing.assert_array_equal(direct(kept), direct(image))


def test_small_images_are_not_enlarged() -> None:
    image = np.zeros((20, 30), np.uint8)
    assert Storage(size=256).reduce(image) is image
    assert Storage(size=16).reduce(np.zeros((1, 5000), np.uint8)).shape == (1, 16)


def test_masks_that_do_not_fit_their_image_are_refused(folder: Path) -> None:
    record = Rich(split="val", path=str(folder), verify="exists")[0]
    record = dataclasses.replace(record, masks=dict, images=record.images[:1])
    made = encode.encode_record(record, Storage())
    assert made.masks == () and made.rejects == ()
    record = dataclasses.replace(record, masks=_wrong_masks)
    made = encode.encode_record(record, Storage())
    assert made.masks == ()
    detail = "the mask of 'x' has 3 x 2 pixels, its image 80 x 40"
    assert made.rejects == (Reject("rich:a#masks", "unreadable_mask", detail),)


def _wrong_masks() -> dict[str, np.ndarray]:
    return {"x": np.ones((2, 3), bool)}


def test_an_altered_shard_is_found(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "out")
    shard = tmp_path / "out" / "val-00000.array_record"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    Prepared(split="val", path=str(tmp_path / "out"))  # of the stated size
    with pytest.raises(InputError, match=r"val-00000.array_record was altered: its sha256 differs"):
        Prepared(split="val", path=str(tmp_path / "out"), verify="sha256")
    shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"has 131,071 bytes; its manifest says 131,072"):
        Prepared(split="val", path=str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", ""])
def test_a_manifest_cannot_reach_outside(folder: Path, tmp_path: Path, name: str) -> None:
    manifest = prepare(folder, tmp_path / "out")
    (tmp_path / "outside").write_bytes(b"")
    manifest["files"][name] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest(), "records": 0}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="expected a file in its folder"):
        Prepared(split="val", path=str(tmp_path / "out"))


def test_an_index_cannot_reach_outside(folder: Path, tmp_path: Path) -> None:
    manifest = prepare(folder, tmp_path / "out")
    path = tmp_path / "out" / "index.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("shard")
    pq.write_table(table.set_column(at, "shard", [["../x", "../x"]]), path)
    stated = manifest["files"]["index.parquet"]
    stated["bytes"], stated["sha256"] = path.stat().st_size, shards.files.sha256(path)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"names '\.\./x', which the manifest does not list"):
        Prepared(split="val", path=str(tmp_path / "out"))


def test_a_damaged_index_is_named_before_it_is_read(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "out")
    path = tmp_path / "out" / "index.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(DamageError, match=r"index\.parquet was altered: its sha256 differs"):
        Prepared(split="val", path=str(tmp_path / "out"))


def test_too_many_refusals_stop_the_run(folder: Path, tmp_path: Path) -> None:
    # 4 found: one row refused when read, two records touched when encoded.
    with pytest.raises(InputError) as caught:
        prepare(folder, tmp_path / "out", max_reject_fraction=0.5)
    assert str(caught.value) == (
        "3 of 4 records of rich, or images of them, rejected (75.0 %): 2 unreadable_image"
        " (rich:c: cut.png: truncated PNG: its data stop after 2588 bytes, before IEND), 1 bad_row"
        " (rich:row 9: 2 fields, expected 5); --max-reject-fraction=0.5 allows 2; rejects.jsonl"
        " lists them: correct them, or allow more"
    )
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(folder, tmp_path / "out", max_reject_fraction=0.75)  # the same work, now allowed
    assert (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(InputError, match="1 of 4 records of rich"):
        prepare(folder, tmp_path / "early", max_reject_fraction=0.1)
    assert [path.name for path in (tmp_path / "early").iterdir()] == ["rejects.jsonl"]


def test_a_disk_without_space_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path
) -> None:
    settings = job.Settings(Storage(), max_reject_fraction=1.0)
    given = {"path": str(folder), "verify": "exists"}
    with pytest.raises(InputError, match=r"needs about 0\.00 GiB and its disk has 0\.00 GiB free"):
        job.prepare("rich", given, tmp_path / "out", settings, free=lambda folder: 1000)
    assert not (tmp_path / "out").exists()
    assert job.files.free_bytes(tmp_path / "no" / "such") > 0


def test_the_estimate_is_near_what_is_written() -> None:
    storage = Storage(size=32)
    found = inventory.take("phantom", {"length": 100, "render_size": 32})
    every = [record for part in found.parts.values() for record in part.records(0, len(part))]
    size = len(encode.encode_chunk(every, storage).to_bytes())
    assert len(every) == 100
    assert job.estimate(found, storage) == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("length=20", {"length": 20}),
        ("fractions=(0.5, 0.5, 0)", {"fractions": (0.5, 0.5, 0)}),
        ("fractions={'train': 1.0}", {"fractions": {"train": 1.0}}),
    ],
)
def test_options_are_of_the_type_that_the_source_takes(text: str, value: Any) -> None:
    assert source_options.parse("phantom", [text]) == value


def test_texts_stay_texts() -> None:
    given = ["split_salt=17", "id_column=none", "label_columns=['a', 'b']", "report_columns=text"]
    assert source_options.parse("table", given) == {
        "split_salt": "17",
        "id_column": None,
        "label_columns": ["a", "b"],
        "report_columns": "text",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["length"], "--option=length; expected --option=KEY=VALUE"),
        (["length=many"], "--option=length=many; expected a whole number"),
        (["length=1", "length=2"], "--option=length=... is given twice"),
        (
            ["size=1"],
            "unknown option of source phantom 'size'.*choices: fractions, lateral, length, priors",
        ),
        (["split=test"], "unknown option of source phantom 'split'"),
        (["fractions=half"], "--option=fractions=half; expected"),
    ],
)
def test_options_that_are_not_taken(given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        source_options.parse("phantom", given)


def test_a_split_may_lose_all_its_records(folder: Path, tmp_path: Path) -> None:
    for name in ("wide.png", "deep.png"):
        (folder / name).write_bytes((folder / "cut.png").read_bytes())
    with pytest.raises(InputError, match="no image could be read, so there is no record"):
        prepare(folder, tmp_path / "none")
    cv2.imwrite(str(folder / "wide.png"), np.ones((40, 80), np.uint8))
    manifest = prepare(folder, tmp_path / "out")
    assert manifest["counts"]["train"] == {"records": 0, "images": 0}
    assert manifest["counts"]["val"] == {"records": 1, "images": 1}
    assert [name for name in manifest["files"] if name.endswith("array_record")] == [
        "val-00000.array_record"
    ]
    assert len(Prepared(split="train", path=str(tmp_path / "out"))) == 0


def test_a_prepared_corpus_may_be_prepared_again(folder: Path, tmp_path: Path) -> None:
    """At a smaller size; what tells of the original images stays."""
    prepare(folder, tmp_path / "out", size=64, format="png")
    settings = job.Settings(Storage(size=32, format="png"))
    manifest = job.prepare("prepared", {"path": str(tmp_path / "out")}, tmp_path / "on", settings)
    assert manifest["facts"]["title"] == "Rich" and manifest["options"] == {}
    first = Prepared(split="val", path=str(tmp_path / "out"))[0]
    again = Prepared(split="val", path=str(tmp_path / "on"))[0]
    assert again.id == first.id and again.sections == first.sections
    assert [i.sha256 for i in again.images] == [i.sha256 for i in first.images]
    assert [i.phash for i in again.images] == [i.phash for i in first.images]
    assert again.images[0].load().shape == (16, 32)
    assert again.boxes[0].xyxy == pytest.approx([0.5 * x for x in first.boxes[0].xyxy])


def test_splits_and_order_are_those_of_the_source(tmp_path: Path) -> None:
    given = {"length": 40, "render_size": 32}
    job.prepare("phantom", given, tmp_path, job.Settings(Storage(size=32, format="png")))
    for split in ("train", "val", "test"):
        source = phantom.Phantom(split=split, **given)
        made = Prepared(split=split, path=str(tmp_path))
        assert [r.id for r in map(made.__getitem__, range(len(made)))] == [
            source[index].id for index in range(len(source))
        ]
        np.testing.assert_array_equal(made.image(0), source[0].images[0].load())
        assert tuple(made[0].boxes) == tuple(source[0].boxes)


def test_vectors_and_second_images_come_back(tmp_path: Path) -> None:
    """In all splits, also where the first record, or a whole shard, has no vector."""
    given = {"length": 40, "render_size": 32, "lateral": True, "vector": 6, "vector_missing": 0.4}
    settings = job.Settings(Storage(size=32, format="png"), shard_bytes=1, chunk_records=3)
    job.prepare("phantom", given, tmp_path / "out", settings)
    again = job.Settings(Storage(size=32, format="png"))
    job.prepare("prepared", {"path": str(tmp_path / "out")}, tmp_path / "again", again)
    held = []
    for split in ("train", "val", "test"):
        source = phantom.Phantom(split=split, **given)
        for folder in ("out", "again"):
            made = Prepared(split=split, path=str(tmp_path / folder))
            assert len(made) == len(source)
            for index, record in enumerate(made):
                assert record.vector == source[index].vector == made[index].vector
                assert [i.projection for i in record.images][1:] == ["LATERAL"]
            np.testing.assert_array_equal(made.image(0, 1), source.image(0, 1))
        held += [record.vector is not None for record in made]
    assert any(held) and not all(held)


def test_without_vectors_the_index_has_no_column_for_them(folder: Path, tmp_path: Path) -> None:
    prepare(folder, tmp_path / "out")
    assert "vector" not in pq.read_schema(tmp_path / "out" / "index.parquet").names
