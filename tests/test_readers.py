"""The kind of an image follows its content, wherever an image is read."""

import csv
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mmrl.data.image import kinds, readers
from mmrl.data.sources.table import Table
from mmrl.types import InputError
from tests import dicoms

LEVELS = dicoms.ramp(8)


def encoded(suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, LEVELS, options)[1].tobytes()


KINDS = {
    "DICOM": dicoms.image(LEVELS, 8, PatientSex="F"),
    "PNG": encoded(".png"),
    "JPEG": encoded(".jpg"),
    "TIFF": encoded(".tiff"),
    "WebP": encoded(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),  # lossless
}
LOSSLESS = [kind for kind in KINDS if kind != "JPEG"]
NAMES = ("IM000001", "a.dcm", "a.png", "a.JPG", "a.tif", "a.webp", "a.dicom", "a.txt")


def pixels_of(kind: str) -> np.ndarray:
    """The pixels of an image of `KINDS`: JPEG alone changes them."""
    if kind != "JPEG":
        return LEVELS
    return cv2.imdecode(np.frombuffer(KINDS[kind], np.uint8), cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_name_decides_how_a_file_is_read(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(KINDS[kind])
    root = str(tmp_path)
    load = ForkingPickler.loads(ForkingPickler.dumps(readers.loader(root, name)))
    np.testing.assert_array_equal(load(), pixels_of(kind))
    assert readers.size(root, name) == (36, 40)
    assert [readers.fault(root, name, verify) for verify in ("decode", "header", "exists")] == [
        *(None, None, None)
    ]
    header = readers.header(root, name)
    assert (header and header.sex) == ("F" if kind == "DICOM" else None)
    (tmp_path / name).write_bytes(KINDS[kind][:-40])
    found = readers.fault(root, name, "header")
    assert found and found[0] == "unreadable_image" and "truncated" in found[1]
    # The name of a DICOM file may be that of a patient.
    assert (str(tmp_path) in found[1]) == (kind != "DICOM")
    assert readers.fault(root, name, "exists") is None


def test_paths_bytes_and_arrays_give_the_same_pixels(tmp_path: Path) -> None:
    for kind, data in KINDS.items():
        (tmp_path / "image").write_bytes(data)
        for given in (tmp_path / "image", str(tmp_path / "image"), data):
            np.testing.assert_array_equal(readers.pixels(given), pixels_of(kind))
    for array in (LEVELS, LEVELS[:, :, None], LEVELS.astype(np.uint16)):
        np.testing.assert_array_equal(readers.pixels(array), LEVELS)
    for wrong in (LEVELS.astype(float), LEVELS[0], np.dstack([LEVELS] * 2), None, 5, "x" * 9):
        with pytest.raises(InputError):
            readers.pixels(wrong)
    burned = dicoms.image(LEVELS, 8, BurnedInAnnotation="YES")
    with pytest.raises(InputError, match="burned_in_annotation"):
        readers.pixels(burned)
    np.testing.assert_array_equal(readers.pixels(burned, allow_burned_in=True), LEVELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<!doctype html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (encoded(".bmp"), "is a BMP image"),
        (b"\x1f\x8b\x08" + bytes(200), "is compressed by gzip"),
        (KINDS["DICOM"][128:], "begins with bytes 4449434d"),
        (KINDS["DICOM"][132:], "begins with bytes 02000000"),  # no preamble
    ],
)
def test_other_content_is_named_as_what_it_is(data: bytes, message: str, tmp_path: Path) -> None:
    for name in ("Doe^Jane.dcm", "Doe^Jane", "a.png"):
        (tmp_path / name).write_bytes(data)
        for verify in ("decode", "header"):
            found = readers.fault(str(tmp_path), name, verify)
            assert found and found[0] == "unreadable_image" and message in found[1]
            assert found[1].endswith("expected a JPEG, PNG, TIFF, WebP or DICOM image")
            assert ("a.png" in found[1]) == (name == "a.png") and "Doe" not in found[1]
        with pytest.raises(InputError, match=message):
            readers.header(str(tmp_path), name)


def test_a_preamble_like_a_tiff_does_not_hide_a_dicom_file() -> None:
    data = KINDS["TIFF"][:100].ljust(128, b"\0") + KINDS["DICOM"][128:]
    assert kinds.kind_of(data) == "DICOM"
    np.testing.assert_array_equal(readers.pixels(data), LEVELS)


def table(folder: Path, columns: list[str], rows: list[list[Any]], **options: Any) -> Table:
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return Table(split="train", path=str(folder / "pairs.csv"), **options)


@pytest.mark.parametrize("verify", ["decode", "header", "exists"])
def test_a_table_reads_an_export_without_suffixes(verify: str, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    rows = []
    for number, kind in enumerate(KINDS):
        (tmp_path / f"export/IM{number:06}").write_bytes(KINDS[kind])
        rows.append([f"export/IM{number:06}", f"Report {number}.", number])
    source = table(
        tmp_path,
        ["image", "report", "patient_id"],
        rows,
        fractions=(1.0, 0.0, 0.0),
        patient_column="patient_id",
        verify=verify,
    )
    assert len(source) == len(KINDS) and not source.rejects
    for record, kind in zip((source[n] for n in range(len(source))), KINDS, strict=True):
        np.testing.assert_array_equal(record.images[0].load(), pixels_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_masks_must_be_png_by_content(kind: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(KINDS["DICOM"])
    (tmp_path / "mask.png").write_bytes(KINDS[kind])
    given = (str(tmp_path), "mask.png", str(tmp_path), "image", "lung")
    fault = readers.mask_fault(str(tmp_path), str(tmp_path), "header", ("mask.png", "image"))
    if kind == "PNG":
        assert fault is None
        np.testing.assert_array_equal(readers.load_mask(*given)["lung"], LEVELS != 0)
    else:
        assert fault and fault[0] == "bad_mask" and f"a mask as {kind}" in fault[1]
