"""Paths that tables state: read as meant, kept inside their root, and explained where missing."""

import pickle
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mmrl.data.reading.drafts import Draft, Facts, ImageFile
from mmrl.data.reading.listing import Listing
from mmrl.data.reading.paths import OutsideError, Root
from mmrl.data.sources.table import Table
from mmrl.types import InputError
from tests.corpus_files import every, write_csv, write_image


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("images/0.png", "images/1.PNG", nfd("röntgen bilder/fall é.png"), "a\\b.png"):
        write_image(root / name)
    return root


def table(root: Path, paths: list[str], **options: Any) -> Table:
    write_csv(root / "t.csv", ("image", "report"), [(path, "Clear.") for path in paths])
    given = {"split": "train", "fractions": (1, 0, 0), **options}
    return Table(path=str(root / "t.csv"), **given)


def test_paths_of_other_systems_are_read_and_said(folder):
    paths = {
        "images/0.png": "images/0.png",
        "./images/0.png": "./images/0.png",
        "images\\0.png": "images/0.png",
        "a\\b.png": "a\\b.png",  # a file of exactly that name
        "röntgen bilder/fall é.png": nfd("röntgen bilder/fall é.png"),
        "röntgen bilder\\fall é.png": nfd("röntgen bilder/fall é.png"),
        f"{folder}/images/0.png": "images/0.png",
        f" {folder}/images/../images/0.png ": "images/0.png",
    }
    found = table(folder, list(paths))
    assert [record.images[0].key for record in every(found)] == list(paths.values())
    assert not found.rejects and found[2].images[0].load().shape == (6, 8)
    assert found.warnings[1:] == [
        "2 paths of images: backslashes are read as separators",
        "2 paths of images: letters are composed otherwise than in the names of the files, and"
        " read as equal",
    ]


def test_composed_names_on_the_disk_are_found_too(tmp_path):
    write_image(tmp_path / "ä.png")
    assert Root(str(tmp_path)).find(nfd("ä.png")) == "ä.png"
    write_image(tmp_path / nfd("ä.png"))
    assert Root(str(tmp_path)).find(nfd("ä.png")) == nfd("ä.png")
    write_image(tmp_path / "\u212b.png")  # the sign of the unit, which is a letter in NFC
    assert Root(str(tmp_path)).find("Å.png") == "\u212b.png"


def test_masks_and_boxes_are_found_in_the_same_way(folder):
    image = "röntgen bilder\\fall é.png"
    write_image(folder / "masks" / nfd("ü.png"), 255)
    write_csv(folder / "t.csv", ("image", "mask"), [(image, "masks\\ü.png")])
    write_csv(
        folder / "boxes.csv",
        ("image", "label", "x", "y", "w", "h"),
        [(image, "m", 1, 1, 2, 2), ("/etc/passwd", "m", 1, 1, 2, 2)],
    )
    found = Table(
        split="train",
        path=str(folder / "t.csv"),
        report_columns=(),
        mask_column="mask",
        boxes=str(folder / "boxes.csv"),
        fractions=(1, 0, 0),
    )
    (record,) = every(found)
    assert record.masks is not None and record.masks()["mask"].all()
    assert [box.label for box in record.boxes] == ["m"]
    assert [reject.reason for reject in found.rejects] == ["unknown_image"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("images/0.PNG", "there is 'images/0.png', with other capital letters"),
        ("IMAGES\\1.png", "there is 'images/1.PNG', with other capital letters"),
        ("images/0.jpg", "there is 'images/0.png', with another suffix"),
        ("images/0", "there is 'images/0.png', with another suffix"),
        ("'images/0.png'", "there is 'images/0.png', as written without quotes and file://"),
        ("file://images/0.png", "there is 'images/0.png', as written without quotes and file://"),
        ("data/images/0.png", "there is 'images/0.png', without the folder 'data'"),
        ("0.png", "there is 'images/0.png'; data.root states the folder"),
        ("t.csv/0.png", "there is 'images/0.png'; data.root states the folder"),
        ("above/0.png", "there is such a file in the folder above; data.root states the folder"),
        ("C:\\images\\0.png", "it is an absolute path of Windows; expected a path relative to"),
        ("gone.png", "it is a link to 'nothing.png', which is not there"),
        ("images", "it is a folder"),
        ("scans/7.png", "there is no folder 'scans'"),
        ("images/7.png", ""),
    ],
)
def test_a_missing_file_is_explained_by_what_is_near(folder, given, meant):
    (folder / "gone.png").symlink_to("nothing.png")
    write_image(folder.parent / "above/0.png")
    if given.startswith("above"):
        (folder / "images/0.png").rename(folder / "images/2.png")
    found = table(folder, ["images/1.PNG", given])
    (reject,) = found.rejects
    words = f"row 2: no file '{given}'" + (f"; {meant}" if meant else "")
    assert reject.reason == "missing_image" and reject.detail.startswith(words)


