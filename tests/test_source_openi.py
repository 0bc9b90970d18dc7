"""Open-i in both distributions; every report here is invented."""

import collections
import pickle
import shutil

import numpy as np
import pytest

from mmrl.data.corpus import read_corpus
from mmrl.data.sources.openi import Openi
from mmrl.types import InputError
from tests.corpus_files import every, write_csv, write_image, write_text

HEADER = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
# uid -> MeSH, indication, findings, impression, {image number: projection}
REPORTS = {
    1: ("normal", "Cough.", "Clear lungs.", "Normal chest x-XXXX.", {"3001": "L", "4001": "F"}),
    2: ("Calcified Granuloma/lung/upper lobe/right;Cardiomegaly", "", "Granuloma.", "", {"1": "F"}),
    10: ("No Indexing", "XXXX-year-old XXXX XXXX.", "", "1. No effusion. 2. Clear.", {"1": "L"}),
    11: ("Granuloma", "", "Two.", "Stable.", {"1": "L", "2": "F", "3": "F"}),
    12: ("normal", "", "Clear lungs.", "Normal chest x-XXXX.", {"1": "F"}),
    16: ("normal", "", "", "", {"1": "F"}),
}
NAMES = {"F": "Frontal", "L": "Lateral"}


def stem(uid, number):
    return f"{uid}_IM-0001-{number}"


@pytest.fixture
def kaggle(tmp_path):
    root = tmp_path / "kaggle"
    rows, projections = [], []
    for uid, (mesh, indication, findings, impression, images) in REPORTS.items():
        problems = ";".join(code.split("/")[0] for code in mesh.split(";"))
        rows.append(
            (uid, mesh, problems, "PA and Lateral", indication, "None.", findings, impression)
        )
        for at, (number, projection) in enumerate(images.items()):
            projections.append((uid, f"{stem(uid, number)}.dcm.png", NAMES[projection]))
            path = root / "images/images_normalized" / projections[-1][1]
            write_image(path, 10 * uid + at)
    rows.reverse()  # the order of the file is not to matter
    write_csv(root / "indiana_reports.csv", HEADER, rows)
    write_csv(root / "indiana_projections.csv", ("uid", "filename", "projection"), projections)
    return root


def xml(uid, mesh, texts, images, extra=""):
    parts = "".join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in texts.items())
    pictures = "".join(
        f'<parentImage id="{name}"><caption>PA and Lateral</caption></parentImage>'
        for name in images
    )
    codes = "".join(f"<major>{code}</major>" for code in mesh.split(";"))
    return (
        f'<?xml version="1.0" encoding="utf-8"?>{extra}<eCitation><uId id="CXR{uid}"/>'
        f"<Abstract>{parts}</Abstract><MeSH>{codes}<automatic>lungs</automatic></MeSH>"
        f"{pictures}</eCitation>"
    )


@pytest.fixture
def nlm(tmp_path):
    root = tmp_path / "nlm"
    for uid, (mesh, indication, findings, impression, images) in REPORTS.items():
        texts = {"COMPARISON": "None.", "INDICATION": indication}
        texts |= {"FINDINGS": findings, "IMPRESSION": impression}
        names = [("CXR1_" if uid == 1 else "CXR") + stem(uid, number) for number in images]
        write_text(root / f"ecgen-radiology/{uid}.xml", xml(uid, mesh, texts, names))
        for at, name in enumerate(names):
            write_image(root / f"NLMCXR_png/{name}.png", 10 * uid + at)
    alone = xml(99, "normal", {"FINDINGS": "No picture &amp; no view."}, [])
    write_text(root / "ecgen-radiology/99.xml", alone)
    return root


def test_one_record_per_report_with_frontal_images_first(kaggle):
    corpus = pickle.loads(pickle.dumps(Openi(split="all", path=str(kaggle))))
    records = {record.id: record for record in every(corpus)}
    assert list(records) == [f"openi:{uid}" for uid in REPORTS]  # by number, "10" after "2"
    first = records["openi:1"]
    assert [image.projection for image in first.images] == ["FRONTAL", "LATERAL"]
    assert {image.projection_source for image in first.images} == {"label"}
    assert first.images[0].key == "images/images_normalized/1_IM-0001-4001.dcm.png"
    assert first.images[0].load()[0, 0] == 11
    assert (first.patient_id, first.leakage_unit, first.study_id) == ("1", "1", "CXR1")
    assert dict(first.sections) == {
        "examination": "PA and Lateral",
        "indication": "Cough.",
        "comparison": "None.",
        "findings": "Clear lungs.",
        "impression": "Normal chest x-XXXX.",
    }
    assert [image.projection for image in records["openi:10"].images] == ["LATERAL"]
    projections = [image.projection for image in records["openi:11"].images]
    assert projections == ["FRONTAL", "FRONTAL", "LATERAL"]
    assert (first.license, first.split_official, first.redistributable) == (
        "CC-BY-NC-ND-4.0",
        "none",
        False,
    )


