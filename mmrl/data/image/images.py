"""Decodes JPEG, PNG, TIFF and WebP to grey or colour and resizes images to a square.

The grey of colour is its Rec. 601 luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601-7, section 2.5.1;
in a JPEG it is the stored Y). Transparent pixels are composed over black. Orientation tags are
ignored, since boxes and masks of every corpus count stored pixels. Nothing here is random; see
`jitter`.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image

from mmrl.data.image import tiff
from mmrl.data.image.containers import inspect
from mmrl.types import InputError

# One thread per call: the callers are workers and thread pools, which run in parallel already.
cv2.setNumThreads(1)

FULL_RANGE = 65535  # the default range of a u16 image
RESIZES = ("pad", "stretch", "crop")


def decode(data: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG, TIFF or WebP of any mode to one channel at its full bit depth.

    Palettes and greys of 1, 2 and 4 bits span 0..255; 16 bits stay 16 bits. See the module's
    docstring for colour, transparency and orientation. Of an animated PNG, the default image is
    decoded; TIFF and WebP of several images are refused.

    Args:
      data: the whole file.

    Returns:
      u8[H, W], or u16[H, W] where the file holds 16 bits per sample.

    Raises:
      InputError: as `containers.inspect`, or the compressed data cannot be decoded. JPEG, TIFF and
        WebP have no checksum, so altered bytes in their compressed data may go unnoticed.
    """
    pixels = _decoded(data, _DECODE)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 2:
        return over_black(pixels[..., 0], pixels[..., 1])
    grey = luma(pixels[..., 2::-1])
    return over_black(grey, pixels[..., 3]) if pixels.shape[2] == 4 else grey


def decode_colour(data: bytes) -> np.ndarray:
    """Decodes an image to red, green and blue, u8 or u16 [H, W, 3]; the rest is as of `decode`."""
    pixels = _decoded(data, _DECODE_COLOUR)
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = over_black(pixels[..., 0], pixels[..., 1])
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    colours = pixels[..., 2::-1]
    return over_black(colours, pixels[..., 3:]) if pixels.shape[2] == 4 else colours


def _decoded(
    data: bytes, decoders: Mapping[str, Callable[[bytes], np.ndarray | None]]
) -> np.ndarray:
    """What a decoder makes of a file, after all checks; transparent grey is black."""
    header = inspect(data)
    try:
        pixels = decoders[header.format](data)
    except (cv2.error, OSError, ValueError, SyntaxError):  # the latter three of Pillow
        pixels = None
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise InputError(f"damaged or unsupported {header.format}: its pixels cannot be decoded")
    if pixels.ndim == 2 and header.transparent_grey is not None:
        pixels[pixels == header.transparent_grey] = 0
    return pixels


def luma(image: np.ndarray) -> np.ndarray:
    """The luma of an image, u8 or u16 [H, W]: of [H, W, 3], red first; grey passes unchanged."""
    if image.ndim == 2:
        return image
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)


