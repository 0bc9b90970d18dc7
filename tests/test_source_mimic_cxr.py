"""MIMIC-CXR with invented patients, in the layout of MIMIC-CXR-JPG."""

import gzip
import pickle
import shutil
import zipfile

import pytest

from mmrl.data.reading.chexpert_labels import LABELS
from mmrl.data.sources.mimic_cxr import MimicCxr
from mmrl.types import InputError
from tests.corpus_files import every, write_csv, write_image, write_text

# study -> subject, split, date, time, images (id, ViewPosition, view code), report
STUDIES = {
    # Numbers do not follow time: 50000009 is the first study of its patient.
    50000001: (
        10000042,
        "train",
        "21500102",
        "81530.5",
        [("bb-1", "LATERAL", ""), ("aa-1", "PA", "postero-anterior")],
        "FINDINGS:\n IMPRESSION: No ___ change.\n",
    ),
    50000009: (
        10000042,
        "train",
        "21500101",
        "235959",
        [("cc-1", "", "antero-posterior")],
        " FINDINGS: Clear.\n",
    ),
    50000003: (
        10000042,
        "train",
        "21500102",
        "81530",
        [("dd-1", "", "")],
        " HISTORY: Cough.\n \n Last words.\n",
    ),
    50000004: (11000007, "validate", "21600101", "1", [("ee-1", "AP", "")], " IMPRESSION: A."),
    50000005: (
        19000001,
        "test",
        "",
        "",
        [("ff-1", "LL", ""), ("ff-2", "AP AXIAL", "")],
        " FINDINGS: B.",
    ),
}
FILE_ORDER = sorted(LABELS)  # alphabetical, unlike CheXpert's


def folder_of(root, study, subject):
    return root / f"files/p{str(subject)[:2]}/p{subject}/s{study}"


def label_row(subject, study, **values):
    values = {name.replace("_", " "): value for name, value in values.items()}
    return (subject, study, *(values.get(name, "") for name in FILE_ORDER))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "jpg"
    metadata, splits = [], []
    for study, (subject, split, date, time, images, report) in STUDIES.items():
        for dicom, position, meaning in images:
            row = (
                dicom,
                subject,
                study,
                "CHEST (PORTABLE AP)",
                position,
                8,
                6,
                date,
                time,
                meaning,
            )
            metadata.append(row)
            splits.append((dicom, study, subject, split))
            write_image(folder_of(root, study, subject) / f"{dicom}.jpg", study % 100)
        text = folder_of(tmp_path / "reports", study, subject)
        write_text(text.with_name(text.name + ".txt"), report)
    header = ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription")
    header += ("ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime")
    header += ("ViewCodeSequence_CodeMeaning",)
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", header, metadata)
    split_header = ("dicom_id", "study_id", "subject_id", "split")
    write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", split_header, splits)
    chexpert = [
        label_row(10000042, 50000001, Lung_Opacity="1.0", Edema="-1.0", Pneumonia="0.0"),
        label_row(10000042, 50000009, No_Finding="1.0"),
        label_row(10000042, 50000003),
        label_row(19000001, 50000005, Fracture="1.0"),
    ]
    negbio = [label_row(10000042, 50000001, Edema="1.0")]
    for name, rows in (("chexpert", chexpert), ("negbio", negbio)):
        table = root / f"mimic-cxr-2.0.0-{name}.csv.gz"
        write_csv(table, ("subject_id", "study_id", *FILE_ORDER), rows)
    names = ["study_id", "Airspace Opacity", "Atelectasis", "No Findings"]
    write_csv(root / "mimic-cxr-2.1.0-test-set-labeled.csv", names, [(50000005, 1, -1, "0.0")])
    return root


def read(root, **options):
    options = {"split": "all", "reports": "../reports", **options}
    return {record.study_id: record for record in every(MimicCxr(path=str(root), **options))}


def stated(record):
    pairs = zip(record.label_names, record.labels, strict=True)
    return {name: value for name, value in pairs if value != -2}


def test_a_record_is_a_study_with_its_frontal_image_first(root):
    corpus = MimicCxr(split="all", path=str(root), reports="../reports")
    corpus = pickle.loads(pickle.dumps(corpus))
    records = every(corpus)
    assert [record.id for record in records] == [
        f"mimic_cxr:{study}" for study in (50000001, 50000003, 50000009, 50000004, 50000005)
    ]
    first = records[0]
    assert (first.patient_id, first.leakage_unit, first.split) == ("10000042",) * 2 + ("train",)
    assert first.images[0].key == "files/p10/p10000042/s50000001/aa-1.jpg"
    assert [image.projection for image in first.images] == ["PA", "LATERAL"]
    assert first.images[0].load().shape == (6, 8)
    assert (first.access, first.redistributable) == ("credentialed", False)
    assert first.source_version == "2.1.0"
    assert [record.split for record in records[3:]] == ["val", "test"]
    assert first.attributes == {"procedure": "CHEST (PORTABLE AP)", "labels": "chexpert"}


def test_a_blank_projection_is_stated_by_its_code_or_unknown(root):
    records = read(root)
    projections = {
        study: [(image.projection, image.projection_source) for image in record.images]
        for study, record in records.items()
    }
    assert projections["50000009"] == [("AP", "metadata")]
    assert projections["50000003"] == [("UNKNOWN", "")]
    assert projections["50000005"] == [("OTHER", "metadata"), ("LATERAL", "metadata")]


