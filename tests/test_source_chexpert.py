"""CheXpert with invented patients, and the 5x200 protocol."""

import pickle
import shutil

import pytest

from mmrl.data.reading.chexpert_labels import (
    COMPETITION,
    LABELS,
    only_competition_label,
    read_labels,
    select_per_class,
)
from mmrl.data.sources.chexpert import Chexpert
from mmrl.types import InputError
from tests.corpus_files import every, write_csv, write_image

HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)


def row(path, sex="Female", age="68", side="Frontal", position="AP", **labels):
    labels = {name.replace("_", " "): value for name, value in labels.items()}
    return (path, sex, age, side, position, *(labels.get(name, "") for name in LABELS))


def labels_of(**labels):
    return tuple(row("", **labels)[5:])


TRAIN = [
    row("train/patient00042/study1/view1_frontal.jpg", Lung_Opacity="1.0", Edema="-1.0"),
    row("train/patient00042/study1/view2_lateral.jpg", "Female", "68", "Lateral", ""),
    row("train/patient00042/study2/view1_frontal.jpg", position="LL", Lung_Lesion="0.0"),
    row("train/patient00043/study1/view1_frontal.jpg", "Unknown", "0", position="PA"),
]
VALID = [row("valid/patient64541/study1/view1_frontal.jpg", Edema="0.0", Cardiomegaly="1.0")]


def write_corpus(root, prefix, train=TRAIN, valid=VALID):
    for name, rows in (("train", train), ("valid", valid)):
        write_csv(root / f"{name}.csv", HEADER, [(prefix + r[0], *r[1:]) for r in rows])
        for at, one in enumerate(rows):
            write_image(root / one[0], at)
    return root


@pytest.fixture(params=["CheXpert-v1.0-small/", "CheXpert-v1.0/", ""])
def root(tmp_path, request):
    return write_corpus(tmp_path / "CheXpert-v1.0-small", request.param)


def stated(record):
    pairs = zip(record.label_names, record.labels, strict=True)
    return {name: value for name, value in pairs if value != -2}


def test_a_record_is_an_image_whatever_the_prefix_and_the_folder_given(root):
    for path, start in ((root, ""), (root.parent, "CheXpert-v1.0-small/")):
        corpus = pickle.loads(pickle.dumps(Chexpert(split="all", path=str(path))))
        records = every(corpus)
        assert [record.id for record in records] == [
            "chexpert:patient00042/study1/view1_frontal",
            "chexpert:patient00042/study1/view2_lateral",
            "chexpert:patient00042/study2/view1_frontal",
            "chexpert:patient00043/study1/view1_frontal",
            "chexpert:patient64541/study1/view1_frontal",
        ]
        image = records[1].images[0]
        assert image.key == f"{start}train/patient00042/study1/view2_lateral.jpg"
        assert abs(int(image.load()[0, 0]) - 1) <= 1
        assert [record.split for record in records] == ["train"] * 4 + ["val"]
        assert (records[0].patient_id, records[0].study_id) == (
            "patient00042",
            "patient00042/study1",
        )
        assert any("4 records/train found, 223,414" in line for line in corpus.warnings)
        assert (records[0].access, records[0].redistributable) == ("click", False)


