"""Tiny valid corpora of chest radiographs; see `tests/corpora.py`."""

import json
from pathlib import Path

import numpy as np

from mmrl.data.reading.chexpert_labels import LABELS
from tests.corpora import Options, corpus
from tests.corpus_files import write_csv, write_dicom, write_image, write_jsonl, write_lines

PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)
XML = (
    '<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{0}"/><Abstract>'
    '<AbstractText Label="FINDINGS">Clear, {0}.</AbstractText></Abstract>'
    '<MeSH><major>normal</major></MeSH><parentImage id="CXR{0}_IM-0001-1"/></eCitation>'
)


@corpus
def openi(folder: Path) -> Options:
    header = ("uid", "MeSH", "Problems", "indication", "comparison", "findings", "impression")
    rows = [(n, "normal", "normal", "Cough.", "", f"Clear, {n}.", "Normal.") for n in (1, 2, 3)]
    write_csv(folder / "indiana_reports.csv", header, rows)
    projections = [(n, f"{n}_IM-0001-1.dcm.png", ("Frontal", "Lateral")[n % 2]) for n in (1, 2, 3)]
    write_csv(folder / "indiana_projections.csv", ("uid", "filename", "projection"), projections)
    for _, name, _ in projections:
        write_image(folder / "images/images_normalized" / name)
    return {"path": "."}


@corpus
def openi_xml(folder: Path) -> Options:
    for n in (1, 2, 3):
        write_lines(folder / f"ecgen-radiology/{n}.xml", XML.format(n))
        write_image(folder / f"NLMCXR_png/CXR{n}_IM-0001-1.png")
    return {"path": ".", "source": "openi", "layout": "nlm"}


@corpus
def nih14(folder: Path) -> Options:
    header = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age")
    header += ("Patient Sex", "View Position", "OriginalImage[Width", "Height]")
    header += ("OriginalImagePixelSpacing[x", "y]")
    names = [f"0000000{n}_000.png" for n in range(3)]
    rows = [
        (name, "Mass|Edema", 0, n, "58", "M", "PA", 2048, 2048, 0.1, 0.1)
        for n, name in enumerate(names)
    ]
    write_csv(folder / "Data_Entry_2017_v2020.csv", header, rows)
    box = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
    write_csv(folder / "BBox_List_2017.csv", box, [(names[0], "Mass", 2.5, 3, 40, 50)])
    write_lines(folder / "train_val_list.txt", *names[:2])
    write_lines(folder / "test_list.txt", names[2])
    for name in names:
        write_image(folder / "images_001/images" / name)
    return {"path": "."}


@corpus
def rsna_pneumonia(folder: Path) -> Options:
    header = ("patientId", "x", "y", "width", "height", "Target")
    rows = [("a", "", "", "", "", 0), ("b", 120.0, 20.0, 150.0, 30.0, 1), ("b", 1, 2, 30, 40, 1)]
    write_csv(folder / "stage_2_train_labels.csv", header, rows)
    classes = [("a", "Normal"), ("b", "Lung Opacity"), ("b", "Lung Opacity")]
    write_csv(folder / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    for name in "ab":
        write_dicom(folder / f"stage_2_train_images/{name}.dcm", PIXELS, ViewPosition="AP")
    return {"path": "."}


@corpus
def siim_pneumothorax(folder: Path) -> Options:
    rows = [("1.2.1", "-1"), ("1.2.2", "100 3 1021 4"), ("1.2.2", "0 2")]
    write_csv(folder / "train-rle.csv", ("ImageId", " EncodedPixels"), rows)
    for n, part in ((1, "train"), (2, "test")):
        write_dicom(folder / f"dicom-images-{part}/s{n}/t{n}/1.2.{n}.dcm", PIXELS)
    return {"path": "."}


@corpus
def covid_chestxray(folder: Path) -> Options:
    header = ("patientid", "offset", "sex", "age", "finding", "view", "modality", "date")
    header += ("location", "folder", "filename", "license", "clinical_notes", "other_notes")
    finding = "Pneumonia/Viral/COVID-19"
    rows = [
        (n, n, "M", 65, finding, "PA", "X-ray", "2020", "", "images", f"{n}.png", "CC0", "Ill.", "")
        for n in range(3)
    ]
    write_csv(folder / "metadata.csv", header, rows)
    for n in range(3):
        write_image(folder / f"images/{n}.png")
    return {"path": "."}


@corpus
def chexpert(folder: Path) -> Options:
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)
    for name, patients in {"train": (1, 2), "valid": (3,)}.items():
        rows = []
        for n in patients:
            path = f"{name}/patient0000{n}/study1/view1_frontal.jpg"
            rows.append(
                (path, "Female", 68, "Frontal", "AP", *("1.0", "", "-1.0", "0.0") * 3, "", "")
            )
            write_image(folder / path)
        write_csv(folder / f"{name}.csv", header, rows)
    return {"path": "."}