def test_time_goes_by_date_and_padded_time(root):
    records = read(root)
    assert records["50000009"].time == 0 and records["50000009"].prior_id == ""
    # From 23:59:59 to 08:15:30 of the next day, not to 81:53:05 or the like.
    assert records["50000001"].time == records["50000003"].time == 8 * 3600 + 15 * 60 + 31
    assert records["50000001"].prior_id == records["50000003"].prior_id == "mimic_cxr:50000009"
    assert (records["50000004"].time, records["50000004"].prior_id) == (0, "")
    assert (records["50000005"].time, records["50000005"].prior_id) == (None, "")


def test_sections(root):
    records = read(root)
    assert records["50000001"].sections == {"impression": "No ___ change."}
    assert records["50000009"].sections == {"findings": "Clear."}
    assert records["50000003"].sections == {"history": "Cough.", "last_paragraph": "Last words."}


def test_labels_by_name_and_of_the_labeller_asked_for(root):
    records = read(root)
    assert stated(records["50000001"]) == {"Lung Opacity": 1, "Edema": -1, "Pneumonia": 0}
    assert records["50000003"].labels == (-2,) * 14
    assert (records["50000004"].labels, records["50000004"].label_names) == ((), ())
    assert stated(read(root, labels="negbio")["50000001"]) == {"Edema": 1}
    assert read(root, labels="none")["50000001"].labels == ()
    records = read(root, radiologist_test=True)
    assert stated(records["50000005"]) == {"Lung Opacity": 1, "Atelectasis": -1, "No Finding": 0}
    assert records["50000005"].attributes["labels"] == "radiologist"
    assert stated(records["50000009"]) == {"No Finding": 1}
    with pytest.raises(InputError, match="labels is 'both'; choices: chexpert, negbio, none"):
        read(root, labels="both")


def test_reports_are_read_from_the_zip_as_distributed(root):
    reports = root.parent / "reports"
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted(reports.rglob("*.txt")):
            archive.write(path, path.relative_to(reports))
        archive.writestr("../files/p10/p10000042/s1.txt.exe", "never read")
    from_zip = read(root, reports="")
    assert {k: v.sections for k, v in from_zip.items()} == {
        k: v.sections for k, v in read(root).items()
    }
    (root / "mimic-cxr-reports.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="not a zip file"):
        read(root, reports="")
    with pytest.raises(InputError, match="no reports at"):
        read(root, reports="nothing")


def test_without_any_report_there_are_labels_and_a_warning(root):
    corpus = MimicCxr(split="all", path=str(root))
    assert len(corpus) == 5 and not corpus.rejects and corpus[0].sections == {}
    assert "no reports found" in corpus.warnings[0]
    assert any("5 records found, 227,835 in the published" in line for line in corpus.warnings)


def test_text_without_images(root):
    shutil.rmtree(root / "files")
    records = read(root, allow_missing_images=True)
    assert len(records) == 5 and not any(record.images for record in records.values())
    assert records["50000004"].sections == {"impression": "A."}


def test_what_cannot_be_used_is_refused_by_name(root):
    folder = root.parent / "reports/files"
    (folder / "p11/p11000007/s50000004.txt").unlink()
    (folder / "p19/p19000001/s50000005.txt").write_bytes(b"\xff\xfe FINDINGS: x")
    with gzip.open(root / "mimic-cxr-2.0.0-metadata.csv.gz", "at") as file:
        file.write("xx,../1,50000010,,AP,1,1,21500101,1,\r\nshort\r\n")
        file.write("gg-1,10000043,50000001,,AP,1,1,21500101,1,\r\n")
    with gzip.open(root / "mimic-cxr-2.0.0-split.csv.gz", "at") as file:
        file.write("dd-1,50000003,10000042,test\r\n")
    with gzip.open(root / "mimic-cxr-2.0.0-chexpert.csv.gz", "at") as file:
        file.write("10000042,50000009,2.0" + "," * 13 + "\r\n")
    corpus = MimicCxr(split="all", path=str(root), reports="../reports")
    assert {(reject.id, reject.reason) for reject in corpus.rejects} == {
        ("mimic_cxr:metadata row 8", "bad_row"),
        ("mimic_cxr:mimic-cxr-2.0.0-metadata.csv.gz row 9", "bad_row"),
        ("mimic_cxr:50000001", "bad_row"),
        ("mimic_cxr:50000003", "bad_split"),
        ("mimic_cxr:50000009", "bad_label"),
        ("mimic_cxr:50000004", "missing_report"),
        ("mimic_cxr:50000005", "unreadable_report"),
    }
    (bad_label,) = [reject for reject in corpus.rejects if reject.reason == "bad_label"]
    assert "Atelectasis is '2.0', expected 1, 0, -1 or blank" in bad_label.detail


def test_unpacked_tables_are_read_too_and_missing_ones_named(root):
    packed = root / "mimic-cxr-2.0.0-split.csv.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert len(read(root)) == 5
    packed.with_suffix("").unlink()
    with pytest.raises(InputError, match=r"none of mimic-cxr-2\.0\.0-split\.csv\.gz"):
        read(root)
