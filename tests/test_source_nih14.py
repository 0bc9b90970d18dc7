"""NIH ChestX-ray14 as it is distributed, on synthetic files."""

from pathlib import Path

import numpy as np
import pytest

from mmrl.data.sources.nih14 import Nih14
from mmrl.types import InputError
from tests.corpus_files import check_promises, records_of, write_csv, write_image

OLD_HEADER = [
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
    *("Patient Gender", "View Position", "OriginalImage[Width", "Height]"),
    *("OriginalImagePixelSpacing[x", "y]", ""),
]
NEW_HEADER = [name.replace("Gender", "Sex") for name in OLD_HEADER[:-1]]
# 2048 pixels scaled to 1024: twice the spacing across, and 1.5 times down.
SIZE = [2048, 1536, 0.143, 0.1]
ROWS = [
    ["00000042_000.png", "Cardiomegaly|Effusion", 0, 42, "058Y", "M", "PA", *SIZE],
    ["00000042_001.png", "No Finding", 1, 42, "059Y", "M", "AP", *SIZE],
    ["00000007_000.png", "Infiltration|Pleural_Thickening", 0, 7, "013M", "F", "PA", *SIZE],
    ["00000009_000.png", "Hernia", 0, 9, "414", "F", "", "", "", "", ""],
    ["00000010_000.png", "Fracture", 0, 10, "30", "F", "PA", *SIZE],
    ["00000011_000.png", "No Finding|Mass", 0, 11, "30", "F", "PA", *SIZE],
    ["00000012_000.png", "Mass", 0, "x", "30", "F", "PA", *SIZE],
]
BOXES = [
    ["00000042_000.png", "Cardiomegaly", 225.5, 547.0, 86.5, 79.25],
    ["00000007_000.png", "Infiltrate", 0, 900, 10, 124.5],
    ["00000007_000.png", "Infiltrate", 0, 900, 10, 126],
    ["00000007_000.png", "Mass", 1, 1, 0, 5],
    ["00000007_000.png", "Mass", "a", 1, 2, 5],
    ["00000099_000.png", "Mass", 1, 1, 2, 2],
]


def write_corpus(root: Path, *, old: bool = False) -> Path:
    header = OLD_HEADER if old else NEW_HEADER
    name = "Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"
    write_csv(root / name, header, [row + [""] * old for row in ROWS])
    box_header = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""]
    write_csv(root / "BBox_List_2017.csv", box_header, [[*row, "", "", ""] for row in BOXES])
    (root / "train_val_list.txt").write_text("00000042_000.png\n00000042_001.png\n")
    (root / "test_list.txt").write_text("00000007_000.png\n00000009_000.png\n")
    level = np.full((4, 4), 9, np.uint8)
    write_image(root / "images_001/images/00000042_000.png", level)
    write_image(root / "images_001/images/00000042_001.png", level)
    rgba = np.dstack([level, level, level, np.full((4, 4), 255, np.uint8)])
    write_image(root / "images_012/images/00000007_000.png", rgba)
    write_image(root / "images/00000009_000.png", level)
    return root


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_both_releases_give_the_same_values(tmp_path, old):
    source = Nih14(split="all", path=str(write_corpus(tmp_path, old=old)), val_fraction=0)
    records = records_of(source)
    assert list(records) == [row[0] for row in ROWS[:4]]
    first = records["00000042_000.png"]
    stated = {name for name, value in zip(first.label_names, first.labels, strict=True) if value}
    assert stated == {"Cardiomegaly", "Effusion"} and set(first.labels) == {0, 1}
    assert first.attributes == {"age": "58", "sex": "M", "follow_up": "0"}
    assert (first.patient_id, first.leakage_unit, first.leakage_unit_known) == ("42", "42", True)
    assert first.images[0].key == "images_001/images/00000042_000.png"
    assert (first.images[0].projection, first.images[0].projection_source) == ("PA", "metadata")
    assert first.images[0].spacing == pytest.approx((0.15, 0.286))
    assert records["00000042_001.png"].labels == (0,) * 14
    assert records["00000042_001.png"].leakage_unit == "42"
    other = records["00000007_000.png"]
    assert other.labels[other.label_names.index("Infiltration")] == 1
    assert other.labels[other.label_names.index("Pleural Thickening")] == 1
    assert other.attributes["age"] == "1"
    last = records["00000009_000.png"]
    assert last.attributes["age"] == "414"
    assert (last.images[0].projection, last.images[0].spacing) == ("UNKNOWN", None)
    assert last.images[0].key == "images/00000009_000.png"


