"""Random geometry and photometry of training images: one warp and one lookup table per image.

There are no horizontal flips, since reports name the left and the right side.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from mmrl.types import InputError

DRAWS = 10  # random numbers per image


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Random changes of one square image; the defaults change nothing.

    The channels of a colour image share one geometry and one table of levels. The mean about which
    `contrast` works is that of all channels.

    Each option has random numbers of its own, so that setting one does not change the effect of the
    others. Gamma, brightness and contrast are applied in this order.

    Attributes:
      size: side of the result; None for that of the image. Where the image is larger and
        `crop_scale` is (1, 1), the result is a random window of `size` pixels, not scaled.
        Otherwise the random resized crop is scaled to `size`.
      crop_scale: least and greatest area of the random resized crop, as a share of the image.
      aspect: least and greatest width / height of the crop, which is drawn log-uniformly. The range
        includes 1, and narrows towards 1 as the crop approaches the whole image.
      translate: greatest shift along each axis, as a share of the side; the border is black.
      rotate: greatest angle in either direction, in degrees; the border is black.
      gamma: grey levels, as shares of 255, are raised to a power drawn log-uniformly from
        1 / (1 + gamma) to 1 + gamma.
      brightness: grey levels are multiplied by a factor from 1 - brightness to 1 + brightness.
      contrast: differences of the grey levels from their mean are multiplied by a factor from
        1 - contrast to 1 + contrast.

    Raises:
      InputError: an option outside its range.
    """

    size: int | None = None
    crop_scale: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (0.9, 1.1)
    translate: float = 0.0
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"augment size {self.size}; expected at least 1")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise InputError(f"augment crop_scale {self.crop_scale}; expected 0 < low <= high <= 1")
        low, high = self.aspect
        if not 0 < low <= 1 <= high:
            raise InputError(f"augment aspect {self.aspect}; expected 0 < low <= 1 <= high")
        for name in ("translate", "rotate", "brightness", "contrast", "gamma"):
            value, limit = getattr(self, name), 180 if name == "rotate" else 1
            if not 0 <= value <= limit:
                raise InputError(f"augment {name} {value}; expected 0 to {limit}")

    @functools.cached_property
    def _moves(self) -> bool:
        return tuple(self.crop_scale) != (1, 1) or bool(self.translate or self.rotate)

    @functools.cached_property
    def _relights(self) -> bool:
        return bool(self.brightness or self.contrast or self.gamma)

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Maps u8[S, S] to u8[size, size], and [S, S, 3] to [size, size, 3].

        Args:
          out: the array of that shape, contiguous, to which the result is written.

        Returns:
          `out`, or a new array.

        Raises:
          InputError: an image of another shape or dtype, or smaller than `size`.
        """
        shape = image.shape
        if image.dtype != np.uint8 or shape[2:] not in ((), (3,)) or len(set(shape[:2])) != 1:
            raise InputError(
                f"image {image.dtype}{list(shape)}; expected uint8[S, S] or uint8[S, S, 3]"
            )
        size = self._side(shape[0])
        out = np.empty((size, size, *shape[2:]), np.uint8) if out is None else out
        return self.apply(image, rng.random(DRAWS).tolist(), out)

    def apply(self, image: np.ndarray, draw: Sequence[float], out: np.ndarray) -> np.ndarray:
        """As `__call__`, with `DRAWS` random numbers in [0, 1) instead of a generator."""
        size = self._side(image.shape[0])
        return self.relight(self._place(image, size, draw, out), draw, out)

    def fill(
        self, out: np.ndarray, side: int, draw: Sequence[float], image: Callable[..., np.ndarray]
    ) -> None:
        """As `apply`, for an image that is not made yet: only the window that is needed is made.

        Args:
          side: of the image.
          image: () -> u8[side, side] or [side, side, 3]; (out, corner) writes the part of the image
            that begins at row and column `corner` to `out`.
        """
        corner = self.window(side, draw)
        if corner is None:
            self.apply(image(), draw, out)
        else:
            image(out, corner)
            self.relight(out, draw, out)

    def relight(self, moved: np.ndarray, draw: Sequence[float], out: np.ndarray) -> np.ndarray:
        """Writes `moved` with changed levels to `out`, which may be `moved` itself."""
        if self._relights:
            return cv2.LUT(moved, self._levels(moved, draw), dst=out)
        if moved is not out:
            np.copyto(out, moved)
        return out

    def window(self, side: int, draw: Sequence[float]) -> tuple[int, int] | None:
        """Top and left of the window that is the result before `relight`.

        None where the result is no window of the image, so that the whole image is needed.
        """
        size = self._side(side)
        if self._moves:
            return None
        return (0, 0) if size == side else _corner(side, size, size, draw)

    def _side(self, side: int) -> int:
        """The side of the result, from that of the image."""
        size = side if self.size is None else self.size
        if size > side:
            raise InputError(f"image of side {side}; expected at least size {size}")
        return size

    def _place(
        self, image: np.ndarray, size: int, draw: Sequence[float], out: np.ndarray
    ) -> np.ndarray:
        """The result before `relight`: `out`, or a window of `image` where that is the result."""
        side = image.shape[0]
        if not self._moves and size == side:
            return image
        if size < side and tuple(self.crop_scale) == (1, 1):
            width = height = size / side
        else:
            width, height = self._extent(draw)
        if size != side and not (self.translate or self.rotate):
            return _cut(image, width, height, draw, out)
        matrix = self._matrix(width, height, side, size, draw)
        if matrix == _IDENTITY:
            return image
        return cv2.warpAffine(
            image,
            np.array(matrix),
            (size, size),
            dst=out,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            # A crop does not leave the image, so its border must not be blended with black.
            borderMode=cv2.BORDER_CONSTANT
            if self.translate or self.rotate
            else cv2.BORDER_REPLICATE,
        )

    def _matrix(
        self, width: float, height: float, side: int, size: int, draw: Sequence[float]
    ) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """The affine map from pixels of the result to pixels of the image."""
        scale = side / size
        cos, sin = 1.0, 0.0
        if self.rotate:
            angle = math.radians((2 * draw[6] - 1) * self.rotate)
            cos, sin = math.cos(angle), math.sin(angle)
        x, y = (
            side * (extent / 2 + draw[2 + axis] * (1 - extent) - self._shift(draw[4 + axis]))
            for axis, extent in enumerate((width, height))
        )
        # The matrix maps pixel centres, which are half a pixel from the edge of the pixel.
        half = (size - 1) / 2
        xx, xy = width * cos * scale, -height * sin * scale
        yx, yy = width * sin * scale, height * cos * scale
        return (
            (xx, xy, x - (xx * half + xy * half) - 0.5),
            (yx, yy, y - (yx * half + yy * half) - 0.5),
        )

    def _shift(self, drawn: float) -> float:
        return (2 * drawn - 1) * self.translate

    def _extent(self, draw: Sequence[float]) -> tuple[float, float]:
        """Width and height of the crop, as shares of the side."""
        area = self.crop_scale[0] + draw[0] * (self.crop_scale[1] - self.crop_scale[0])
        low, high = np.log(max(self.aspect[0], area)), np.log(min(self.aspect[1], 1 / area))
        ratio = float(np.exp(low + draw[1] * (high - low)))
        return min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))

    def _levels(self, moved: np.ndarray, draw: Sequence[float]) -> np.ndarray:
        """u8[256]: the new value of each level of `moved`, whose channels count as one."""
        levels = _LEVELS
        if self.gamma:
            power = (1 + self.gamma) ** (2 * draw[9] - 1)
            levels = 255 * (_LEVELS / 255) ** power
        gain = 1 + (2 * draw[7] - 1) * self.brightness
        slope = 1 + (2 * draw[8] - 1) * self.contrast
        if self.gamma:
            counts = cv2.calcHist([moved.reshape(len(moved), -1)], [0], None, [256], [0, 256])
            counts = counts.ravel()
            mean = gain * float(counts @ levels) / moved.size
        else:
            mean = gain * (sum(cv2.sumElems(moved)) / moved.size)
        return np.clip(np.rint((gain * levels - mean) * slope + mean), 0, 255).astype(np.uint8)


def _cut(
    image: np.ndarray, width: float, height: float, draw: Sequence[float], out: np.ndarray
) -> np.ndarray:
    """A crop of whole pixels, scaled to `out`, which takes half the time of a warp."""
    side, size = image.shape[0], out.shape[0]
    wide, high = max(1, round(side * width)), max(1, round(side * height))
    top, left = _corner(side, wide, high, draw)
    window = image[top : top + high, left : left + wide]
    if window.shape[:2] == out.shape[:2]:
        return window
    # Linear interpolation reads two pixels, and would skip some where more become one.
    coarse = min(wide, high) >= 2 * size
    method = cv2.INTER_AREA if coarse else cv2.INTER_LINEAR
    return cv2.resize(window, (size, size), dst=out, interpolation=method)


def _corner(side: int, wide: int, high: int, draw: Sequence[float]) -> tuple[int, int]:
    """Top and left of a window of whole pixels in an image of this side."""
    return int(draw[3] * (side - high + 1)), int(draw[2] * (side - wide + 1))


_LEVELS = np.arange(256, dtype=np.float64)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
