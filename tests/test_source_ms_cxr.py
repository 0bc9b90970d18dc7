"""MS-CXR with invented phrases, as CSV and as COCO JSON."""

import json
import pickle
import shutil

import pytest

from mmrl.data.sources.ms_cxr import MsCxr
from mmrl.types import Box, InputError
from tests.corpus_files import every, write_csv, write_image, write_text

HEADER = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h")
HEADER += ("image_width", "image_height", "split")
ONE, TWO = "files/p10/p10000042/s5001/aa-1.jpg", "files/p11/p11000007/s5002/bb-1.jpg"
ROWS = [
    # Two boxes of one phrase, apart in the file, and another phrase of the same image.
    ("aa-1", "Edema", "patchy oedema", ONE, 10, 20, 30, 40, 200, 100, "test"),
    ("bb-1", "Pneumothorax", "apical pneumothorax", TWO, 0, 0, 5, 6, 200, 100, "val"),
    ("aa-1", "Pleural Effusion", "effusion, left", ONE, 100, 50, 100, 50, 200, 100, "test"),
    ("aa-1", "Edema", "patchy oedema", ONE, 110, 20, 30, 40, 200, 100, "test"),
]


def coco(rows):
    paths = sorted({row[3] for row in rows})
    names = sorted({row[1] for row in rows})
    images = [
        {"id": k, "file_name": path.split("/")[-1], "path": path, "width": 200, "height": 100}
        for k, path in enumerate(paths)
    ]
    annotations = [
        {
            "id": k,
            "image_id": paths.index(row[3]),
            "category_id": names.index(row[1]),
            "bbox": list(row[4:8]),
            "label_text": row[2],
            "split": row[10],
        }
        for k, row in enumerate(rows)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_corpus(root, kind="csv", rows=ROWS, version="1.1.0"):
    table = root / f"MS_CXR_Local_Alignment_v{version}.{kind}"
    if kind == "json":
        write_text(table, json.dumps(coco(rows)))
    else:
        write_csv(table, HEADER, rows)
    return str(root)


@pytest.fixture
def jpg(tmp_path):
    for at, path in enumerate((ONE, TWO)):
        write_image(tmp_path / "jpg" / path, 50 + at, (100, 200))
    return str(tmp_path / "jpg")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_record_is_a_phrase_with_all_its_boxes_as_corners(tmp_path, jpg, kind):
    path = write_corpus(tmp_path / "ms", kind)
    corpus = MsCxr(split="all", path=path, images=jpg)
    records = every(pickle.loads(pickle.dumps(corpus)))
    assert [(record.id, record.sections["full"]) for record in records] == [
        ("ms_cxr:aa-1/1", "effusion, left"),
        ("ms_cxr:aa-1/2", "patchy oedema"),
        ("ms_cxr:bb-1/1", "apical pneumothorax"),
    ]
    assert records[0].boxes == (Box((100, 50, 200, 100), "Pleural Effusion", sentence=0),)
    assert records[1].boxes == (
        Box((10, 20, 40, 60), "Edema", sentence=0),
        Box((110, 20, 140, 60), "Edema", sentence=0),
    )
    assert records[1].sentences == (("full", "patchy oedema"),)
    assert abs(int(records[2].images[0].load()[0, 0]) - 51) <= 1
    assert [record.split for record in records] == ["test", "test", "val"]
    assert records[0].source_version == "1.1.0"
    assert any("3 records found, 1,162 in the published" in line for line in corpus.warnings)


def test_patients_are_named_as_in_mimic_and_images_share_a_study(tmp_path, jpg):
    records = every(MsCxr(split="all", path=write_corpus(tmp_path / "ms"), images=jpg))
    assert [record.aliases for record in records] == [
        ("mimic_cxr:10000042",),
        ("mimic_cxr:10000042",),
        ("mimic_cxr:11000007",),
    ]
    assert records[0].leakage_unit == "10000042" and records[0].study_id == records[1].study_id
    assert MsCxr.facts.within == ("mimic_cxr",)
    assert records[0].images[0].key == ONE


def test_text_and_boxes_counts_without_images(tmp_path, jpg):
    path = write_corpus(tmp_path / "ms")
    shutil.rmtree(jpg)
    corpus = MsCxr(split="all", path=path, allow_missing_images=True)
    assert [record.sections["full"] for record in every(corpus)] == [
        "effusion, left",
        "patchy oedema",
        "apical pneumothorax",
    ]
    assert corpus.missing_images == 3
    assert [reject.reason for reject in MsCxr(split="all", path=path).rejects] == [
        "missing_image"
    ] * 3
    with pytest.raises(InputError, match="is not a folder"):
        MsCxr(split="all", path=path, images=jpg)


def test_a_phrase_with_a_box_that_cannot_be_is_refused_whole(tmp_path, jpg):
    rows = [
        *ROWS,
        ("aa-1", "Edema", "patchy oedema", ONE, 190, 20, 30, 40, 200, 100, "test"),
        ("bb-1", "Edema", "small", TWO, 5, 5, 0, 4, 200, 100, "val"),
        ("bb-1", "Edema", "not a number", TWO, "nan", 5, 1, 4, 200, 100, "val"),
        ("bb-1", "Edema", "touches the edge", TWO, 150, 0, 50.4, 4, 200, 100, "val"),
        ("bb-1", "Edema", "where", "elsewhere/bb-1.jpg", 1, 1, 1, 1, 200, 100, "val"),
        ("bb-1", "Edema", "", TWO, 1, 1, 1, 1, 200, 100, "val"),
        ("bb-1", "Edema", "when", TWO, 1, 1, 1, 1, 200, 100, "later"),
        ("bb-1", "Edema", "zone", TWO, 1, 1, 1, 1, 200, 100, "val"),
        ("bb-1", "Edema", "zone", TWO, 2, 1, 1, 1, 200, 100, "test"),
    ]
    corpus = MsCxr(split="all", path=write_corpus(tmp_path / "ms", rows=rows), images=jpg)
    assert [(reject.id, reject.reason) for reject in corpus.rejects] == [
        ("ms_cxr:row 9", "bad_row"),
        ("ms_cxr:row 10", "bad_row"),
        ("ms_cxr:row 11", "bad_row"),
        ("ms_cxr:aa-1/2", "bad_box"),
        ("ms_cxr:bb-1/2", "bad_box"),
        ("ms_cxr:bb-1/3", "bad_box"),
        ("ms_cxr:bb-1/5", "bad_split"),
    ]
    assert "190, 20, 30, 40 in an image of 200 x 100" in corpus.rejects[3].detail
    assert [record.id for record in every(corpus)] == [
        "ms_cxr:aa-1/1",
        "ms_cxr:bb-1/1",
        "ms_cxr:bb-1/4",
    ]


def test_the_first_release_tells_no_split(tmp_path, jpg):
    root = tmp_path / "ms"
    table = root / "MS_CXR_Local_Alignment_v1.0.0.csv"
    write_csv(table, HEADER[:-1], [row[:-1] for row in ROWS])
    records = every(MsCxr(split="all", path=str(root), images=jpg))
    assert {(record.split_official, record.source_version) for record in records} == {
        ("none", "1.0.0")
    }
    assert records[0].split == records[1].split


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": 3}'])
def test_json_that_is_none_is_refused(tmp_path, text):
    write_text(tmp_path / "MS_CXR_Local_Alignment_v1.1.0.json", text)
    with pytest.raises(InputError, match=r"v1\.1\.0\.json: "):
        MsCxr(split="all", path=str(tmp_path))