def test_text_is_kept_as_it_stands(kaggle):
    records = {record.id: record for record in every(Openi(split="all", path=str(kaggle)))}
    ten = records["openi:10"].sections
    assert (ten["indication"], ten["impression"]) == (
        "XXXX-year-old XXXX XXXX.",
        "1. No effusion. 2. Clear.",
    )
    assert "findings" not in ten and "impression" not in records["openi:2"].sections
    assert {"findings", "impression"}.isdisjoint(records["openi:16"].sections)


def test_labels_are_whole_codes(kaggle):
    records = {record.id: record for record in every(Openi(split="all", path=str(kaggle)))}

    def labels(uid):
        record = records[f"openi:{uid}"]
        return dict(zip(record.label_names, record.labels, strict=True))

    two = labels(2)
    assert {name for name, value in two.items() if value} == {"Calcified Granuloma", "Cardiomegaly"}
    assert two["Granuloma"] == 0 and labels(11)["Granuloma"] == 1
    assert set(labels(10).values()) == {-2}
    assert labels(1)["normal"] == 1
    assert records["openi:2"].attributes["mesh"] == REPORTS[2][0]


def test_both_distributions_give_the_same_records(kaggle, nlm):
    shutil.copy(kaggle / "indiana_projections.csv", nlm)
    left, right = (every(Openi(split="all", path=str(root))) for root in (kaggle, nlm))
    assert [record.id for record in right] == [record.id for record in left] + ["openi:99"]
    for a, b in zip(left, right[:-1], strict=True):
        assert (a.sections, a.labels, a.split, a.study_id) == (
            b.sections,
            b.labels,
            b.split,
            b.study_id,
        )
        assert [image.projection for image in a.images] == [image.projection for image in b.images]
        for x, y in zip(a.images, b.images, strict=True):
            np.testing.assert_array_equal(x.load(), y.load())
    assert right[0].images[0].key == "NLMCXR_png/CXR1_1_IM-0001-4001.png"
    assert right[0].attributes["mesh_automatic"] == "lungs"


def test_xml_alone_states_no_projection(nlm):
    corpus = Openi(split="all", path=str(nlm))
    first = corpus[0]
    assert [(image.projection, image.projection_source) for image in first.images] == [
        ("UNKNOWN", "")
    ] * 2
    assert [image.key[-8:] for image in first.images] == ["3001.png", "4001.png"]
    last = corpus[len(corpus) - 1]
    assert (last.id, last.images, last.sections["findings"]) == (
        "openi:99",
        (),
        "No picture & no view.",
    )
    assert any("7 records found, 3,955 in the published" in line for line in corpus.warnings)


def test_reports_without_text_or_image_are_refused_by_whoever_needs_them(nlm):
    corpus = Openi(split="all", path=str(nlm))
    assert corpus.rejects == []
    read = read_corpus("openi/all", corpus, sections=("findings", "impression"))
    assert {(reject.id, reject.reason) for reject in read.rejects} == {
        ("openi:16", "empty_report"),
        ("openi:99", "missing_image"),
    }


def test_bad_files_are_listed(nlm, kaggle):
    bomb = xml(50, "normal", {}, [], '<!DOCTYPE a [<!ENTITY b "c">]>')
    write_text(nlm / "ecgen-radiology/50.xml", bomb)
    write_text(nlm / "ecgen-radiology/51.xml", xml(51, "normal", {}, [])[:-9])
    write_text(nlm / "ecgen-radiology/52.xml", xml(12, "normal", {}, []))
    write_text(nlm / "ecgen-radiology/53.xml", "<eCitation/>")
    write_text(nlm / "ecgen-radiology/54.xml", xml(54, "normal", {}, ["CXR54_a", "CXR54_a"]))
    write_image(nlm / "NLMCXR_png/CXR54_a.png")
    corpus = Openi(split="all", path=str(nlm))
    assert [(reject.id, reject.reason) for reject in corpus.rejects] == [
        ("openi:50.xml", "bad_xml"),
        ("openi:51.xml", "bad_xml"),
        ("openi:12", "duplicate_id"),
        ("openi:53.xml", "bad_xml"),
        ("openi:54#CXR54_a", "duplicate_image"),
    ]
    assert "document type declaration" in corpus.rejects[0].detail
    assert corpus.total == 8 + 4
    with (kaggle / "indiana_projections.csv").open("a") as file:
        file.write("1,1_IM-0001-3001.dcm.png,Lateral\n77,77_x.dcm.png,Frontal\n1,short\n")
    with (kaggle / "indiana_reports.csv").open("a") as file:
        file.write("x,normal,normal,,,,,Clear.\n")
    corpus = Openi(split="all", path=str(kaggle))
    assert [(reject.id, reject.reason) for reject in corpus.rejects] == [
        ("openi:1#1_IM-0001-3001.dcm.png", "duplicate_image"),
        ("openi:indiana_projections.csv row 12", "bad_row"),
        ("openi:indiana_reports.csv row 7", "bad_row"),
        ("openi:77#77_x.dcm.png", "unknown_report"),
    ]


