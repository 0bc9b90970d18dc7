"""Quilt-1M: captions of one image, list columns, videos, filters, images of every mode."""

import pickle

import numpy as np
import pytest

from mmrl.data.reading.rows import CellError
from mmrl.data.sources.quilt1m import Quilt1m, literal_text
from mmrl.types import InputError
from tests.corpus_files import every, write_csv, write_image

UUID = "0b5f1a52-0000-4000-8000-00000000000"
A, B, C = f"a_B-c_image_{UUID}1.jpg", f"a_B-c_image_{UUID}2.jpg", f"zz_image_{UUID}3.jpg"
HEADER = (
    "",
    "caption",
    "image_path",
    "subset",
    "split",
    "pathology",
    "roi_text",
    "noisy_text",
    "med_umls_ids",
    "magnification",
    "height",
    "width",
    "not_histology",
)
ROWS = [
    (0, "Glands, “crowded”.", A, "quilt", "train", "['Skin', \"Crohn's\"]", "['a', 'b']"),
    (1, "The same glands again.", A, "quilt", "train", "['Skin']", "[]"),
    (2, "Stroma.", B, "quilt", "val", "Renal", ""),
    (3, "A face.", C, "quilt", "train", "[]", "[]"),
    (4, " ", C, "quilt", "train", "[]", "[]"),
    (5, "Torn list.", C, "quilt", "train", "['Skin', ", "[]"),
    (6, "Code.", C, "quilt", "train", "[__import__('os').getcwd()]", "[]"),
    (7, "Gone.", f"zz_image_{UUID}4.jpg", "quilt", "train", "[]", "[]"),
    (8, "From an article.", "PMC42_fig1.jpg", "pubmed", "", "", ""),
    (9, "From a page.", "tweet_7.png", "openpath", "", "", ""),
    (10, "Split of no name.", C, "quilt", "holdout", "[]", "[]"),
]


@pytest.fixture
def folder(tmp_path):
    rows = [
        (*row, "said", "[['C0001', 'C0002'], []]", 1.0, 6, 8, "1.0" if row[0] == 3 else "0")
        for row in ROWS
    ]
    write_csv(tmp_path / "quilt_1M_lookup.csv", HEADER, rows)
    rgba = np.zeros((6, 8, 4), np.uint8)
    rgba[:, :4] = (255, 0, 0, 255)  # blue, opaque; the right half is transparent
    write_image(tmp_path / "images" / A, rgba)
    for name in (B, C, "PMC42_fig1.jpg", "tweet_7.png"):
        write_image(tmp_path / "images" / name, np.full((6, 8, 3), 90, np.uint8))
    return tmp_path


def test_each_caption_is_a_record_of_its_image(folder):
    corpus = pickle.loads(pickle.dumps(Quilt1m(split="all", path=str(folder))))
    records = every(corpus)
    assert [(r.id, r.study_id, r.leakage_unit, r.split_official) for r in records] == [
        (f"quilt1m:{A}/0", A, "a_B-c", "train"),
        (f"quilt1m:{A}/1", A, "a_B-c", "train"),
        (f"quilt1m:{B}/0", B, "a_B-c", "val"),
        ("quilt1m:PMC42_fig1.jpg/0", "PMC42_fig1.jpg", "PMC42", "none"),
        ("quilt1m:tweet_7.png/0", "tweet_7.png", "tweet_7.png", "none"),
    ]
    assert [r.sections["caption"] for r in records[:2]] == [
        "Glands, “crowded”.",
        "The same glands again.",
    ]
    assert records[0].attributes == {
        "magnification": "1.0",
        "med_umls_ids": "C0001; C0002",
        "pathology": "Skin; Crohn's",
        "roi_text": "a; b",
        "subset": "quilt",
    }
    assert records[2].attributes["pathology"] == "Renal"
    assert [r.aliases for r in records] == [(), (), (), ("pmc:PMC42",), ()]
    assert records[0].license == "research use on request" and records[0].access == "click"
    assert any("5 records found, 1,017,712 in the published" in w for w in corpus.warnings)
    assert any("1 images are of no known video or article" in w for w in corpus.warnings)


