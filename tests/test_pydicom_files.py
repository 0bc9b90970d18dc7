"""All files of pydicom, and NEMA's where `pydicom-data` is installed, as pydicom reads them.

`python -m tests.test_pydicom_files` prints what either makes of each file, and the counts.
"""

import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom.data
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from mmrl.data.image import dicom, dicom_pixels

LUMA = np.array([0.299, 0.587, 0.114])
OTHERS = (".py", ".pyc", ".json", ".icc", ".md", ".txt")
ROUNDING = 0.5 + 1e-6  # grey levels; pydicom's are not rounded here
# Luma is stored in these. pydicom converts it to RGB, which it rounds and clips, before luma.
COLOUR = 8.0
# pydicom takes the entries of a big-endian palette for little endian.
SWAPPED = {"OBXXXX1A_expb.dcm": "OBXXXX1A.dcm"}


class Outcome(NamedTuple):
    """Grey levels by pydicom, f64[H, W], and by mmrl, u8 or u16 [H, W], or why there are none.

    `tolerance` is how far they may differ, in grey levels.
    """

    theirs: np.ndarray | str
    ours: np.ndarray | str
    tolerance: float = ROUNDING

    @property
    def kind(self) -> str:
        read = (not isinstance(self.theirs, str), not isinstance(self.ours, str))
        names = {(True, True): "both", (True, False): "only pydicom", (False, True): "only mmrl"}
        return names.get(read, "neither")

    @property
    def difference(self) -> float:
        """The largest difference in grey levels."""
        assert isinstance(self.theirs, np.ndarray) and isinstance(self.ours, np.ndarray)
        assert self.theirs.shape == self.ours.shape
        return float(np.abs(self.theirs - self.ours).max())


def files(*, nema: bool) -> Iterator[Path]:
    """The files of pydicom, or those of pydicom-data."""
    spec = importlib.util.find_spec("data_store" if nema else "pydicom.data")
    if spec and spec.origin:
        found = Path(spec.origin).parent.rglob("*")
        yield from sorted(path for path in found if path.is_file() and path.suffix not in OTHERS)


def by_pydicom(path: Path) -> tuple[np.ndarray, float]:
    """Grey levels as `dicom_pixels.decode` has them, by functions of pydicom; the tolerance."""
    ds = pydicom.dcmread(path, force=True)
    several = (getattr(ds, "NumberOfFrames", None) or 1) > 1
    syntax, pixels = ds.file_meta.TransferSyntaxUID, pixel_array(ds, index=0 if several else None)
    top = 255 if ds.BitsStored <= 8 else 65535
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, ds)[..., :3]
        top = 255 if ds.RedPaletteColorLookupTableDescriptor[2] == 8 else 65535
        return colours @ LUMA / np.iinfo(colours.dtype).max * top, ROUNDING
    if ds.SamplesPerPixel == 3:
        stored = ds.PhotometricInterpretation.startswith("YBR_F") or syntax in dicom_pixels.JPEG
        tolerance = COLOUR if stored else ROUNDING
        return pixels @ LUMA / (2**ds.BitsStored - 1) * top, tolerance
    ends = np.array([0, 2**ds.BitsStored - 1]) - ds.PixelRepresentation * 2 ** (ds.BitsStored - 1)
    levels = apply_modality_lut(pixels, ds).astype(np.float64)
    low, high = np.sort(apply_modality_lut(ends.astype(pixels.dtype), ds).astype(np.float64))
    if "ModalityLUTSequence" in ds:
        low, high = 0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if "VOILUTSequence" in ds:
        low, high = 0, 2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
        levels = levels.astype(int)
    share = (apply_voi_lut(levels, ds).astype(np.float64) - low) / (high - low)
    inverse = getattr(ds, "PresentationLUTShape", "") == "INVERSE"
    if ds.PhotometricInterpretation == "MONOCHROME1" or inverse:
        share = 1 - share
    return share * top, ROUNDING


def outcome(path: Path) -> Outcome:
    """Reads one file with both."""
    theirs: np.ndarray | str
    ours: np.ndarray | str
    tolerance = ROUNDING
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs, tolerance = by_pydicom(path.with_name(SWAPPED.get(path.name, path.name)))
        except Exception as error:  # any, of a library and of damaged files
            theirs = type(error).__name__
    try:
        ours = dicom_pixels.decode(path.read_bytes())
    except dicom.DicomError as error:
        ours = f"{error.reason}: {error}"
    return Outcome(theirs, ours, tolerance)


def check(paths: list[Path]) -> Counter[str]:
    """Asserts that both agree wherever both read a file; returns how many files either reads."""
    counts: Counter[str] = Counter()
    for path in paths:
        found = outcome(path)
        counts[found.kind] += 1
        if found.kind == "both":
            assert found.difference <= found.tolerance, path.name
        elif found.kind == "only pydicom":
            expected = (
                "multi_frame: ",
                "unsupported: 1 samples of 32",
                "unsupported: 3 samples of 32",
            )
            assert isinstance(found.ours, str) and found.ours.startswith(expected), path.name
    return counts


def test_files_of_pydicom_are_read_as_pydicom_reads_them() -> None:
    counts = check(list(files(nema=False)))
    assert counts["both"] > 80 and not counts["only mmrl"]


def test_files_of_nema_are_read_as_pydicom_reads_them() -> None:
    paths = list(files(nema=True))
    if not paths:
        pytest.skip("pydicom-data is not installed")
    counts = check(paths)
    assert counts["both"] > 40 and not counts["only mmrl"]


def main() -> None:
    """Prints one line per file, and the counts."""
    counts: Counter[str] = Counter()
    for path in [*files(nema=False), *files(nema=True)]:
        found = outcome(path)
        counts[found.kind] += 1
        if found.kind == "both":
            detail = f"{found.difference:.3f} of {np.iinfo(found.ours.dtype).max}"  # type: ignore[union-attr]
        else:
            detail = found.ours if isinstance(found.ours, str) else str(found.theirs)
            counts[f"{found.kind}, {detail.split(':')[0]}"] += 1
        print(f"{found.kind:13} {path.name:45} {detail}")
    for kind, count in sorted(counts.items()):
        print(f"{count:5} {kind}")


if __name__ == "__main__":
    main()
