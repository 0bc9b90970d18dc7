"""The kind of an image file, which its content decides and its name does not."""

from typing import NamedTuple

from mmrl.types import InputError

MAX_PIXELS = 2**26  # 8192 x 8192; the largest mammograms have under 2**25
MAX_BYTES = 2**29  # MAX_PIXELS pixels of 16-bit RGBA, uncompressed

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8": "JPEG",
    **dict.fromkeys((b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b"), "TIFF"),
}
# What is often found in the place of an image.
_OTHERS = {
    b"BM": "a BMP image",
    b"GIF8": "a GIF image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\x1f\x8b": "compressed by gzip",
    b"PK\3\4": "a zip archive",
    b"%PDF": "a PDF document",
    b"<!": "an HTML page",
    b"<html": "an HTML page",
    b"version https://git-lfs": "a Git LFS pointer, without the data",
}
_EXPECTED = "a JPEG, PNG, TIFF, WebP or DICOM image"


class ImageError(InputError):
    """An image is refused; `reason` is that of its Reject, such as "multi_frame"."""

    def __init__(self, message: str, reason: str = "unreadable_image") -> None:
        super().__init__(message)
        self.reason = reason


class Header(NamedTuple):
    """What a container says of its image.

    Attributes:
      format: "PNG", "JPEG", "TIFF" or "WebP".
      height, width: in pixels.
      transparent_grey: the grey level that a grey PNG declares transparent, in the units of the
        decoded array, or None.
    """

    format: str
    height: int
    width: int
    transparent_grey: int | None = None


def kind_of(data: bytes) -> str:
    """DICOM, PNG, JPEG, TIFF or WebP, by the first 132 bytes of a file; "" for any other.

    DICOM comes first, because its preamble may be that of a TIFF (PS3.10, section 7.1) while its
    header names a patient. A DICOM file without preamble need not state how it is encoded, which
    would have to be guessed: it is no known kind.
    """
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for start, kind in _STARTS.items() if data.startswith(start)), "")


def unknown(data: bytes) -> InputError:
    """What to raise for a file of no known kind."""
    begins = f"begins with bytes {data[:4].hex()}" if data else "is empty"
    known = (what for start, what in _OTHERS.items() if data.startswith(start))
    what = next((f"is {what}" for what in known), begins)
    return InputError(f"the file {what}; expected {_EXPECTED}")


def truncated(kind: str, data: bytes) -> InputError:
    """What to raise for a file that was cut short."""
    return InputError(f"truncated {kind}: its data stop after {len(data)} bytes")


def check_size(header: Header) -> None:
    """Raises InputError for an image without pixels, or of more than MAX_PIXELS."""
    size = f"{header.width} x {header.height} pixels"
    if header.height * header.width == 0:
        raise InputError(f"damaged {header.format}: {size}")
    if header.height * header.width > MAX_PIXELS:
        raise InputError(f"{size}; expected at most {MAX_PIXELS} in all")
