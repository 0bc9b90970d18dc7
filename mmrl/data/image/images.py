"""Image bytes to one channel, to a square: every pixel step that draws nothing.

One channel, because a radiograph has one. Colour becomes Rec. 601 luma, 0.299 R + 0.587 G +
0.114 B (ITU-R BT.601-7, section 2.5.1; in a JPEG it is the stored Y). Transparent pixels are
composed over black, the colour of an empty detector. Orientation tags are ignored: boxes and
masks of every corpus count stored pixels, and a scanner does not hold its detector sideways.
"""

import dataclasses
import os
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from mmrl.types import InputError

T = TypeVar("T")

# One decoder thread per call: parallelism belongs to whoever calls, workers or a thread pool.
cv2.setNumThreads(1)

MAX_PIXELS = 2**26  # 8192 x 8192; the largest mammograms have under 2**25
MAX_BYTES = 2**29  # MAX_PIXELS pixels of 16-bit RGBA, uncompressed
FULL_RANGE = 65535  # what a u16 image is taken to span unless the caller knows better
RESIZES = ("pad", "stretch")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GREY = 0  # colour type (PNG specification, third edition, section 11.2.1)
# Entropy-coded data ends at the first 0xFF that is not stuffing (FF00), restart or fill (FFFF).
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Header(NamedTuple):
    """What a container says of its image before any pixel is decoded.

    `transparent_grey` is the grey level that a grey PNG declares transparent, in the units of
    the decoded array, or None.
    """

    format: str
    height: int
    width: int
    transparent_grey: int | None = None


def inspect(data: bytes) -> Header:
    """Walks the container of a JPEG or PNG from its first byte to its end marker.

    Decodes nothing, yet finds every file that was cut short, even one that lacks only its end
    marker, and every PNG chunk with a wrong checksum (OpenCV takes a PNG that lost its end).

    Raises:
      InputError: neither JPEG nor PNG, cut short, damaged, or more than MAX_PIXELS pixels.
    """
    if data.startswith(_PNG_SIGNATURE):
        header = _walk_png(data)
    elif data.startswith(b"\xff\xd8"):
        header = _walk_jpeg(data)
    else:
        given = f"begins with bytes {data[:4].hex()}" if data else "is empty"
        raise InputError(f"the file {given}; expected a JPEG or PNG image")
    if header.height * header.width == 0:
        raise InputError(f"damaged {header.format}: {header.width} x {header.height} pixels")
    if header.height * header.width > MAX_PIXELS:
        size = f"{header.width} x {header.height}"
        raise InputError(f"{size} pixels; expected at most {MAX_PIXELS} in all")
    return header


