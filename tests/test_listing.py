"""What all corpora as distributed have in common."""

import pickle

import cv2
import numpy as np
import pytest

from mmrl.data.image.masks import Mask, decode_mask, encode_mask
from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.types import Box, Entailment, InputError, Reject
from tests import dicoms


class Example(Listing):
    facts = Facts(
        title="Example",
        url="https://example.org",
        license="CC0-1.0",
        version="1",
        expected={"records": 5, "images": 4, "records/test": 2},
    )
    label_names = ("a", "b")

    def scan(self):
        yield Draft(
            "r1",
            patient="p1",
            split="train",
            images=(ImageFile("x.png", "PA"), ImageFile("gone.png"), ImageFile("y.png", "LATERAL")),
            sections={"findings": "Clear."},
            labels=(1, -1),
            boxes=(Box((0, 0, 1, 1), "a"), Box((0, 0, 2, 2), "b", image=2)),
            masks=(Mask("a", 3, 4, (0, 2)),),
            entailment=Entailment("p", "h", "neutral"),
            time=0,
            attributes={"sex": "F"},
        )
        yield Draft("r2", patient="p1", split="test", images=(ImageFile("cut.png"),))
        yield Draft("r3", patient="p2", split="test", images=(ImageFile("../out.png"),))
        yield Draft("r1", patient="p9")
        yield Reject("test_listing:row 7", "bad_row", "3 fields, expected 4")
        yield Draft("r4", patient="p3", images=(ImageFile("gone.png"),), sections={"full": "Text."})


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    for name in ("x.png", "y.png", "cut.png"):
        cv2.imwrite(str(root / name), np.arange(64, dtype=np.uint8).reshape(8, 8))
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:-4])
    cv2.imwrite(str(tmp_path / "out.png"), np.zeros((2, 2), np.uint8))
    return str(root)


def test_records_keep_what_was_drafted(folder):
    corpus = pickle.loads(pickle.dumps(Example(split="all", path=folder)))
    (record,) = [corpus[index] for index in range(len(corpus))]
    assert record.id == "test_listing:r1"
    assert [image.key for image in record.images] == ["x.png", "y.png"]
    assert record.images[0].load()[0, 1] == 1
    assert (record.labels, record.time, record.attributes) == ((1, -1), 0, {"sex": "F"})
    assert [(box.label, box.image) for box in record.boxes] == [("a", 0), ("b", 1)]
    assert record.masks()["a"].sum() == 2
    assert record.entailment == Entailment("p", "h", "neutral")
    assert (record.split, record.split_official, record.license) == ("train", "train", "CC0-1.0")


def test_what_cannot_be_used_is_listed_with_its_reason(folder):
    corpus = Example(split="all", path=folder)
    assert {(reject.id.partition(":")[2], reject.reason) for reject in corpus.rejects} == {
        ("row 7", "bad_row"),
        ("r1", "duplicate_id"),
        ("r1#gone.png", "missing_image"),
        ("r2", "unreadable_image"),
        ("r3", "unsafe_path"),
        ("r4", "missing_image"),
    }
    assert corpus.total == 1 + 5  # an image that is refused while its record stays is no record
    assert corpus.missing_images == 2


def test_ids_may_hold_the_mark_of_parts(folder):
    class Marked(Example):
        def scan(self):
            yield Draft("r#1", images=(ImageFile("gone.png"),))
            yield Reject("test_listing:r2#boxes", "bad_box", "no area")

    corpus = Marked(split="all", path=folder)
    assert (len(corpus), corpus.total, len(corpus.rejects)) == (0, 1, 2)


def test_text_is_kept_without_images_when_allowed(folder):
    corpus = Example(split="all", path=folder, allow_missing_images=True)
    texts = {corpus[index].id: corpus[index].sections for index in range(len(corpus))}
    assert texts["test_listing:r4"] == {"full": "Text."}
    assert [r.reason for r in corpus.rejects if r.id.endswith("r2")] == ["unreadable_image"]


def test_counts_and_crossing_groups_are_told(folder):
    corpus = Example(split="all", path=folder)
    assert any("1 records found, 5 in the published" in line for line in corpus.warnings)
    assert any(
        "1 leakage units (patients or articles) into more than one" in w for w in corpus.warnings
    )
    whole = [Example(split=s, path=folder, official_split=False) for s in ("train", "val", "test")]
    assert sum(len(part) for part in whole) == 1


def test_a_split_holds_its_records_only(folder):
    assert len(Example(split="train", path=folder)) == 1
    with pytest.raises(InputError, match="expected one of: train, val, test, all"):
        Example(split="dev", path=folder)
    with pytest.raises(InputError, match="not a folder"):
        Example(split="train", path=folder + "/nothing")