def test_boxes_are_corners_and_take_the_names_of_labels(corpus):
    records = records_of(Nih14(split="all", path=str(corpus)))
    (box,) = records["00000042_000.png"].boxes
    assert (box.xyxy, box.label) == ((225.5, 547.0, 312.0, 626.25), "Cardiomegaly")
    (cut,) = records["00000007_000.png"].boxes
    assert (cut.xyxy, cut.label) == ((0, 900, 10, 1024), "Infiltration")


def test_what_is_wrong_is_listed(corpus):
    source = Nih14(split="all", path=str(corpus))
    found = sorted((reject.id.removeprefix("nih14:"), reject.reason) for reject in source.rejects)
    assert found == [
        ("00000007_000.png#BBox_List_2017.csv row 3", "bad_box"),
        ("00000007_000.png#BBox_List_2017.csv row 4", "bad_box"),
        ("00000007_000.png#BBox_List_2017.csv row 5", "bad_box"),
        ("00000010_000.png", "bad_label"),
        ("00000011_000.png", "bad_label"),
        ("00000012_000.png", "bad_row"),
        ("00000099_000.png#boxes", "unknown_image"),
    ]
    assert source.total == 7  # boxes are no records


def test_rgba_is_read_to_one_channel(corpus):
    pixels = records_of(Nih14(split="all", path=str(corpus)))["00000007_000.png"].images[0].load()
    assert pixels.shape == (4, 4) and pixels.dtype == np.uint8 and (pixels == 9).all()


def test_official_lists_divide(corpus):
    test = Nih14(split="test", path=str(corpus))
    assert list(records_of(test)) == ["00000007_000.png", "00000009_000.png"]
    assert any("2 records/test found, 25,596 in the published" in line for line in test.warnings)
    train = Nih14(split="train", path=str(corpus), val_fraction=0)
    assert {record.split_official for record in records_of(train).values()} == {"train"}
    check_promises(Nih14, corpus)
    assert len(Nih14(split="val", path=str(corpus), val_fraction=0)) == 0
    # The patient held out takes both images along.
    held = Nih14(split="val", path=str(corpus), val_fraction=0.999)
    assert list(records_of(held)) == ["00000042_000.png", "00000042_001.png"]


def test_lists_that_contradict_are_refused_and_their_lack_is_told(corpus):
    (corpus / "test_list.txt").write_text("00000042_000.png\n")
    with pytest.raises(InputError, match=r"'00000042_000.png' is in both"):
        Nih14(split="all", path=str(corpus))
    (corpus / "test_list.txt").write_text("00000007_000.png\n")
    source = Nih14(split="all", path=str(corpus))
    assert "nih14: 1 images are in neither split list" in source.warnings[0]
    (corpus / "test_list.txt").unlink()
    with pytest.raises(InputError, match=r"has train_val_list.txt alone"):
        Nih14(split="all", path=str(corpus))
    (corpus / "train_val_list.txt").unlink()
    source = Nih14(split="all", path=str(corpus))
    assert any("is not the official split" in line for line in source.warnings)
    assert {record.split_official for record in records_of(source).values()} == {"none"}
    check_promises(Nih14, corpus)


def test_an_official_split_that_cuts_a_patient_is_told(corpus):
    (corpus / "train_val_list.txt").write_text("00000042_000.png\n")
    (corpus / "test_list.txt").write_text("00000042_001.png\n")
    source = Nih14(split="all", path=str(corpus), val_fraction=0)
    assert any("puts 1 leakage units" in line for line in source.warnings)


def test_labels_come_without_images(corpus):
    for image in corpus.rglob("*.png"):
        image.unlink()
    with_all = Nih14(split="all", path=str(corpus), allow_missing_images=True)
    records = records_of(with_all)
    assert len(records) == 4 and records["00000042_000.png"].images == ()
    assert sum(records["00000042_000.png"].labels) == 2
    refused = Nih14(split="all", path=str(corpus)).rejects
    assert sum(reject.reason == "missing_image" for reject in refused) == 4