def decode(data: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG of any mode to one channel at its full bit depth.

    Palettes, 1, 2 and 4-bit greys span 0..255; 16-bit stays 16-bit. See the module's docstring
    for colour, transparency and orientation. Of an animated PNG, the default image is taken.

    Args:
      data: the whole file.

    Returns:
      u8[H, W], or u16[H, W] where the file holds 16 bits per sample.

    Raises:
      InputError: as `inspect`, or the compressed data cannot be decoded. A JPEG has no
        checksum: bytes altered inside its compressed data need not be noticed.
    """
    header = inspect(data)
    flags = cv2.IMREAD_UNCHANGED  # for PNG: GRAYSCALE would cut 16 bits to 8 and drop alpha
    if header.format == "JPEG":  # libjpeg hands out the luma it stores
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise InputError(f"damaged or unsupported {header.format}: its pixels cannot be decoded")
    if pixels.ndim == 2:
        if header.transparent_grey is not None:
            pixels[pixels == header.transparent_grey] = 0
        return pixels
    luma = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2GRAY)
    return _over_black(luma, pixels[..., 3]) if pixels.shape[2] == 4 else luma


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads and decodes a file: u8[H, W] or u16[H, W]; an InputError names the file."""
    return _with_name(path, decode)


def check_file(path: str | os.PathLike[str]) -> Header:
    """Walks one file as `inspect` does; an InputError names the file."""
    return _with_name(path, inspect)


def load_file(root: str, relative: str) -> np.ndarray:
    """Reads `relative` under `root`; with functools.partial, the `load` of an ImageRef."""
    return read(os.path.join(root, relative))


def to_uint8(image: np.ndarray, max_value: int = FULL_RANGE) -> np.ndarray:
    """Scales u16[H, W] to u8[H, W] by a stated range, never by what this image happens to hold.

    0 becomes 0 and `max_value` 255, rounded to nearest; u8 passes unchanged. Name the range the
    detector had, 4095 for 12 bits: scaling each image by its own extremes would make the same
    tissue differ between patients.

    Raises:
      InputError: neither u8 nor u16, or a pixel above `max_value`.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16:
        raise InputError(f"image of dtype {image.dtype}; expected uint8 or uint16")
    if not 1 <= max_value <= FULL_RANGE:
        raise InputError(f"max_value {max_value}; expected 1 to {FULL_RANGE}")
    if image.size and (brightest := int(image.max())) > max_value:
        raise InputError(f"a pixel of value {brightest}; expected at most max_value {max_value}")
    table = (np.arange(max_value + 1, dtype=np.uint32) * 255 + max_value // 2) // max_value
    return table.astype(np.uint8)[image]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How original pixel coordinates map to preprocessed ones: scale, then offset, per axis.

    Coordinates are continuous, 0 at the outer edge of the first pixel and W at that of the
    last, as boxes use them.
    """

    scale_y: float
    scale_x: float
    offset_y: float
    offset_x: float

    def boxes(self, xyxy: npt.ArrayLike) -> np.ndarray:
        """Maps boxes [..., 4] (x0, y0, x1, y1) in original pixels to preprocessed: f64[..., 4]."""
        scale = np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y])
        offset = np.array([self.offset_x, self.offset_y, self.offset_x, self.offset_y])
        return np.asarray(xyxy, np.float64) * scale + offset


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Any image to u8[size, size]: the one deterministic recipe of training and evaluation.

    Attributes:
      size: side of the square, in pixels.
      resize: "pad" brings the long side to `size` and centres the image on black, so nothing
        is cropped or distorted; "stretch" brings both sides to `size`.
      max_value: the u16 value that becomes 255; see `to_uint8`.

    Each axis shrinks by area averaging (no aliasing) and grows by linear interpolation (no
    overshoot).
    """

    size: int
    resize: str = "pad"
    max_value: int = FULL_RANGE

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"preprocess size {self.size}; expected at least 1")
        if self.resize not in RESIZES:
            raise InputError(f"preprocess resize '{self.resize}'; choices: {', '.join(RESIZES)}")
        if not 1 <= self.max_value <= FULL_RANGE:
            raise InputError(f"preprocess max_value {self.max_value}; expected 1 to {FULL_RANGE}")

    def __call__(
        self,
        image: np.ndarray,
        out: np.ndarray | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """Maps u8[H, W] or u16[H, W] to u8[size, size].

        Args:
          out: u8[h, w], where to write a part of the square instead of all of it.
          corner: row and column of the square where that part begins.

        Returns:
          `out`, or a new array.
        """
        if image.ndim != 2 or image.size == 0:
            raise InputError(f"image of shape {image.shape}; expected [H, W], not empty")
        if out is None:
            out = np.empty((self.size, self.size), np.uint8)
        height, width, top, left = self._placement(*image.shape)
        content = _resize(to_uint8(image, self.max_value), height, width)
        _lay(content, top - corner[0], left - corner[1], out)
        return out

    def geometry(self, height: int, width: int) -> Geometry:
        """Returns where an image of `height` x `width` pixels lands in the square."""
        new_height, new_width, top, left = self._placement(height, width)
        return Geometry(new_height / height, new_width / width, float(top), float(left))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values, for checkpoints and manifests."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocess":
        """Rebuilds what `to_dict` saved; an unknown or missing field is an InputError."""
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            raise InputError(f"preprocess fields {sorted(fields)}; expected {sorted(known)}")
        return cls(**fields)

    def _placement(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns height, width, top and left of the content inside the square, in pixels."""
        if self.resize == "stretch":
            return self.size, self.size, 0, 0
        scale = self.size / max(height, width)
        new_height = max(1, round(height * scale))
        new_width = max(1, round(width * scale))
        return new_height, new_width, (self.size - new_height) // 2, (self.size - new_width) // 2