def test_masks_are_runs_down_the_columns():
    pixels = np.array([[1, 0, 1], [1, 1, 0]], bool)
    mask = encode_mask("a", pixels)
    assert mask.runs == (0, 2, 3, 2)
    np.testing.assert_array_equal(decode_mask(mask), pixels)
    for runs in [(0, 7), (2, 1, 0, 1), (-1, 2), (0, 0), (0, 1, 2)]:
        with pytest.raises(InputError):
            decode_mask(Mask("a", 2, 3, runs))


class Halved(Listing):
    facts = Facts(
        title="Halved", url="https://example.org", license="", expected={"records/train": 60}
    )

    def scan(self):
        for index in range(80):
            yield Draft(
                f"r{index}", patient=f"p{index // 2}", split="test" if index < 20 else "train"
            )


def test_val_can_be_held_out_of_an_official_train(tmp_path):
    parts = {
        split: Halved(split=split, path=str(tmp_path), val_fraction=0.3)
        for split in ("train", "val", "test")
    }
    patients = {split: {record.patient_id for record in part} for split, part in parts.items()}
    assert len(parts["test"]) == 20 and len(parts["train"]) + len(parts["val"]) == 60
    assert 4 <= len(patients["val"]) <= 14 and not patients["train"] & patients["val"]
    assert {record.split_official for record in parts["val"]} == {"train"}
    assert all(not part.warnings for part in parts.values())  # parts are no wrong count
    whole = Halved(split="all", path=str(tmp_path), val_fraction=0.3)
    assert sum(record.split == "val" for record in whole) == len(parts["val"])
    with pytest.raises(InputError, match=r"val_fraction is 1; expected at least 0 and below 1"):
        Halved(split="all", path=str(tmp_path), val_fraction=1)


class Undivided(Listing):
    facts = Facts(title="", url="", license="", expected={"records": 9, "records/train": 60})

    def scan(self):
        yield from (Draft(f"r{index}") for index in range(9))


def test_official_counts_are_not_asked_of_splits_by_hash(tmp_path):
    assert Undivided(split="train", path=str(tmp_path)).warnings == []
    assert Undivided(split="all", path=str(tmp_path)).warnings == []


class OneDicom(Listing):
    facts = Facts(title="", url="", license="")

    def scan(self):
        yield Draft("r", images=(ImageFile("r.dcm"),))


@pytest.mark.parametrize("verify", ["header", "decode"])
def test_burned_in_text_is_accepted_only_where_the_user_says_so(tmp_path, verify):
    pixels = np.full((4, 4), 9, np.uint8)
    (tmp_path / "r.dcm").write_bytes(dicoms.image(pixels, 8, BurnedInAnnotation="YES"))
    refused = OneDicom(split="all", path=str(tmp_path), verify=verify)
    assert len(refused) == 0 and len(refused.rejects) == 1
    accepted = OneDicom(split="all", path=str(tmp_path), verify=verify, dicom_burned_in=True)
    np.testing.assert_array_equal(accepted[0].images[0].load(), pixels)


class Headed(Listing):
    facts = Facts(title="", url="", license="")

    def scan(self):
        yield Draft("r", images=(ImageFile("r.dcm"), ImageFile("l.dcm", "AP", "metadata")))
        yield Draft("s", images=(ImageFile("s.dcm"),), attributes={"age": "7"})
        yield Draft("x", images=(ImageFile("x.png"),))
        yield Draft("broken", images=(ImageFile("broken.dcm"),))


def test_headers_of_dicom_tell_what_no_table_did(tmp_path):
    pixels = np.full((4, 4), 9, np.uint8)
    fields = {"ViewPosition": "PA", "PatientSex": "F", "PatientAge": "155Y", "PixelSpacing": [1, 1]}
    (tmp_path / "r.dcm").write_bytes(dicoms.image(pixels, 8, **fields))
    (tmp_path / "l.dcm").write_bytes(dicoms.image(pixels, 8, ViewPosition="LL"))
    fields = {"ViewPosition": "", "PatientAge": "058Y", "PatientSex": "M"}
    (tmp_path / "s.dcm").write_bytes(dicoms.image(pixels, 8, **fields))
    cv2.imwrite(str(tmp_path / "x.png"), pixels)
    (tmp_path / "broken.dcm").write_bytes(b"no header")
    options = {"split": "all", "path": str(tmp_path), "verify": "exists"}
    first, second, other, broken = Headed(**options, dicom_headers=True)
    assert [(image.projection, image.projection_source) for image in first.images] == [
        *(("PA", "dicom"), ("AP", "metadata"))
    ]
    assert first.attributes == {"sex": "F"} and first.images[0].spacing is None
    assert (
        second.attributes == {"age": "7", "sex": "M"} and second.images[0].projection == "UNKNOWN"
    )
    assert other.attributes == broken.attributes == {}
    source = Headed(**options, dicom_headers=True)
    assert source.warnings == ["test_listing: the headers of 1 images cannot be read"]
    assert Headed(**options)[0].images[0].projection == "UNKNOWN"  # only on request
