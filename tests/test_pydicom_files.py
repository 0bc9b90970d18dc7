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
from pydicom import uid
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from mmrl.data.image import dicom, dicom_pixels

LUMA = np.array([0.299, 0.587, 0.114])
OTHERS = (".py", ".pyc", ".json", ".icc", ".md", ".txt")
ROUNDING = 0.5 + 1e-6  # grey levels; pydicom's are not rounded here
# Lossy JPEG of 12 bits: decoders round the cosine transform in their own ways, to one stored level.
LOSSY_12 = 65535 / 4095 + ROUNDING
# No permissive decoder of pydicom reads JPEG of 12 bits; JPEG-lossy has a scan header that the
# standard does not allow, and the pixels of JPGExtended, which was made of it.
ONLY_OURS = {"JPGExtended.dcm", "JPEG-lossy.dcm"}
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
    syntax = ds.file_meta.TransferSyntaxUID
    plugin = "pillow" if syntax == uid.JPEGBaseline8Bit else ""
    luma = ds.PhotometricInterpretation.startswith("YBR_F")
    index = 0 if several else None
    pixels = pixel_array(ds, index=index, decoding_plugin=plugin, raw=luma)
    top = 255 if ds.BitsStored <= 8 else 65535
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, ds)[..., :3]
        top = 255 if ds.RedPaletteColorLookupTableDescriptor[2] == 8 else 65535
        return colours @ LUMA / np.iinfo(colours.dtype).max * top, ROUNDING
    if ds.SamplesPerPixel == 3:
        levels = pixels[..., 0] if luma else pixels @ LUMA
        return levels / (2**ds.BitsStored - 1) * top, ROUNDING
    ends = np.array([0, 2**ds.BitsStored - 1]) - ds.PixelRepresentation * 2 ** (ds.BitsStored - 1)
    levels = apply_modality_lut(pixels, ds).astype(np.float64)
    low, high = np.sort(apply_modality_lut(ends.astype(pixels.dtype), ds).astype(np.float64))
    if "ModalityLUTSequence" in ds:
        low, high = 0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if "VOILUTSequence" in ds:
        low, high = 0, 2.0 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
        levels = levels.astype(int)
    share = (apply_voi_lut(levels, ds).astype(np.float64) - low) / (high - low)
    tolerance = LOSSY_12 if syntax == uid.JPEGExtended12Bit else ROUNDING
    inverse = getattr(ds, "PresentationLUTShape", "") == "INVERSE"
    if ds.PhotometricInterpretation == "MONOCHROME1" or inverse:
        share = 1 - share
    return share * top, tolerance


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
        elif found.kind == "only mmrl":
            assert path.name in ONLY_OURS
    return counts


def test_files_of_pydicom_are_read_as_pydicom_reads_them() -> None:
    counts = check(list(files(nema=False)))
    assert counts["both"] > 80


def test_files_of_nema_are_read_as_pydicom_reads_them() -> None:
    paths = list(files(nema=True))
    if not paths:
        pytest.skip("pydicom-data is not installed")
    counts = check(paths)
    assert counts["both"] > 40


def frames() -> Iterator[tuple[str, dicom_pixels.Frame, int]]:
    """Name, frame and samples per pixel of the JPEG files that OpenCV does not decode."""
    for path in [*files(nema=False), *files(nema=True)]:
        try:
            file = dicom.DicomFile(path.read_bytes())
            if file.syntax in dicom_pixels.JPEG:
                layout = file.layout()
                frame = dicom_pixels._frame(file, layout)
                if not dicom_pixels._is_plain(frame):
                    yield path.name, frame, layout.samples
        except dicom.DicomError:
            continue


def test_a_scan_header_that_is_not_allowed_costs_no_pixel() -> None:
    found = {name: (frame, samples) for name, frame, samples in frames()}
    odd, repaired = (
        dicom_pixels._decode_jpeg(*found[name], False)
        for name in ("JPEG-lossy.dcm", "JPGExtended.dcm")
    )
    np.testing.assert_array_equal(odd, repaired)


def test_pixels_are_those_of_the_decoder_of_the_extra_gpl() -> None:
    libjpeg = pytest.importorskip("libjpeg", reason="needs the extra gpl")
    compared = 0
    for name, frame, samples in frames():
        if name == "JPEG-lossy.dcm":  # which it refuses
            continue
        ours = dicom_pixels._decode_jpeg(frame, samples, False)
        difference = np.abs(ours.astype(int) - libjpeg.decode(bytes(frame.data)))
        assert difference.max() <= (frame.marker == 0xC1), name
        compared += 1
    assert compared >= 8


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
