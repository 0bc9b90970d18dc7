"""PMC-OA: both tables, licences joined by article, captions that are empty."""

import pickle

import pytest

from mmrl.data.sources.pmc_oa import PmcOa
from mmrl.types import InputError
from tests.corpus_files import every, write_csv, write_image, write_jsonl

IMAGES = "caption_T060_filtered_top4_sep_v0_subfigures"
FIGURES = [
    ("PMC212319_Fig3_4.jpg", "A. Coronal view.", "exact", 0.75),
    ("PMC212319_Fig3_5.jpg", " B. Röntgen. ", "fuzzy", None),
    ("PMC29_Fig1_1.jpg", "", "exact", 1),
    ("PMC29_Fig1_2.jpg", None, "exact", 1),
    ("PMC29_Fig1_3.jpg", "Gone.", "exact", 1),
    ("figure_of_no_article.jpg", "A mass.", "exact", 1),
]


@pytest.fixture
def folder(tmp_path):
    names = ("image", "caption", "alignment_type", "alignment_score")
    write_jsonl(tmp_path / "pmc_oa.jsonl", [dict(zip(names, f, strict=True)) for f in FIGURES])
    for figure in FIGURES:
        if figure[1] != "Gone.":
            write_image(tmp_path / IMAGES / figure[0], 9)
    return tmp_path


def test_records_and_refused_captions(folder):
    corpus = pickle.loads(pickle.dumps(PmcOa(split="all", path=str(folder))))
    records = every(corpus)
    assert [(r.id, r.leakage_unit, r.leakage_unit_known) for r in records] == [
        ("pmc_oa:PMC212319_Fig3_4.jpg", "PMC212319", True),
        ("pmc_oa:PMC212319_Fig3_5.jpg", "PMC212319", True),
        ("pmc_oa:figure_of_no_article.jpg", "figure_of_no_article.jpg", False),
    ]
    assert records[0].split == records[1].split and records[0].study_id != records[1].study_id
    assert [r.sections["caption"] for r in records] == [
        "A. Coronal view.",
        "B. Röntgen.",
        "A mass.",
    ]
    assert records[0].attributes == {"alignment_type": "exact", "alignment_score": "0.75"}
    assert records[1].attributes == {"alignment_type": "fuzzy"}
    assert records[0].images[0].load().shape == (6, 8, 3)
    assert records[0].license == "not stated" and PmcOa.facts.namespace == "pmc"
    assert [(r.id, r.reason) for r in corpus.rejects] == [
        ("pmc_oa:PMC29_Fig1_1.jpg", "empty_report"),
        ("pmc_oa:PMC29_Fig1_2.jpg", "empty_report"),
        ("pmc_oa:PMC29_Fig1_3.jpg", "missing_image"),
    ]
    assert corpus.total == 6
    assert any("names of 1 images do not begin with their article" in w for w in corpus.warnings)


def test_text_is_kept_without_images_and_articles_undivided(folder):
    parts = [
        PmcOa(split=split, path=str(folder), allow_missing_images=True)
        for split in ("train", "val", "test")
    ]
    records = [record for part in parts for record in every(part)]
    assert len(records) == 4
    assert [r.images for r in records if r.sections["caption"] == "Gone."] == [()]
    split_of = {(r.leakage_unit, r.split) for r in records}
    assert len(split_of) == len({group for group, _ in split_of})


@pytest.mark.parametrize("below", ["images/" + IMAGES, "images", "."])
def test_beta_and_other_image_folders(folder, below):
    (folder / "pmc_oa.jsonl").unlink()
    beta = [{"image": f"PMC7_Fig{n}.jpg", "caption": f"Figure {n}."} for n in (2, 1)]
    write_jsonl(folder / "pmc_oa_beta.jsonl", beta)
    for file in (folder / IMAGES).iterdir():
        file.unlink()
    (folder / IMAGES).rmdir()
    for row in beta:
        write_image(folder / below / row["image"])
    records = every(PmcOa(split="all", path=str(folder)))
    assert [r.id for r in records] == ["pmc_oa:PMC7_Fig2.jpg", "pmc_oa:PMC7_Fig1.jpg"]
    assert [r.attributes for r in records] == [{}, {}]
    with pytest.raises(InputError, match=r"none of pmc_oa\.jsonl in"):
        PmcOa(split="all", path=str(folder), table="pmc_oa.jsonl")
    with pytest.raises(InputError, match=r"table 'x'; choices: pmc_oa\.jsonl, "):
        PmcOa(split="all", path=str(folder), table="x")


def test_licences_are_joined_by_article(folder):
    header = ("File", "Article Citation", "Accession ID", "PMID", "License")
    rows = [
        ("a.tar.gz", "J. 2003", "PMC212319", "1", "CC BY"),
        ("b.tar.gz", "J. 2004", "PMC212319", "1", "CC0"),
        ("c.tar.gz", "J. 2004", "PMC555", "1", "CC BY-NC"),
        ("short",),
    ]
    write_csv(folder / "oa_file_list.csv", header, rows)
    corpus = PmcOa(split="all", path=str(folder), licenses="oa_file_list.csv")
    assert [r.license for r in every(corpus)] == ["CC BY", "CC BY", "not stated"]
    (warning,) = [line for line in corpus.warnings if "are not used" in line]
    assert "2 rows of oa_file_list.csv" in warning
    assert warning.endswith("row 2: PMC212319 differs from an earlier row")
    write_csv(folder / "newer.csv", ("AccessionID", "License"), [("PMC212319", "CC BY-ND")])
    newer = PmcOa(split="all", path=str(folder), licenses=str(folder / "newer.csv"))
    assert every(newer)[0].license == "CC BY-ND"
    write_csv(folder / "wrong.csv", ("a", "License"), [("PMC212319", "CC BY-ND")])
    with pytest.raises(InputError, match="none of the columns accession id, accessionid, pmc_id"):
        PmcOa(split="all", path=str(folder), licenses="wrong.csv")
    with pytest.raises(InputError, match="no such table"):
        PmcOa(split="all", path=str(folder), licenses="gone.csv")


def test_lines_that_do_not_fit_are_listed(folder):
    with (folder / "pmc_oa.jsonl").open("a") as file:
        file.write('{"image": "PMC1_a.jpg", "cap\n[1]\n{"image": ["x"], "caption": "List."}\n')
        file.write('{"image": "\\ud800.jpg", "caption": "No character."}\n{"caption": "None."}\n')
        file.write('{"image": "../PMC1_b.jpg", "caption": "Outside."}\n')
        file.write('{"image": "PMC212319_Fig3_4.jpg", "caption": "Again."}\n')
    corpus = PmcOa(split="all", path=str(folder))
    assert len(corpus) == 3
    assert [(r.id.partition(":")[2], r.reason) for r in corpus.rejects[2:]] == [
        ("pmc_oa.jsonl row 7", "bad_row"),
        ("pmc_oa.jsonl row 8", "bad_row"),
        ("pmc_oa.jsonl row 9", "bad_row"),
        ("pmc_oa.jsonl row 10", "bad_row"),
        ("pmc_oa.jsonl row 11", "bad_row"),
        ("PMC212319_Fig3_4.jpg", "duplicate_id"),
        ("PMC29_Fig1_3.jpg", "missing_image"),
        ("../PMC1_b.jpg", "unsafe_path"),
    ]