def test_what_is_refused(folder):
    corpus = Quilt1m(split="all", path=str(folder))
    assert [(r.id.partition(":")[2], r.reason) for r in corpus.rejects] == [
        (f"{C}/0", "not_histology"),
        (f"{C}/1", "empty_report"),
        (f"{C}/2", "bad_row"),
        (f"{C}/3", "bad_row"),
        (f"{C}/4", "bad_row"),
        (f"zz_image_{UUID}4.jpg/0", "missing_image"),
    ]
    details = {reject.id: reject.detail for reject in corpus.rejects}
    assert details[f"quilt1m:{C}/2"].startswith("row 6: \"['Skin',\" is no list of texts")
    assert "split 'holdout'; expected train, val, test or blank" in details[f"quilt1m:{C}/4"]
    assert corpus.total == len(ROWS)
    kept = Quilt1m(split="all", path=str(folder), keep_not_histology=True)
    assert [r.sections["caption"] for r in every(kept)][3] == "A face."


def test_opacity_is_composed_over_black(folder):
    def first(**options):
        return every(Quilt1m(split="all", path=str(folder), **options))[0].images[0].load()

    colours, image = first(), first(channels=1)
    assert colours.dtype == image.dtype == np.uint8 and colours.shape == (6, 8, 3)
    assert (colours[:, :4] == (0, 0, 255)).all() and not colours[:, 4:].any()
    np.testing.assert_array_equal(image, np.repeat([[29] * 4 + [0] * 4], 6, axis=0))  # 0.114 * 255


def test_videos_divided_by_the_owner_are_told_and_divided_whole_by_hash(folder):
    theirs = Quilt1m(split="all", path=str(folder))
    assert any("puts 1 leakage units" in line for line in theirs.warnings)
    ours = [
        every(Quilt1m(split=s, path=str(folder), official_split=False))
        for s in ("train", "val", "test")
    ]
    assert sorted(sum(r.leakage_unit == "a_B-c" for r in part) for part in ours) == [0, 0, 3]


def test_text_is_kept_without_images_and_columns_may_lack(folder):
    for image in (folder / "images").iterdir():
        image.unlink()
    header = ("Unnamed: 0", "image_path", "caption")
    write_csv(folder / "quilt_1M_lookup.csv", header, [(0, A, "Glands."), (1, "../x.jpg", "Out.")])
    corpus = Quilt1m(split="all", path=str(folder), allow_missing_images=True)
    (record,) = every(corpus)
    assert (record.sections, record.images, record.attributes) == ({"caption": "Glands."}, (), {})
    assert [reject.reason for reject in corpus.rejects] == ["unsafe_path"]
    write_csv(folder / "quilt_1M_lookup.csv", ("image_path",), [(A,)])
    with pytest.raises(InputError, match="no column 'caption'; present: 'image_path'"):
        Quilt1m(split="all", path=str(folder))
    (folder / "quilt_1M_lookup.csv").unlink()
    with pytest.raises(InputError, match=r"none of quilt_1M_lookup\.csv, "):
        Quilt1m(split="all", path=str(folder))


@pytest.mark.parametrize(
    "cell",
    [
        "[" * 60_000,
        "[" * 80 + "]" * 80,
        "[" + "-" * 60_000 + "1]",
        "[" + "1+" * 30_000 + "1j]",
        "[" + "9" * 60_000 + "]",
        "['" + "a" * 70_000 + "']",
        r"['\ud800']",
        "['a', nan]",
        "[\0]",
        "[b'bytes']",
        "[f'{x}']",
    ],
    ids=lambda cell: cell[:5].encode("unicode_escape").decode(),
)
def test_hostile_literals_are_refused(cell):
    with pytest.raises(CellError, match=r"list|unpaired|bytes"):
        literal_text(cell)


def test_literals():
    assert literal_text(r"['a\d', 1, 2.5, ['  b  c', ['']]]") == r"a\d; 1; 2.5; b c"
    assert literal_text("plain [text]") == "plain [text]"
