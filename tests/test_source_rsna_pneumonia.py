"""The RSNA pneumonia challenge as it is distributed, on synthetic files."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmrl.data.sources.rsna_pneumonia import MAPPING, RsnaPneumonia
from mmrl.types import InputError
from tests.corpus_files import check_promises, records_of, write_csv, write_dicom

LABELS = [
    ["normal", "", "", "", "", 0],
    ["one-box", 120.0, 200.0, 150.0, 300.0, 1],
    ["two-boxes", 10.0, 20.0, 30.0, 40.0, 1],
    ["two-boxes", 500.0, 600.0, 524.0, 424.0, 1],
    ["other", "", "", "", "", 0],
]
CLASSES = [
    ["normal", "Normal"],
    ["one-box", "Lung Opacity"],
    ["two-boxes", "Lung Opacity"],
    ["two-boxes", "Lung Opacity"],
    ["other", "No Lung Opacity / Not Normal"],
]
NIH = {
    "normal": "00000042_000.png",
    "one-box": "00000042_013.png",
    "two-boxes": "00000007_000.png",
    "other": "00030805_000.png",
    "a test image": "00000001_000.png",
}
PIXELS = np.arange(16, dtype=np.uint8).reshape(4, 4)


def write_corpus(root: Path, labels: list = LABELS, classes: list = CLASSES) -> Path:
    header = ["patientId", "x", "y", "width", "height", "Target"]
    write_csv(root / "stage_2_train_labels.csv", header, labels)
    write_csv(root / "stage_2_detailed_class_info.csv", ["patientId", "class"], classes)
    for image in {row[0] for row in labels if row[0]}:
        write_dicom(root / f"stage_2_train_images/{image}.dcm", PIXELS, ViewPosition="AP")
    return root


def write_mapping(path: Path) -> None:
    entries = [{"subset_img_id": a, "img_id": b, "orig_labels": ["Mass"]} for a, b in NIH.items()]
    path.write_text(json.dumps(entries))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "rsna")


def read(path: Path, **options) -> RsnaPneumonia:
    return RsnaPneumonia(**{"split": "all", "path": str(path), **options})


def test_rows_of_an_image_become_one_record(corpus):
    records = records_of(read(corpus))
    assert list(records) == ["normal", "one-box", "two-boxes", "other"]
    assert {name: record.labels for name, record in records.items()} == {
        "normal": (0, 1),
        "one-box": (1, 0),
        "two-boxes": (1, 0),
        "other": (0, 0),
    }
    assert [box.xyxy for box in records["one-box"].boxes] == [(120, 200, 270, 500)]
    assert [box.xyxy for box in records["two-boxes"].boxes] == [
        (10, 20, 40, 60),
        (500, 600, 1024, 1024),
    ]
    assert {box.label for box in records["two-boxes"].boxes} == {"Pneumonia"}
    assert records["other"].boxes == ()
    assert records["other"].attributes == {"class": "No Lung Opacity / Not Normal"}
    assert records["one-box"].images[0].key == "stage_2_train_images/one-box.dcm"
    assert (records["one-box"].access, records["one-box"].redistributable) == ("click", False)


def test_without_a_mapping_no_patient_is_known(corpus):
    source = read(corpus)
    assert any("may fall into different splits" in line for line in source.warnings)
    assert any("4 records found, 26,684 in the published" in line for line in source.warnings)
    records = records_of(source)
    assert {record.leakage_unit_known for record in records.values()} == {False}
    assert {record.aliases for record in records.values()} == {()}
    check_promises(RsnaPneumonia, corpus)


def test_the_official_mapping_gives_patients_of_the_nih(corpus):
    write_mapping(corpus / MAPPING)
    source = read(corpus)
    records = records_of(source)
    assert {name: record.leakage_unit for name, record in records.items()} == {
        "normal": "42",
        "one-box": "42",
        "two-boxes": "7",
        "other": "30805",
    }
    assert records["one-box"].aliases == ("nih14:42",)
    assert records["one-box"].leakage_unit_known and records["one-box"].patient_id == "42"
    assert not any("patient" in line for line in source.warnings)
    assert source.facts.within == ("nih14",)
    check_promises(RsnaPneumonia, corpus)


@pytest.mark.parametrize(
    ("header", "values"),
    [
        (["patientId", "Image Index"], list(NIH.values())),
        (["patientId", "img_id"], [name.removesuffix(".png") for name in NIH.values()]),
        (["patientId", "Patient ID"], ["42", "042", "7", "30805", "1"]),
    ],
)
def test_a_table_maps_too(corpus, tmp_path, header, values):
    table = tmp_path / "map.csv"
    write_csv(table, header, [list(row) for row in zip(NIH, values, strict=True)][:-2])
    source = read(corpus, nih_mapping=str(table))
    records = records_of(source)
    assert [record.aliases for record in records.values()] == [
        ("nih14:42",),
        ("nih14:42",),
        ("nih14:7",),
        (),
    ]
    assert not records["other"].leakage_unit_known
    assert any("1 images are not in nih_mapping" in line for line in source.warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "dict; expected a list"),
        ("[]", "empty"),
        ('[{"subset_img_id": "a", "img_id": "x.png"}]', "entry 1 names no image and NIH patient"),
        ("[3]", "entry 1 names no image"),
        (
            '[{"subset_img_id": "a", "img_id": "01_0.png"},'
            ' {"subset_img_id": "a", "img_id": "02_0.png"}]',
            "entry 2 gives a a second NIH patient, 2",
        ),
    ],
)
def test_a_mapping_that_cannot_be_used_is_refused(corpus, text, message):
    (corpus / MAPPING).write_text(text)
    with pytest.raises(InputError, match=message):
        read(corpus)


def test_a_mapping_that_is_asked_for_must_be_there(corpus, tmp_path):
    with pytest.raises(InputError, match=r"nih_mapping 'nowhere.json' is not a file"):
        read(corpus, nih_mapping="nowhere.json")
    write_csv(tmp_path / "map.csv", ["patientId", "age"], [["normal", 3]])
    with pytest.raises(InputError, match="expected patientId and one of img_id"):
        read(corpus, nih_mapping=str(tmp_path / "map.csv"))


def test_contradictions_and_broken_boxes_are_listed(tmp_path):
    labels = [
        *LABELS,
        ["mixed", 1, 1, 2, 2, 1],
        ["mixed", "", "", "", "", 0],
        ["boxed negative", 1, 1, 2, 2, 0],
        ["class differs", "", "", "", "", 0],
        ["target", "", "", "", "", 2],
        ["edge", 1000, 0, 25, 10, 1],
        ["edge", 1000, 0, 24, 10, 1],
        ["edge", "nan", 0, 24, 10, 1],
        ["no class", "", "", "", "", 0],
        ["", "", "", "", "", 0],
    ]
    classes = [*CLASSES, ["class differs", "Lung Opacity"], ["edge", "Lung Opacity"]]
    source = read(write_corpus(tmp_path, labels, classes))
    assert [(reject.id.partition(":")[2], reject.reason) for reject in source.rejects] == [
        ("stage_2_train_labels.csv row 15", "bad_row"),
        ("mixed", "label_conflict"),
        ("boxed negative", "label_conflict"),
        ("class differs", "label_conflict"),
        ("target", "bad_label"),
        ("edge#row 11", "bad_box"),
        ("edge#row 13", "bad_box"),
    ]
    records = records_of(source)
    assert [box.xyxy for box in records["edge"].boxes] == [(1000, 0, 1024, 10)]
    assert records["no class"].labels == (0, -2) and not records["no class"].attributes
    assert any("1 images have no detailed class" in line for line in source.warnings)
    assert source.total == len(source) + 5


def test_labels_come_without_images(corpus):
    for image in corpus.rglob("*.dcm"):
        image.unlink()
    records = records_of(read(corpus, allow_missing_images=True))
    assert records["one-box"].labels == (1, 0) and records["one-box"].images == ()
    assert {reject.reason for reject in read(corpus).rejects} == {"missing_image"}


def test_pixels_are_decoded_and_damage_is_found(corpus):
    records = records_of(read(corpus, verify="decode"))
    np.testing.assert_array_equal(records["normal"].images[0].load(), PIXELS)
    whole = (corpus / "stage_2_train_images/normal.dcm").read_bytes()
    (corpus / "stage_2_train_images/normal.dcm").write_bytes(whole[:-4])
    (corpus / "stage_2_train_images/other.dcm").write_bytes(b"no image")
    source = read(corpus)
    assert list(records_of(source)) == ["one-box", "two-boxes"]
    assert [reject.id.partition(":")[2] for reject in source.rejects] == ["normal", "other"]


def test_headers_state_the_projection(corpus):
    projections = [
        read(corpus, dicom_headers=told)[0].images[0].projection for told in (False, True)
    ]
    assert projections == ["UNKNOWN", "AP"]
