"""MedMNIST as it is distributed, on synthetic archives."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mmrl.data.sources import medmnist
from mmrl.data.sources.medmnist import Medmnist
from mmrl.types import InputError
from tests.corpus_files import check_promises, records_of

SPLITS = ("train", "val", "test")


def arrays(*, colour: bool = False, columns: int = 1, side: int = 28) -> dict[str, np.ndarray]:
    """Four images a split; level 10 * position, and 100 more where it is not train."""
    held = {}
    for split in SPLITS:
        level = 10 * np.arange(4, dtype=np.uint8) + 100 * (split != "train")
        shape = (4, side, side, 3) if colour else (4, side, side)
        images = np.broadcast_to(level.reshape(4, *[1] * (len(shape) - 1)), shape).astype(np.uint8)
        images[:, 0, 1] = 255  # tells rows from columns
        labels = np.zeros((4, columns), np.uint8)
        labels[:, 0] = [0, 1, 1, 0] if columns > 1 else [0, 1, 1, 1]
        labels[:, -1] |= np.array([0, 0, 0, 1], np.uint8)
        held |= {f"{split}_images": images, f"{split}_labels": labels}
    return held


def write(path: Path, held: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **held)
    return path


def read(folder: Path, flag: str = "breastmnist", **options) -> Medmnist:
    return Medmnist(**{"split": "all", "path": str(folder), "flag": flag, **options})


def test_grey_images_and_squeezed_labels(tmp_path):
    write(tmp_path / "breastmnist.npz", arrays())
    source = read(tmp_path)
    assert [source[at].id for at in (0, 4, 11)] == [
        *("medmnist:breastmnist/train/0", "medmnist:breastmnist/val/0"),
        "medmnist:breastmnist/test/3",
    ]
    assert source[0].label_names == ("malignant", "normal, benign")
    assert [source[at].labels for at in range(4)] == [(1, 0), (0, 1), (0, 1), (0, 1)]
    pixels = source[2].images[0].load()
    assert (pixels.shape, pixels.dtype) == ((28, 28), np.uint8)
    assert (pixels[0, 1], pixels[1, 0], pixels[5, 5]) == (255, 20, 20)
    assert source[6].images[0].load()[5, 5] == 120
    assert (source[0].split, source[4].split, source[11].split_official) == ("train", "val", "test")
    assert source[0].license == "CC-BY-4.0" and source[0].redistributable
    assert not source[0].leakage_unit_known


def test_labels_of_many_classes_and_colour(tmp_path):
    held = arrays(colour=True)
    held["train_images"][1] = (255, 0, 0)
    held["train_labels"][:, 0] = [8, 0, 3, 1]
    write(tmp_path / "pathmnist.npz", held)
    source = read(tmp_path, "pathmnist")
    assert source[0].labels == (0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert source[2].label_names[source[2].labels.index(1)] == "lymphocytes"
    pixels = source[1].images[0].load()
    assert source.channels == 3 and pixels.shape == (28, 28, 3) and (pixels == (255, 0, 0)).all()
    assert (source[3].images[0].load()[9, 9] == 30).all()
    luma = read(tmp_path, "pathmnist", channels=1)[1].images[0].load()
    assert luma.shape == (28, 28) and (luma == 76).all()  # 0.299 * 255


def test_several_labels_at_once(tmp_path):
    write(tmp_path / "chestmnist.npz", arrays(columns=14))
    source = read(tmp_path, "chestmnist")
    assert source[1].labels == (1, *[0] * 13) and source[3].labels == (*[0] * 13, 1)
    assert source[0].label_names[-1] == "hernia"
    assert source.facts.within == ("nih14",)
    assert Medmnist.facts.within == ()  # what one set is does not stick to the others


@pytest.mark.parametrize("size", [64, 128, 224])
def test_larger_sizes_are_archives_of_their_own(tmp_path, size):
    write(tmp_path / f"breastmnist_{size}.npz", arrays(side=size))
    source = read(tmp_path, size=size)
    assert source[0].images[0].load().shape == (size, size)
    assert source[0].images[0].key == f"breastmnist_{size}.npz/train_images/0"
    with pytest.raises(InputError, match=r"none of breastmnist.npz"):
        read(tmp_path)


def test_counts_are_those_of_the_set(tmp_path):
    write(tmp_path / "dermamnist.npz", arrays(colour=True))
    source = read(tmp_path, "dermamnist")
    assert any("4 records/test found, 2,005 in the published" in line for line in source.warnings)
    assert any("12 records found, 10,015 in the published" in line for line in source.warnings)
    assert any("patients are not known" in line for line in source.warnings)
    assert source[0].license == "CC-BY-NC-4.0"
    totals = {name: sum(known.counts) for name, known in medmnist._SETS.items()}
    # The sizes that the paper and the release notes of version 2.2.4 give.
    assert totals["pathmnist"] == 107180 and totals["chestmnist"] == 112120
    assert totals["tissuemnist"] == 236386 and totals["bloodmnist"] == 17092


def test_promises(tmp_path):
    write(tmp_path / "breastmnist.npz", arrays())
    check_promises(Medmnist, tmp_path, flag="breastmnist", verify="decode")
    records = records_of(pickle.loads(pickle.dumps(read(tmp_path))))
    assert records["breastmnist/val/3"].images[0].load()[7, 7] == 130


def test_arrays_are_unpacked_once_in_a_process(tmp_path, monkeypatch):
    write(tmp_path / "breastmnist.npz", arrays())
    source = read(tmp_path)
    unpacked = []
    real = medmnist._read
    monkeypatch.setattr(medmnist, "_read", lambda *given: unpacked.append(given[1]) or real(*given))
    for at in (0, 1, 2, 4, 0):
        pixels = source[at].images[0].load()
        pixels[:] = 0  # the caller's own
    assert unpacked == ["train_images", "val_images"]
    assert source[1].images[0].load()[5, 5] == 10


def test_numbers_that_are_no_class_are_refused(tmp_path):
    held = arrays()
    held["val_labels"][2] = 2
    write(tmp_path / "breastmnist.npz", held)
    source = read(tmp_path)
    (reject,) = source.rejects
    assert (reject.id, reject.reason) == ("medmnist:breastmnist/val/2", "bad_label")
    assert reject.detail == "[2]; expected 0 to 1" and len(source) == 11


def test_unknown_options_list_the_choices(tmp_path):
    with pytest.raises(InputError, match="expected one of: pathmnist, chestmnist"):
        read(tmp_path, "organmnist3d")
    with pytest.raises(InputError, match="size is 32; expected one of: 28, 64, 128, 224"):
        read(tmp_path, size=32)


class Payload:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_labels": None}, "members 'train_images.npy'"),
        ({"../evil": np.zeros(3, np.uint8)}, "expected, once each: train_images.npy"),
        ({"val_labels": np.zeros((3, 1), np.uint8)}, r"val_labels of shape \(3, 1\)"),
        ({"val_labels": np.zeros(4, np.uint8)}, r"expected \(4, 1\)"),
        ({"val_labels": np.zeros((4, 2), np.uint8)}, r"expected \(4, 1\)"),
        ({"test_images": np.zeros((4, 28, 28, 28), np.uint8)}, r"expected \[N, 28, 28\]"),
        ({"test_images": np.zeros((4, 64, 64), np.uint8)}, "test_images of shape"),
        ({"test_images": np.zeros((4, 28, 28), np.float32)}, "is float32"),
        ({"test_images": np.asfortranarray(np.zeros((4, 28, 28), np.uint8))}, "is uint8"),
        ({"val_labels": np.array([[Payload()]] * 4, object)}, "is object"),
    ],
)
def test_archives_that_hold_something_else_are_refused(tmp_path, capsys, change, message):
    held = {name: array for name, array in (arrays() | change).items() if array is not None}
    write(tmp_path / "breastmnist.npz", held)
    with pytest.raises(InputError, match=message):
        read(tmp_path)
    assert "unpickled" not in capsys.readouterr().out


def test_damage_is_found(tmp_path):
    path = write(tmp_path / "breastmnist.npz", arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match="no whole archive of arrays"):
        read(tmp_path)
    held = arrays(side=224)
    held["test_images"] = np.random.default_rng(0).integers(0, 256, (4, 224, 224), np.uint8)
    large = write(tmp_path / "breastmnist_224.npz", held)
    with zipfile.ZipFile(large) as archive:
        member = archive.getinfo("test_images.npy")
    broken = bytearray(large.read_bytes())
    broken[member.header_offset + member.compress_size - 8] ^= 255
    large.write_bytes(broken)
    assert len(read(tmp_path, size=224, verify="header")) == 12
    source = read(tmp_path, size=224, verify="decode")
    assert [source[at].split for at in range(len(source))] == ["train"] * 4 + ["val"] * 4
    assert {reject.reason for reject in source.rejects} == {"unreadable_image"}
    assert "test_images cannot be read" in source.rejects[0].detail
    write(large, arrays(side=224))  # a fresh copy in its place is read anew
    source = read(tmp_path, size=224, verify="decode")
    assert len(source) == 12 and source[9].images[0].load()[5, 5] == 110
    large.unlink()
    with pytest.raises(InputError, match="No such file"):
        source[9].images[0].load()
