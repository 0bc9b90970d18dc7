"""ROCO v1: its layout, its articles, and the part of it that is at hand."""

import collections
import pickle

import pytest

from mmrl.data.sources.roco import Roco
from mmrl.types import InputError
from tests.corpus_files import every, write_image, write_lines

PARTS = {
    # Two figures of article 11 in different parts, as the owner divided them.
    "train/radiology": [
        ("ROCO_00001", " Axial MRI (coronal view).", "PMC11_a-g01.jpg", "CC BY"),
        ("ROCO_00002", " Cardiomegaly", "PMC12_b-g01.jpg", "NO-CC CODE"),
        ("ROCO_00003", " ", "PMC13_c-g01.jpg", "CC BY"),
    ],
    "validation/radiology": [
        ("ROCO_00004", " Röntgen \u2028of the “chest”\x0b → mass", "PMC14_d-g02.jpg", "CC BY-NC"),
    ],
    "test/radiology": [("ROCO_00005", " Second figure.", "PMC11_a-g02.jpg", "CC BY")],
    "test/non-radiology": [("ROCO_00006", " A flow chart.", "PMC11_a-g03.jpg", "CC BY")],
}


@pytest.fixture
def folder(tmp_path):
    for part, figures in PARTS.items():
        base = tmp_path / "data" / part
        write_lines(base / "captions.txt", *(f"{f[0]}\t{f[1]}" for f in figures))
        rows = (",".join((f[0], f[2], f[3])) for f in figures)
        write_lines(base / "licences.txt", "ROCO_ID,PMC_ID,CC", *rows)
        write_lines(base / "keywords.txt", *(f"{f[0]}\t\taxial\tmri" for f in figures))
        write_lines(base / "cuis.txt", *(f"{f[0]}\t" for f in figures))
        write_lines(
            base / "semtypes.txt", *(f"{f[0]}\tT060\tDiagnostic Procedure" for f in figures)
        )
        for figure in figures:
            write_image(base / "images" / f"{figure[0]}.jpg", int(figure[0][-1]))
    return tmp_path


def test_records_hold_caption_article_and_licence(folder):
    corpus = pickle.loads(pickle.dumps(Roco(split="all", path=str(folder))))
    records = every(corpus)
    assert [record.id for record in records] == [
        "roco:ROCO_00001",
        "roco:ROCO_00002",
        "roco:ROCO_00004",
        "roco:ROCO_00005",
    ]
    first, second, third, fourth = records
    assert first.sections == {"caption": "Axial MRI (coronal view)."}  # without its leading blank
    assert second.sections == {"caption": "Cardiomegaly"}
    assert third.sections == {"caption": "Röntgen \u2028of the “chest”\x0b → mass"}
    assert [r.license for r in records] == ["CC BY", "NO-CC CODE", "CC BY-NC", "CC BY"]
    assert [r.leakage_unit for r in records] == ["PMC11", "PMC12", "PMC14", "PMC11"]
    assert first.study_id != fourth.study_id
    assert first.attributes == {
        "figure": "PMC11_a-g01.jpg",
        "keywords": "axial; mri",
        "semantic_types": "T060; Diagnostic Procedure",
        "subset": "radiology",
    }
    assert first.images[0].key == "data/train/radiology/images/ROCO_00001.jpg"
    assert first.images[0].load().shape == (6, 8, 3)
    assert [(r.id, r.reason) for r in corpus.rejects] == [("roco:ROCO_00003", "empty_report")]
    assert corpus.total == 5 and Roco.facts.namespace == "pmc"
    assert any("4 records found, 81,807 in the published" in line for line in corpus.warnings)


def test_articles_are_divided_whole_unless_the_owners_split_is_asked_for(folder):
    whole = {s: every(Roco(split=s, path=str(folder))) for s in ("train", "val", "test")}
    assert sum(map(len, whole.values())) == 4
    assert [sum(r.leakage_unit == "PMC11" for r in records) for records in whole.values()] in (
        [2, 0, 0],
        [0, 2, 0],
        [0, 0, 2],
    )
    theirs = Roco(split="all", path=str(folder), official_split=True)
    assert [r.split for r in every(theirs)] == ["train", "train", "val", "test"]
    assert any(
        "puts 1 leakage units (patients or articles) into more" in w for w in theirs.warnings
    )
    assert not any("into more than one" in w for w in Roco(split="all", path=str(folder)).warnings)


