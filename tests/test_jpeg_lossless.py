"""Lossless JPEG: every predictor is read, and a frame whose data end early is refused."""

import imagecodecs
import numpy as np
import pytest
from pydicom import uid

from mmrl.data.image import dicom, dicom_pixels, jpeg_lossless
from mmrl.data.image.containers import jpeg_segments
from mmrl.types import InputError
from tests import dicoms

TWELVE = dicoms.ramp(12)
COLOUR = np.stack([dicoms.ramp(8), 255 - dicoms.ramp(8), dicoms.ramp(8)[::-1]], axis=-1)


def encoded(pixels: np.ndarray, bits: int, predictor: int = 1) -> bytes:
    kept = {"colorspace": "RGB", "outcolorspace": "RGB"} if pixels.ndim == 3 else {}
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels, lossless=True, predictor=predictor, bitspersample=bits, **kept
        )
    )


def restarted(pixels: np.ndarray, bits: int, rows: int) -> bytes:
    """A frame that starts anew every `rows` rows: strips, joined by restart markers."""
    strips = [
        dicoms.lossless_jpeg(pixels[row : row + rows], bits) for row in range(0, len(pixels), rows)
    ]
    scans = [scan_of(strip) for strip in strips]
    head = strips[0][: scans[0].start]
    height = pixels.shape[0].to_bytes(2)
    head = head[:7] + height + head[9:]
    interval = b"\xff\xdd\0\4" + (rows * pixels.shape[1]).to_bytes(2)
    at = head.index(b"\xff\xda")
    coded = b"".join(
        strip[scan.start : scan.stop] + bytes([0xFF, 0xD0 + index % 8])
        for index, (strip, scan) in enumerate(zip(strips, scans, strict=True))
    )
    return head[:at] + interval + head[at:] + coded[:-2] + b"\xff\xd9"


def scan_of(data: bytes) -> slice:
    """Where the entropy-coded data of the one scan lie."""
    found = next(part for part in jpeg_segments(data) if part.marker == 0xDA)
    return slice(found.start + 4 + len(found.body), found.stop)


FRAMES = {
    **{f"predictor {number}": (encoded(TWELVE, 12, number), TWELVE) for number in range(1, 8)},
    "two bits": (encoded(dicoms.ramp(2), 2), dicoms.ramp(2)),
    "sixteen bits": (encoded(dicoms.ramp(16), 16, 4), dicoms.ramp(16)),
    "colour": (encoded(COLOUR, 8, 6), COLOUR),
    "restarts": (restarted(TWELVE, 12, 4), TWELVE),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_read_and_their_length_is_that_of_their_codes(name: str) -> None:
    data, pixels = FRAMES[name]
    np.testing.assert_array_equal(imagecodecs.jpeg8_decode(data), pixels)
    jpeg_lossless.check(data, pixels)
    filled = pixels.copy()
    filled[len(filled) // 2 :] = 0
    with pytest.raises(InputError, match=r"^damaged JPEG: its scan has \d+ bytes, its pixels take"):
        jpeg_lossless.check(data, filled)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_end_early_behind_their_markers_are_refused(name: str) -> None:
    data, pixels = FRAMES[name]
    ds = dicoms.dataset(pixels, int(pixels.max()).bit_length())
    syntax = uid.JPEGLossless
    assert dicom_pixels.decode(dicoms.compressed(ds, syntax, data)).shape == pixels.shape[:2]
    scan = scan_of(data)
    for cut in range(scan.start + 2, scan.stop - 1, (scan.stop - scan.start) // 12):
        short = data[:cut].rstrip(b"\xff") + data[scan.stop :]
        with pytest.raises(dicom.DicomError, match="damaged JPEG") as caught:
            dicom_pixels.decode(dicoms.compressed(ds, syntax, short))
        assert caught.value.reason == "unreadable_image"