def to_uint8(image: np.ndarray, max_value: int = FULL_RANGE) -> np.ndarray:
    """Scales u16 of any shape to u8 by a fixed range: 0 becomes 0, `max_value` becomes 255.

    Values are rounded to nearest; u8 passes unchanged. The range is that of the detector, such as
    4095 for 12 bits, and not that of the image: scaling each image by its own extremes would make
    the same tissue differ between patients.

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
    """The map from original to preprocessed pixel coordinates: along each axis scale, then offset.

    Coordinates are continuous, as those of boxes: 0 is the outer edge of the first pixel and W that
    of the last.
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
    """Resizes any image to u8[size, size], or [size, size, 3] in colour.

    Training and evaluation do so alike. Every channel becomes what it would be as a grey image.

    Attributes:
      size: side of the square, in pixels.
      resize: "pad" scales the long side to `size` and centres the image on black; nothing is
        cropped or distorted. "stretch" scales both sides to `size`. "crop" scales the largest
        square in the centre to `size`, as CLIP prepares images; nothing is distorted.
      max_value: the u16 value that becomes 255; see `to_uint8`.

    Each axis shrinks by area averaging, which avoids aliasing, and grows by linear interpolation,
    which does not overshoot.

    Raises:
      InputError: an option outside its range.
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
        """Maps u8 or u16 [H, W] to u8[size, size], and [H, W, 3] to u8[size, size, 3].

        Args:
          out: u8[h, w] or [h, w, 3], to which a part of the square is written instead of all of it.
          corner: row and column of the square where that part begins.

        Returns:
          `out`, or a new array.

        Raises:
          InputError: an image of another shape or dtype, or a pixel above `max_value`.
        """
        if image.shape[2:] not in ((), (3,)) or image.size == 0:
            raise InputError(
                f"image of shape {image.shape}; expected [H, W] or [H, W, 3], not empty"
            )
        if out is None:
            out = np.empty((self.size, self.size, *image.shape[2:]), np.uint8)
        rows, columns = self._taken(*image.shape[:2])
        image = image[rows, columns]
        height, width, top, left = self._placement(*image.shape[:2])
        content = _resize(to_uint8(image, self.max_value), height, width)
        _lay(content, top - corner[0], left - corner[1], out)
        return out

    def geometry(self, height: int, width: int) -> Geometry:
        """The map from an image of `height` x `width` pixels to the square."""
        rows, columns = self._taken(height, width)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        new_height, new_width, top, left = self._placement(height, width)
        scale_y, scale_x = new_height / height, new_width / width
        return Geometry(
            scale_y, scale_x, top - rows.start * scale_y, left - columns.start * scale_x
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for results and exported models."""
        return dataclasses.asdict(self)

    def _taken(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of an image that the square shows."""
        if self.resize != "crop":
            return slice(0, height), slice(0, width)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return slice(top, top + side), slice(left, left + side)

    def _placement(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Height, width, top and left of what is taken inside the square, in pixels."""
        if self.resize == "stretch":
            return self.size, self.size, 0, 0
        scale = self.size / max(height, width)
        new_height = max(1, round(height * scale))
        new_width = max(1, round(width * scale))
        return new_height, new_width, (self.size - new_height) // 2, (self.size - new_width) // 2


def over_black(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Multiplies u8 or u16 by its opacity, of a shape that broadcasts, rounded to nearest."""
    opaque = np.iinfo(image.dtype).max
    product = image.astype(np.uint32) * alpha + np.uint32(opaque // 2)
    return (product // np.uint32(opaque)).astype(image.dtype)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """u8[H, W, ...] -> u8[height, width, ...]: shrinks by area averaging, then grows linearly."""
    low_height, low_width = min(height, image.shape[0]), min(width, image.shape[1])
    if (low_height, low_width) != image.shape[:2]:
        image = cv2.resize(image, (low_width, low_height), interpolation=cv2.INTER_AREA)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def _lay(content: np.ndarray, top: int, left: int, out: np.ndarray) -> None:
    """Writes what fits of `content` to `out` at row `top` and column `left`; the rest becomes 0."""
    height, width = content.shape[:2]
    first, last = max(top, 0), min(top + height, out.shape[0])
    begin, end = max(left, 0), min(left + width, out.shape[1])
    if first >= last or begin >= end:
        out[:] = 0
        return
    out[:first], out[last:] = 0, 0
    out[first:last, :begin], out[first:last, end:] = 0, 0
    out[first:last, begin:end] = content[first - top : last - top, begin - left : end - left]


# --- decoders: [H, W], or [H, W, channels] of grey and alpha, or of B, G, R and perhaps alpha -----


def _jpeg(data: bytes) -> np.ndarray | None:
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION  # libjpeg returns the stored luma
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _jpeg_colour(data: bytes) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _png(data: bytes) -> np.ndarray | None:
    # GRAYSCALE would cut 16 bits to 8 and drop alpha.
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def _tiff(data: bytes) -> np.ndarray:
    data, inverted = tiff.plain(data)
    pixels = _of_pillow(data, "TIFF")
    return np.iinfo(pixels.dtype).max - pixels if inverted else pixels


def _webp(data: bytes) -> np.ndarray:
    return _of_pillow(data, "WEBP")


def _of_pillow(data: bytes, kind: str) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data), formats=(kind,)) as image:
        mode = image.mode
        pixels = np.asarray(image.convert("RGB") if mode == "P" else image)
    if mode == "1":
        return pixels * np.uint8(255)
    if pixels.ndim == 3 and pixels.shape[2] > 2:
        code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
        return cv2.cvtColor(pixels, code)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


_DECODE = {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff, "WebP": _webp}
_DECODE_COLOUR = {**_DECODE, "JPEG": _jpeg_colour}