def test_text_without_images(kaggle):
    shutil.rmtree(kaggle / "images")
    corpus = Openi(split="all", path=str(kaggle), allow_missing_images=True)
    assert [len(record.images) for record in every(corpus)] == [0] * 6
    assert (corpus.missing_images, corpus.rejects) == (9, [])
    assert corpus[4].sections["findings"] == "Clear lungs."
    strict = Openi(split="all", path=str(kaggle))
    assert [reject.reason for reject in strict.rejects] == ["missing_image"] * 6
    assert strict.rejects[0].detail == (
        "no file 'images/images_normalized/1_IM-0001-4001.dcm.png';"
        " there is no folder 'images/images_normalized'"
    )


def test_images_are_found_in_any_folder_and_as_dicom(kaggle, nlm):
    (kaggle / "images/images_normalized").rename(kaggle / "pictures")
    assert Openi(split="all", path=str(kaggle))[0].images[0].key.startswith("pictures/1_IM")
    (nlm / "reports").mkdir()
    (nlm / "ecgen-radiology").rename(nlm / "reports/ecgen-radiology")
    for uid, report in REPORTS.items():
        for number in report[4]:
            write_text(nlm / f"NLMCXR_dcm/{uid}/{stem(uid, number)}.dcm", "")
    corpus = Openi(split="all", path=str(nlm), image_type="dcm", verify="exists")
    keys = [image.key for record in every(corpus) for image in record.images]
    assert (len(keys), keys[0], keys[3]) == (
        9,
        "NLMCXR_dcm/1/1_IM-0001-3001.dcm",
        "NLMCXR_dcm/10/10_IM-0001-1.dcm",
    )


def test_splits_divide_reports_and_no_folder_is_taken_for_another(kaggle, nlm, tmp_path):
    half = {"train": 0.5, "test": 0.5}
    parts = [Openi(split=s, path=str(kaggle), fractions=half) for s in ("train", "test")]
    assert sum(map(len, parts)) == 6 and all(map(len, parts))
    with pytest.raises(InputError, match="layout is 'xml'; choices: \"\", kaggle, nlm"):
        Openi(split="all", path=str(kaggle), layout="xml")
    with pytest.raises(InputError, match="no known distribution"):
        Openi(split="all", path=str(tmp_path / "kaggle/images"))
    shutil.copytree(nlm / "ecgen-radiology", kaggle / "ecgen-radiology")
    with pytest.raises(InputError, match="both distributions"):
        Openi(split="all", path=str(kaggle))
    assert len(Openi(split="all", path=str(kaggle), layout="kaggle")) == 6


@pytest.mark.real_data
def test_the_real_tables(real_data):
    path = real_data / "openi"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    corpus = Openi(split="all", path=str(path), allow_missing_images=True, verify="exists")
    counts = collections.Counter()
    for record in every(corpus):
        findings, impression = ("findings" in record.sections, "impression" in record.sections)
        counts.update(
            findings=findings,
            impression=impression,
            both=findings and impression,
            neither=not (findings or impression),
            normal=record.labels[0] == 1,
            cardiomegaly=record.labels[record.label_names.index("Cardiomegaly")] == 1,
        )
    assert (len(corpus), corpus.total, corpus.missing_images) == (3851, 3851, 7466)
    assert counts == {
        "findings": 3337,
        "impression": 3820,
        "both": 3331,
        "neither": 25,
        "normal": 1379,
        "cardiomegaly": 345,
    }
    assert (corpus.warnings, corpus.rejects) == ([], [])
    read = read_corpus("openi/all", corpus, sections=("findings", "impression"), allow_empty=True)
    assert collections.Counter(reject.reason for reject in read.rejects) == {
        "empty_report": 25,
        "missing_image": 3826,
    }