def _walk_png(data: bytes) -> Header:
    """Reads chunk after chunk to IEND (PNG specification, third edition, section 5)."""
    view = memoryview(data)
    header, depth, colour = None, 0, 0
    position = len(_PNG_SIGNATURE)
    while True:
        end = position + 12 + int.from_bytes(view[position : position + 4])
        if position + 12 > len(data) or end > len(data):
            raise InputError(f"truncated PNG: its data stop after {len(data)} bytes, before IEND")
        kind, body = bytes(view[position + 4 : position + 8]), view[position + 8 : end - 4]
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise InputError(f"damaged PNG: checksum of the chunk at byte {position} is wrong")
        if header is None:
            if kind != b"IHDR" or len(body) != 13:
                raise InputError("damaged PNG: it does not begin with a header")
            width, height = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
            depth, colour = body[8], body[9]
            header = Header("PNG", height, width)
        elif kind == b"tRNS" and colour == _PNG_GREY and len(body) == 2:
            scale = 255 // (2**depth - 1) if depth < 8 else 1  # as the decoder widens to 8 bits
            header = header._replace(transparent_grey=int.from_bytes(body) * scale)
        elif kind == b"IEND":
            return header
        position = end


def _walk_jpeg(data: bytes) -> Header:
    """Reads segment after segment to EOI (ITU-T T.81, annex B)."""
    header, position = None, 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            raise InputError(f"damaged JPEG: expected a marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        position += 2
        if marker == 0xD9:
            if header is None:
                raise InputError("damaged JPEG: it ends without a frame")
            return header
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers that stand alone
            continue
        length = int.from_bytes(data[position : position + 2])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[position + 3 : position + 5])
            header = Header("JPEG", height, int.from_bytes(data[position + 5 : position + 7]))
        position += max(length, 2)
        if marker == 0xDA:  # a scan: skip its entropy-coded data
            found = _JPEG_MARKER.search(data, position)
            position = found.start() if found else len(data)
    raise InputError(
        f"truncated JPEG: its data stop after {len(data)} bytes, before the end marker"
    )


def _over_black(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Multiplies [H, W] by its opacity, rounded to nearest; u32 holds the product of two u16."""
    opaque = np.iinfo(image.dtype).max
    product = image.astype(np.uint32) * alpha + np.uint32(opaque // 2)
    return (product // np.uint32(opaque)).astype(image.dtype)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Shrinks each axis by area, then grows each axis linearly; u8[H, W] -> u8[height, width]."""
    low_height, low_width = min(height, image.shape[0]), min(width, image.shape[1])
    if (low_height, low_width) != image.shape:
        image = cv2.resize(image, (low_width, low_height), interpolation=cv2.INTER_AREA)
    if (height, width) != image.shape:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def _lay(content: np.ndarray, top: int, left: int, out: np.ndarray) -> None:
    """Writes `content` to `out` from row `top` and column `left`, what fits, and black around."""
    height, width = content.shape
    first, last = max(top, 0), min(top + height, out.shape[0])
    begin, end = max(left, 0), min(left + width, out.shape[1])
    if first >= last or begin >= end:
        out[:] = 0
        return
    out[:first], out[last:] = 0, 0
    out[first:last, :begin], out[first:last, end:] = 0, 0
    out[first:last, begin:end] = content[first - top : last - top, begin - left : end - left]


def _with_name(path: str | os.PathLike[str], use: Callable[[bytes], T]) -> T:
    """Returns use(bytes of path); errors name the path. Never opens a pipe or device."""
    try:
        if not os.path.isfile(path):
            raise InputError("no such file")
        if (size := os.path.getsize(path)) > MAX_BYTES:
            raise InputError(f"{size} bytes; expected at most {MAX_BYTES}")
        with open(path, "rb") as file:
            return use(file.read())
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{os.fspath(path)}: {reason}") from error