def test_the_large_images_may_stay_in_the_folders_they_come_in(tmp_path):
    first = write_corpus(tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0/")
    for number, patient in ((2, "patient00042"), (3, "patient00043")):
        batch = tmp_path / f"CheXpert-v1.0 batch {number} (train {number - 1})"
        shutil.move(first / "train" / patient, batch / patient)
    corpus = Chexpert(split="all", path=str(tmp_path))
    assert corpus.rejects == []
    assert [record.images[0].key for record in every(corpus)][2:] == [
        "CheXpert-v1.0 batch 2 (train 1)/patient00042/study2/view1_frontal.jpg",
        "CheXpert-v1.0 batch 3 (train 2)/patient00043/study1/view1_frontal.jpg",
        "CheXpert-v1.0 batch 1 (validate & csv)/valid/patient64541/study1/view1_frontal.jpg",
    ]


def test_labels_stay_raw_and_go_by_name(root):
    records = every(Chexpert(split="all", path=str(root)))
    assert stated(records[0]) == {"Lung Opacity": 1, "Edema": -1}
    assert records[1].labels == (-2,) * 14
    assert stated(records[2]) == {"Lung Lesion": 0}
    assert stated(records[4]) == {"Edema": 0, "Cardiomegaly": 1}


def test_projections_and_attributes(root):
    records = every(Chexpert(split="all", path=str(root)))
    assert [record.images[0].projection for record in records] == [
        "AP",
        "LATERAL",
        "FRONTAL",
        "PA",
        "AP",
    ]
    assert records[0].attributes == {"sex": "F", "age": "68"}
    assert records[3].attributes == {}


def test_a_test_table_with_fewer_columns_is_read(tmp_path):
    root = write_corpus(tmp_path / "c", "")
    rows = [("test/patient64741/study1/view1_frontal.jpg", *["1"] + ["0"] * 13)]
    write_csv(root / "test_labels.csv", ("Path", *LABELS), rows)
    write_image(root / rows[0][0])
    (record,) = every(Chexpert(split="test", path=str(root)))
    assert (record.images[0].projection, record.images[0].projection_source) == (
        "FRONTAL",
        "filename",
    )
    assert record.labels == (1,) + (0,) * 13


def test_what_is_wrong_is_listed(tmp_path):
    train = [*TRAIN, row("train/patient00044/study1/view1_frontal.jpg", Edema="2.0"), TRAIN[0]]
    root = write_corpus(tmp_path / "c", "", train=train)
    with (root / "train.csv").open("a") as file:
        file.write("../../secret.jpg" + "," * 18 + "\nshort\n")
    shutil.rmtree(root / "train/patient00043")
    corpus = Chexpert(split="all", path=str(root))
    assert {(reject.id, reject.reason) for reject in corpus.rejects} == {
        ("chexpert:patient00044/study1/view1_frontal", "bad_label"),
        ("chexpert:patient00042/study1/view1_frontal", "duplicate_id"),
        ("chexpert:train.csv row 7", "bad_row"),
        ("chexpert:train.csv row 8", "bad_row"),
        ("chexpert:patient00043/study1/view1_frontal", "missing_image"),
    }
    assert len(corpus) == 4
    kept = Chexpert(split="all", path=str(root), allow_missing_images=True)
    assert len(kept) == 5 and kept.missing_images == 1
    with pytest.raises(InputError, match=r"none of train\.csv, valid\.csv"):
        Chexpert(split="all", path=str(root / "train"))


def raw(**labels):
    return read_labels(dict(zip(LABELS, labels_of(**labels), strict=True)))


def test_one_condition_alone():
    assert only_competition_label(raw(Edema="1.0", No_Finding="1.0", Fracture="0.0")) == "Edema"
    assert only_competition_label(raw(Edema="1.0", Fracture="-1.0")) == ""
    assert only_competition_label(raw(Edema="1.0", Support_Devices="1.0")) == ""
    assert only_competition_label(raw(Edema="-1.0")) == ""
    assert only_competition_label(raw(Fracture="1.0")) == ""
    assert only_competition_label(raw()) == ""


def test_selection_depends_on_ids_alone():
    images = [
        (f"{name}{k}", raw(**{name.replace(" ", "_"): "1.0"}))
        for name in COMPETITION
        for k in range(9)
    ]
    chosen = select_per_class(images, 3)
    assert chosen == select_per_class(images[::-1], 3)
    assert sorted(chosen.values()) == sorted(COMPETITION * 3)
    assert all(native.startswith(name) for native, name in chosen.items())
    assert chosen != select_per_class(images, 3, salt="again")
    with pytest.raises(InputError, match=r"expected 10 images per class .* 9 of Atelectasis"):
        select_per_class(images, 10)


def test_five_by_keeps_its_patients_out_of_training(tmp_path):
    train = []
    for at, name in enumerate(COMPETITION):
        for patient in (100 + at, 200 + at):
            where = f"train/patient{patient:05d}"
            one = {name.replace(" ", "_"): "1.0"}
            train.append(row(f"{where}/study1/view1_frontal.jpg", **one))
            train.append(row(f"{where}/study1/view2_lateral.jpg", side="Lateral", **one))
            train.append(row(f"{where}/study2/view1_frontal.jpg", Fracture="1.0"))
    root = write_corpus(tmp_path / "c", "", train=train)
    write_csv(
        root / "test.csv", ("Path", *LABELS), [("test/patient9/study1/view1_a.jpg", *[0] * 14)]
    )
    parts = {s: Chexpert(split=s, path=str(root), five_by=1) for s in ("train", "val", "test")}
    ids = {split: {record.patient_id for record in every(part)} for split, part in parts.items()}
    assert len(parts["test"]) == 5 and len(parts["train"]) == 15 and len(parts["val"]) == 1
    assert not ids["test"] & ids["train"]
    shown = [only_competition_label(record.labels) for record in every(parts["test"])]
    assert sorted(shown) == sorted(COMPETITION)
    assert {record.images[0].projection for record in every(parts["test"])} == {"AP"}
    assert "11 images left out: others of the 5 patients" in parts["train"].warnings[0]
    assert parts["train"].rejects == []
    with pytest.raises(InputError, match="official_split=True"):
        Chexpert(split="all", path=str(root), five_by=1, official_split=False)
    with pytest.raises(InputError, match="3 images per class"):
        Chexpert(split="all", path=str(root), five_by=3)
