"""The SIIM-ACR pneumothorax challenge as it is distributed, on synthetic files."""

from pathlib import Path

import numpy as np
import pytest

from mmrl.data.sources.siim_pneumothorax import SiimPneumothorax, mask_of
from mmrl.types import InputError
from tests.corpus_files import check_promises, records_of, write_csv, write_dicom, write_image

# Invented instance UIDs, of which only the end matters.
NONE, SPACED, ONE, TWO, GONE = (f"1.2.276.0.7230010.3.1.4.{number}" for number in range(5))
ROWS = [
    [NONE, "-1"],
    [SPACED, " -1"],
    [ONE, " 100 3 1021 4"],
    [TWO, "0 2"],
    [TWO, "1 2 2044 1"],
    [GONE, "5 5"],
]
PIXELS = np.full((4, 4), 50, np.uint8)


def write_corpus(root: Path, rows: list = ROWS) -> Path:
    write_csv(root / "train-rle.csv", ["ImageId", " EncodedPixels"], rows)
    places = {NONE: "train/s0/t0", SPACED: "train/s1/t1", ONE: "train/s2/t2", TWO: "test/s3/t3"}
    for image, place in places.items():
        photometric = "MONOCHROME1" if image == ONE else "MONOCHROME2"
        path = root / f"dicom-images-{place}/{image}.dcm"
        write_dicom(path, PIXELS, PhotometricInterpretation=photometric)
    return root


def read(path: Path, **options) -> SiimPneumothorax:
    return SiimPneumothorax(**{"split": "all", "path": str(path), **options})


def test_runs_are_relative_and_go_down_the_columns():
    mask = mask_of("100 3 1021 4")
    assert (mask.height, mask.width, mask.runs) == (1024, 1024, (100, 3, 1124, 4))
    assert mask_of("0 1024 0 5").runs == (0, 1024, 1024, 5)
    assert mask_of(f"{1024 * 1024 - 1} 1").runs == (1024 * 1024 - 1, 1)


@pytest.mark.parametrize(
    "cell",
    ["", "5", "1 2 3", "a b", "1.5 2", "-5 3", "3 0", f"{1024 * 1024} 1", "9" * 30 + " 1", "1 -1"],
)
def test_runs_that_cannot_be_are_refused(cell):
    with pytest.raises(InputError, match="runs"):
        mask_of(cell)


def test_rows_of_an_image_become_one_record(tmp_path):
    records = records_of(read(write_corpus(tmp_path)))
    assert list(records) == [NONE, SPACED, ONE, TWO]
    assert [record.labels for record in records.values()] == [(0,), (0,), (1,), (1,)]
    assert records[NONE].masks is None and records[SPACED].masks is None
    drawn = records[ONE].masks()["Pneumothorax"]
    assert drawn.shape == (1024, 1024) and drawn.dtype == bool
    # Column-major: pixels 100 to 102 of the first column, 100 to 103 of the second.
    assert sorted(zip(*map(np.ndarray.tolist, np.nonzero(drawn)), strict=True)) == [
        *[(100, 0), (100, 1), (101, 0), (101, 1), (102, 0), (102, 1), (103, 1)]
    ]
    union = records[TWO].masks()["Pneumothorax"]
    rows, columns = np.nonzero(union)  # 0, 1 and 1, 2 are united; 2047 ends the second column
    assert sorted(zip(columns.tolist(), rows.tolist(), strict=True)) == [
        *[(0, 0), (0, 1), (0, 2), (1, 1023)]
    ]
    assert records[ONE].images[0].key == f"dicom-images-train/s2/t2/{ONE}.dcm"
    assert (records[ONE].leakage_unit_known, records[ONE].access) == (False, "click")


def test_place_tells_the_official_split(tmp_path):
    write_corpus(tmp_path)
    test = read(tmp_path, split="test")
    assert list(records_of(test)) == [TWO]
    assert any("1 records/test found, 1,372 in the published" in w for w in test.warnings)
    assert any("patients are not known" in warning for warning in test.warnings)
    everything = records_of(read(tmp_path, val_fraction=0)).values()
    assert [record.split for record in everything] == ["train", "train", "train", "test"]
    held = read(tmp_path, val_fraction=0.999, split="val")
    assert {record.split_official for record in records_of(held).values()} == {"train"}
    check_promises(SiimPneumothorax, tmp_path)