def test_subsets(folder):
    other = Roco(split="all", path=str(folder), subset="non-radiology")
    assert [r.attributes["subset"] for r in every(other)] == ["non-radiology"]
    assert not any("published" in line for line in other.warnings)
    assert len(Roco(split="all", path=str(folder), subset="all")) == 5
    with pytest.raises(InputError, match="subset 'ct'; choices: radiology, non-radiology, all"):
        Roco(split="all", path=str(folder), subset="ct")


def test_text_is_kept_without_images(folder):
    for image in folder.rglob("*.jpg"):
        image.unlink()
    corpus = Roco(split="all", path=str(folder), allow_missing_images=True)
    assert [bool(r.sections["caption"]) and not r.images for r in every(corpus)] == [True] * 4
    assert corpus.missing_images == 4
    assert {r.reason for r in Roco(split="all", path=str(folder)).rejects} == {
        "missing_image",
        "empty_report",
    }


def test_rows_that_do_not_fit_are_listed(folder):
    base = folder / "data/train/radiology"
    with (base / "captions.txt").open("ab") as file:
        file.write(b"ROCO_00007 no tab\n\tno id\nROCO_00008\t\xff\nROCO_00001\tAgain.\n")
        file.write(
            b"../../../../../out\tOutside.\nROCO_00009\tFrom the address.\nROCO_00010\tNo article."
        )
    with (base / "licences.txt").open("a") as file:
        file.write('ROCO_00020,PMC1_a.jpg\nROCO_00021,"PMC\nROCO_00001,PMC99_x.jpg,CC0\n')
    write_lines(base / "dlinks.txt", "ROCO_00009\twget ftp://host/oa/48/07/PMC4240561.tar.gz -r\t")
    corpus = Roco(split="all", path=str(folder), allow_missing_images=True)
    assert [(r.id.partition(":")[2], r.reason) for r in corpus.rejects] == [
        ("ROCO_00003", "empty_report"),
        ("data/train/radiology/captions.txt line 4", "bad_row"),
        ("data/train/radiology/captions.txt line 5", "bad_row"),
        ("data/train/radiology/captions.txt line 6", "bad_row"),
        ("ROCO_00001", "duplicate_id"),
        ("../../../../../out", "unsafe_path"),
    ]
    (warning,) = [line for line in corpus.warnings if "lines of" in line]
    assert "3 lines of data/train/radiology/licences.txt are not used" in warning
    assert warning.endswith("line 5: 2 fields of 3")
    records = {record.id[5:]: record for record in every(corpus)}
    assert records["ROCO_00001"].license == "CC BY"
    assert (records["ROCO_00009"].leakage_unit, records["ROCO_00009"].license) == (
        "PMC4240561",
        "not stated",
    )
    assert not records["ROCO_00010"].leakage_unit_known
    assert any("2 figures of 'data/train/radiology' have no article" in w for w in corpus.warnings)


def test_one_part_alone(folder):
    corpus = Roco(split="all", path=str(folder / "data/train/radiology"))
    assert [(r.id, r.split_official) for r in every(corpus)] == [
        ("roco:ROCO_00001", "none"),
        ("roco:ROCO_00002", "none"),
    ]
    assert every(corpus)[0].images[0].key == "images/ROCO_00001.jpg"
    with pytest.raises(InputError, match="so its subset is unknown"):
        Roco(split="all", path=str(folder / "data/train/radiology"), subset="all")
    with pytest.raises(InputError, match=r"no captions.txt in .* nor in data/"):
        Roco(split="all", path=str(folder / "data/train/radiology/images"))
    (folder / "data/train/radiology/licences.txt").write_text("a,b\n")
    with pytest.raises(InputError, match="no column ROCO_ID, PMC_ID, CC in its first line"):
        Roco(split="all", path=str(folder))


@pytest.mark.real_data
def test_real_captions(real_data):
    path = real_data / "roco"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    corpus = Roco(split="all", path=str(path), allow_missing_images=True)
    records = every(corpus)
    assert (len(records), corpus.total, corpus.rejects) == (8_179, 8_179, [])
    assert collections.Counter(record.license for record in records) == {
        "CC BY": 3_442,
        "CC BY-NC-SA": 1_501,
        "CC BY-NC": 1_305,
        "CC BY-NC-ND": 973,
        "NO-CC CODE": 938,
        "CC BY-ND": 9,
        "CC BY-SA": 7,
        "CC0": 4,
    }
    assert len({record.leakage_unit for record in records}) == 7_404
    words = sorted(len(record.sections["caption"].split()) for record in records)
    assert (words[-1], words[len(words) // 2]) == (207, 16)
    splits = collections.defaultdict(set)
    for record in records:
        splits[record.leakage_unit].add(record.split)
    assert max(map(len, splits.values())) == 1