@corpus
def mimic_cxr(folder: Path) -> Options:
    header = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
    header += ("StudyDate", "StudyTime", "ViewCodeSequence_CodeMeaning")
    metadata, splits, labels = [], [], []
    for n in (1, 2, 3):
        subject, study = f"1000000{n}", f"5000000{n}"
        metadata.append((f"a-{n}", subject, study, "PA", 6, 8, "21500102", "81530.5", ""))
        splits.append((f"a-{n}", study, subject, ("train", "validate", "test")[n - 1]))
        labels.append((subject, study, *("1.0", "", "-1.0", "0.0") * 3, "", ""))
        below = folder / f"files/p10/p{subject}"
        write_image(below / f"s{study}/a-{n}.jpg")
        write_lines(below / f"s{study}.txt", " FINDINGS: Clear.", " IMPRESSION: Normal.")
    start = folder / "mimic-cxr-2.0.0"
    write_csv(Path(f"{start}-metadata.csv"), header, metadata)
    write_csv(Path(f"{start}-split.csv"), ("dicom_id", "study_id", "subject_id", "split"), splits)
    names = ("subject_id", "study_id", *sorted(LABELS))
    write_csv(Path(f"{start}-chexpert.csv"), names, labels)
    return {"path": "."}


@corpus
def ms_cxr(folder: Path) -> Options:
    header = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h")
    header += ("image_width", "image_height", "split")
    rows = []
    for n in (1, 2, 3):
        path = f"files/p10/p1000000{n}/s5000000{n}/a-{n}.jpg"
        rows.append((f"a-{n}", "Edema", f"oedema {n}", path, 1, 2, 3, 3, 8, 6, "test"))
        write_image(folder / "jpg" / path)
    write_csv(folder / "MS_CXR_Local_Alignment_v1.1.0.csv", header, rows)
    return {"path": ".", "images": "jpg"}


@corpus
def ms_cxr_json(folder: Path) -> Options:
    images, notes = [], []
    for n in (1, 2, 3):
        path = f"files/p10/p1000000{n}/s5000000{n}/a-{n}.jpg"
        write_image(folder / "jpg" / path)
        images.append({"id": n, "file_name": f"a-{n}.jpg", "path": path, "width": 8, "height": 6})
        box = {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 3, 3]}
        notes.append({**box, "label_text": f"oedema {n}", "split": "test"})
    whole = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "Edema"}]}
    write_lines(folder / "MS_CXR_Local_Alignment_v1.1.0.json", json.dumps(whole))
    return {"path": ".", "source": "ms_cxr", "images": "jpg"}


def _pairs(key: str) -> list[dict[str, str]]:
    labels = ("entailment", "neutral", "contradiction")
    return [
        {key: f"{n}a", "gold_label": label, "sentence1": f"No {n}.", "sentence2": f"Clear {n}."}
        for n, label in enumerate(labels)
    ]


@corpus
def radnli(folder: Path) -> Options:
    for part in ("dev", "test"):
        write_jsonl(folder / f"radnli_{part}_v1.jsonl", _pairs("pair_id"))
    return {"path": "."}


@corpus
def mednli(folder: Path) -> Options:
    for part in ("train", "dev", "test"):
        write_jsonl(folder / f"mli_{part}_v1.jsonl", _pairs("pairID"))
    return {"path": "."}


@corpus
def medmnist(folder: Path) -> Options:
    held = {}
    for split in ("train", "val", "test"):
        held[f"{split}_images"] = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
        held[f"{split}_labels"] = np.array([[0], [1], [1]], np.uint8)
    np.savez_compressed(folder / "breastmnist.npz", **held)
    return {"path": ".", "flag": "breastmnist"}
