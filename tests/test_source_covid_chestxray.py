"""The COVID-19 image data collection as it is distributed, on synthetic files."""

from pathlib import Path

import numpy as np
import pytest

from mmrl.data.sources.covid_chestxray import CovidChestxray
from mmrl.types import InputError
from tests.corpus_files import check_promises, records_of, write_csv, write_image

HEADER = [
    *("patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "intubated"),
    *("intubation_present", "went_icu", "in_icu", "needed_supplemental_O2", "extubated"),
    *("temperature", "pO2_saturation", "leukocyte_count", "neutrophil_count", "lymphocyte_count"),
    *("view", "modality", "date", "location", "folder", "filename", "doi", "url", "license"),
    *("clinical_notes", "other_notes", ""),
]


def row(filename: str, patient: object, finding: str, **cells: object) -> list:
    given = {"modality": "X-ray", "folder": "images", "view": "PA", "date": "2020", **cells}
    given |= {"filename": filename, "patientid": patient, "finding": finding}
    return [given.get(name, "") for name in HEADER]


ROWS = [
    row("b.JPG", 2, "Pneumonia/Viral/COVID-19", offset=5, sex="M", age=65, license="CC BY 4.0"),
    row("a.jpeg", 2, "Pneumonia/Viral/COVID-19", offset=3, view="AP Supine", clinical_notes="Sé."),
    row("l.png", 2, "Pneumonia/Viral/COVID-19", offset=5, view="L", other_notes="Second view."),
    row("c.png", "COVID-00003a", "No Finding", age="50+", view=""),
    row("d.png", "COVID-00004", "todo", location="Somewhere"),
    row("e.png", 5, "Pneumonia", url="https://example.org/e"),
    row("ct.png", 2, "Pneumonia/Viral/COVID-19", offset=0, modality="CT", view="Axial"),
    row("cor.png", 6, "Unknown", view="Coronal", modality=""),
    row("volume.nii.gz", 6, "Tuberculosis", modality="CT", folder="volumes"),
    row("f.png", 7, "Pneumonia/Dragon", offset="x"),
    row("g.png", 8, "No Finding, Pneumonia"),
    row("", 9, "Pneumonia"),
]


def write_corpus(root: Path) -> Path:
    write_csv(root / "metadata.csv", HEADER, ROWS)
    for name in ("a.jpeg", "b.JPG", "c.png", "d.png", "e.png", "f.png", "l.png", "ct.png"):
        write_image(root / f"images/{name}", np.full((8, 8), 7, np.uint8))
    return root


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


def labels_of(record) -> dict[str, int]:
    return dict(zip(record.label_names, record.labels, strict=True))


def test_rows_become_records(corpus):
    records = records_of(CovidChestxray(split="all", path=str(corpus)))
    assert list(records) == ["b.JPG", "a.jpeg", "l.png", "c.png", "d.png", "e.png", "f.png"]
    assert [record.leakage_unit for record in records.values()] == [
        *("2", "2", "2", "COVID-00003a", "COVID-00004", "5", "7")
    ]
    assert [record.images[0].projection for record in records.values()][:4] == [
        *("PA", "AP", "LATERAL", "UNKNOWN")
    ]
    assert records["c.png"].images[0].projection_source == ""
    assert records["a.jpeg"].sections == {"full": "Sé."} and records["b.JPG"].sections == {}
    assert records["b.JPG"].images[0].load().shape == (8, 8)
    assert [record.license for record in records.values()][:2] == ["CC BY 4.0", ""]
    assert not records["b.JPG"].redistributable
    assert records["c.png"].attributes == {"age": "50+", "finding": "No Finding"}
    assert records["e.png"].attributes["url"] == "https://example.org/e"
    assert records["l.png"].attributes["other_notes"] == "Second view."
    # Neither the date nor the place of a patient.
    assert records["d.png"].attributes == {"finding": "todo"}


def test_offsets_give_time_and_studies(corpus):
    records = records_of(CovidChestxray(split="all", path=str(corpus)))
    assert {name: record.time for name, record in records.items()} == {
        "a.jpeg": 0,  # the CT of day 0 is no record and does not count
        "b.JPG": 2 * 86400,
        "l.png": 2 * 86400,
        "c.png": None,
        "d.png": None,
        "e.png": None,
        "f.png": None,
    }
    assert records["b.JPG"].study_id == records["l.png"].study_id == "2/5"
    assert records["a.jpeg"].study_id == "2/3"
    assert records["c.png"].study_id == "COVID-00003a/c.png"


def test_a_path_labels_what_it_goes_through(corpus):
    records = records_of(CovidChestxray(split="all", path=str(corpus)))
    covid = labels_of(records["b.JPG"])
    assert {name for name, value in covid.items() if value == 1} == {
        *("Pneumonia", "Viral", "COVID-19")
    }
    assert set(covid.values()) == {0, 1}  # the path says which kind, so the others are absent
    normal = labels_of(records["c.png"])
    assert normal.pop("No Finding") == 1 and set(normal.values()) == {0}
    assert set(records["d.png"].labels) == {-2}
    pneumonia = labels_of(records["e.png"])
    assert pneumonia["Pneumonia"] == 1
    assert {name for name, value in pneumonia.items() if value == 0} == {
        *("No Finding", "Tuberculosis", "ARDS")
    }
    assert pneumonia["Viral"] == pneumonia["MRSA"] == -2
    assert len(set(pneumonia)) == 27


def test_what_is_no_radiograph_is_refused(corpus):
    source = CovidChestxray(split="all", path=str(corpus))
    assert [(reject.id.partition(":")[2], reject.reason) for reject in source.rejects] == [
        ("ct.png", "not_radiograph"),
        ("cor.png", "not_radiograph"),
        ("volume.nii.gz", "not_radiograph"),
        ("g.png", "bad_label"),
        ("metadata.csv row 12", "bad_row"),
    ]
    assert source.total == 12
    assert source.rejects[0].detail == "modality 'CT', view 'Axial'"
    (warning,) = source.warnings
    assert warning.endswith("findings without a label: Dragon (1)")
    unknown = labels_of(records_of(source)["f.png"])
    assert (unknown["Pneumonia"], unknown["ARDS"], unknown["No Finding"]) == (1, -2, 0)


def test_early_snapshots_read_the_same(tmp_path):
    header = "Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url"
    write_csv(
        tmp_path / "metadata.csv",
        [*header.split(","), "license", "notes"],
        [
            ["1", " ", "", "", "COVID-19", "", "PA", "2019", "", "a.jpg", "", "u", "", "Old note."],
            ["3", "4", "M", "74", "COVID-19, ARDS", "N", "AP", "2004", "", "b.jpg", *[""] * 4],
            ["3", "9", "M", "74", "SARS", "N", "CT", "2004", "", "c.jpg", *[""] * 4],
            [
                "4",
                "",
                "",
                "",
                "Mycoplasma Bacterial Pneumonia",
                "",
                "L",
                "",
                "",
                "d.jpg",
                *[""] * 4,
            ],
        ],
    )
    for name in "abcd":
        write_image(tmp_path / f"images/{name}.jpg", np.full((8, 8), 7, np.uint8))
    source = CovidChestxray(split="all", path=str(tmp_path))
    records = records_of(source)
    assert list(records) == ["a.jpg", "b.jpg", "d.jpg"] and not source.warnings
    assert [reject.reason for reject in source.rejects] == ["not_radiograph"]
    first = records["a.jpg"]
    assert (first.patient_id, first.sections) == ("1", {"full": "Old note."})
    assert first.attributes == {"finding": "COVID-19", "url": "u"}
    labels = labels_of(first)
    assert (labels["COVID-19"], labels["SARS"], labels["Bacterial"]) == (1, 0, 0)
    assert (labels["Viral"], labels["Pneumonia"]) == (-2, -2)  # a name says nothing of them
    labels = labels_of(records["b.jpg"])
    assert (labels["COVID-19"], labels["ARDS"], records["b.jpg"].time) == (1, 1, 0)


def test_promises(corpus):
    check_promises(CovidChestxray, corpus)
    with pytest.raises(InputError, match="no column 'filename'"):
        write_csv(corpus / "metadata.csv", ["patientid", "finding"], [[1, "Pneumonia"]])
        CovidChestxray(split="all", path=str(corpus))


def test_text_comes_without_images(corpus):
    for image in (corpus / "images").iterdir():
        image.unlink()
    source = CovidChestxray(split="all", path=str(corpus), allow_missing_images=True)
    records = records_of(source)
    assert records["a.jpeg"].sections == {"full": "Sé."} and records["a.jpeg"].images == ()
    assert source.missing_images == 7


def test_an_early_name_stands_for_its_path(tmp_path):
    row = ["4", "Mycoplasma Bacterial Pneumonia", "d.jpg"]
    write_csv(tmp_path / "metadata.csv", ["Patientid", "finding", "filename"], [row])
    source = CovidChestxray(split="all", path=str(tmp_path), allow_missing_images=True)
    labels = labels_of(source[0])
    assert {name for name, value in labels.items() if value == 1} == {
        *("Pneumonia", "Bacterial", "Mycoplasma")
    }
    assert (labels["Viral"], labels["Klebsiella"]) == (0, 0)