def test_only_the_first_missing_files_are_explained(folder):
    found = table(folder, ["images/0.PNG"] * 30)
    assert sum("capital" in reject.detail for reject in found.rejects) == 20


# --- links


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """As a Hugging Face cache: a snapshot of links into the folder of blobs."""
    snapshot = tmp_path / "snapshots/1"
    snapshot.mkdir(parents=True)
    for number in range(3):
        write_image(tmp_path / f"blobs/{number}.png", number)
        (snapshot / f"{number}.png").symlink_to(f"../../blobs/{number}.png")
    write_image(tmp_path / "secret/3.png")
    return tmp_path


def test_links_are_followed_into_the_stated_folders_alone(cache):
    root, names = cache / "snapshots/1", [f"{number}.png" for number in range(3)]
    with pytest.raises(InputError) as caught:
        table(root, names)
    assert str(caught.value) == (
        f"{root}/t.csv row 1: image path '0.png' leads outside root '{root}' by a symbolic link,"
        f" to '{cache}/blobs/0.png'; data.follow_links={cache}/blobs allows links into that folder"
    )
    found = table(root, names, follow_links=str(cache / "blobs"))
    assert [record.images[0].load()[0, 0] for record in every(found)] == [0, 1, 2]
    (root / "3.png").symlink_to("../../secret/3.png")
    (root / "deep").symlink_to("../../secret")
    for escape in ("3.png", "deep/3.png", f"{root}/3.png", "deep\\3.png"):
        with pytest.raises(InputError, match=r"leads outside root .* by a symbolic link, to "):
            table(root, [*names, escape], follow_links=(str(cache / "blobs"),))
    for escape in ("../../blobs/0.png", str(cache / "blobs/0.png")):  # no link
        with pytest.raises(InputError, match=r"leads outside root .*; expected a path inside it"):
            table(root, [*names, escape], follow_links=(str(cache / "blobs"),))
    with pytest.raises(InputError, match=r"data\.follow_links: 'none' is not a folder"):
        table(root, names, follow_links="none")


class Toy(Listing):
    facts = Facts("toy", "", "CC0")

    def scan(self):
        for name in ("0.png", "1.png", "2.PNG"):
            yield Draft(name, images=(ImageFile(name),), sections={"full": name})


def test_corpora_of_others_follow_the_same_links(cache):
    path = str(cache / "snapshots/1")
    toy = Toy(split="all", path=path)
    assert [reject.reason for reject in toy.rejects] == [
        "unsafe_path",
        "unsafe_path",
        "missing_image",
    ]
    assert "by a symbolic link, to" in toy.rejects[0].detail
    assert toy.rejects[2].detail == "no file '2.PNG'; there is '2.png', with other capital letters"
    followed = Toy(split="all", path=path, follow_links=(str(cache / "blobs"),))
    assert [record.images[0].load()[0, 0] for record in every(followed)] == [0, 1]


def test_a_root_pickles_without_what_it_found(folder):
    root = Root(str(folder), str(folder))
    root.find("röntgen bilder/fall é.png")
    copy = pickle.loads(pickle.dumps(root))
    assert copy.path == root.path and not copy.read_as
    assert len(pickle.dumps(root)) < 300
    with pytest.raises(OutsideError, match="leads outside root"):
        copy.find("../x.png")