def test_the_flat_tree_of_the_second_stage_has_no_split(tmp_path):
    write_csv(tmp_path / "stage_2_train.csv", ["ImageId", "EncodedPixels"], ROWS[:3])
    for image in (NONE, SPACED, ONE):
        write_dicom(tmp_path / f"stage_2_images/{image}.dcm", PIXELS)
    write_dicom(tmp_path / "stage_2_images/unlabelled.dcm", PIXELS)
    source = read(tmp_path)
    assert {record.split_official for record in records_of(source).values()} == {"none"}
    assert any("1 images have no row in stage_2_train.csv" in w for w in source.warnings)
    assert not any("records/train" in warning for warning in source.warnings)
    check_promises(SiimPneumothorax, tmp_path)


def test_what_is_wrong_is_listed(tmp_path):
    rows = [*ROWS, [NONE, "1 2"], [SPACED, "-1"], [TWO, "7 x"], ["", "-1"]]
    source = read(write_corpus(tmp_path, rows))
    assert list(records_of(source)) == [SPACED, ONE]
    assert [(reject.id.partition(":")[2], reject.reason) for reject in source.rejects] == [
        ("train-rle.csv row 10", "bad_row"),
        (NONE, "label_conflict"),
        (TWO, "bad_mask"),
        (GONE, "missing_image"),
    ]


def test_labels_and_masks_come_without_images(tmp_path):
    write_csv(tmp_path / "train-rle.csv", ["ImageId", " EncodedPixels"], ROWS)
    records = records_of(read(tmp_path, allow_missing_images=True))
    assert len(records) == 5 and records[ONE].images == () and records[ONE].labels == (1,)
    with pytest.raises(InputError, match=r"none of train-rle.csv, train-rle.csv.gz"):
        read(tmp_path.parent)


def write_repack(root: Path) -> Path:
    header = ["new_filename", "ImageId", "has_pneumo"]
    rows = [["0_train_0_.png", NONE, 0], ["1_train_1_.png", ONE, 1], ["2_train_1_.png", GONE, 1]]
    write_csv(root / "stage_1_train_images.csv", header, rows)
    rows = [["0_test_1_.png", TWO, 1], ["../out.png", "x", 1], ["3_test_1_.png", "y", 1]]
    write_csv(root / "stage_1_test_images.csv", header, rows)
    mask = np.zeros((6, 4), np.uint8)
    for name in ("0_train_0_.png", "2_train_1_.png"):
        write_image(root / f"png_masks/{name}", mask)
    mask[1, 2] = mask[2, 2] = 255
    for name in ("1_train_1_.png", "0_test_1_.png"):
        write_image(root / f"png_masks/{name}", mask)
    for name in ("0_train_0_.png", "1_train_1_.png", "2_train_1_.png", "0_test_1_.png"):
        write_image(root / f"png_images/{name}", np.full((6, 4), 9, np.uint8))
    return root


def test_the_png_repack_has_the_same_ids_and_masks(tmp_path):
    source = SiimPneumothorax(split="all", path=str(write_repack(tmp_path)), val_fraction=0)
    records = records_of(source)
    assert list(records) == [NONE, ONE, TWO]
    assert [record.labels for record in records.values()] == [(0,), (1,), (1,)]
    assert [record.split for record in records.values()] == ["train", "train", "test"]
    assert np.argwhere(records[ONE].masks()["Pneumothorax"]).tolist() == [[1, 2], [2, 2]]
    assert (records[ONE].images[0].load() == 9).all()
    assert records[ONE].masks()["Pneumothorax"].shape == records[ONE].images[0].load().shape
    assert {(r.id.partition(":")[2], r.reason) for r in source.rejects} == {
        (GONE, "label_conflict"),
        ("stage_1_test_images.csv row 2", "bad_row"),
        ("y", "bad_mask"),
    }
    check_promises(SiimPneumothorax, tmp_path)


def test_monochrome1_is_inverted(tmp_path):
    records = records_of(read(write_corpus(tmp_path), verify="decode"))
    assert (records[NONE].images[0].load() == 50).all()
    assert (records[ONE].images[0].load() == 255 - 50).all()
