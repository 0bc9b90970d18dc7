"""Images that programs hold in memory: arrays and Pillow images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from mmrl.data.image.images import FULL_RANGE, luma, over_black
from mmrl.types import InputError

Range = tuple[float, float]

_SHAPES = "[H, W], or [H, W, C] of 1 grey, 3 red, green and blue, or 4 channels with opacity"
# Modes of Pillow whose arrays are grey or red, green, blue as they are; others are converted.
_PLAIN = ("L", "RGB", "RGBA", "F", "I")


def grey(given: Any, value_range: Range | None = None) -> np.ndarray:
    """An array as one channel: u8[H, W] or u16[H, W].

    Colour becomes luma, and transparent pixels are composed over black, as of files. u8 and u16 use
    their whole range. Other numbers become u16: `value_range` gives the values that become black
    and white. Floats without it are from 0 to 1.

    Args:
      given: an array, or what becomes one: u8, u16 or float [H, W] or [H, W, C], C of 1, 3, 4.
      value_range: (lowest, highest) value; also of u8 and u16, such as (0, 4095) for 12 bits.

    Raises:
      InputError: an array of another shape or type, or values outside the range.
    """
    array = _checked(given, value_range)
    if array.ndim == 2:
        return array
    made = luma(array[..., :3])
    return over_black(made, array[..., 3]) if array.shape[2] == 4 else made


def colour(given: Any, value_range: Range | None = None) -> np.ndarray:
    """An array as red, green and blue, u8 or u16 [H, W, 3]; the rest is as of `grey`."""
    array = _checked(given, value_range)
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return over_black(array[..., :3], array[..., 3:]) if array.shape[2] == 4 else array


def of_pillow(
    image: PIL.Image.Image,
    value_range: Range | None = None,
    make: Callable[[Any, Range | None], np.ndarray] = grey,
) -> np.ndarray:
    """A Pillow image as `make` has it: `grey` or `colour`.

    Raises:
      InputError: as of `grey`; 32-bit integers without a range; a file that cannot be read.
    """
    try:
        if image.mode.startswith("I;16"):
            return make(np.asarray(image, np.uint16), value_range)
        if image.mode not in _PLAIN:
            clear = image.mode in ("LA", "La", "PA", "RGBa") or "transparency" in image.info
            image = image.convert("L" if image.mode == "1" else "RGBA" if clear else "RGB")
        return make(np.asarray(image), value_range)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"a Pillow image of mode {image.mode} cannot be read: {error}") from None


def _checked(given: Any, value_range: Range | None) -> np.ndarray:
    """u8 or u16 [H, W], [H, W, 3] or [H, W, 4]."""
    array = np.asarray(given)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(f"an array {array.dtype}{list(array.shape)}; expected {_SHAPES}")
    if not array.size:
        raise InputError(f"an array without pixels, {list(array.shape)}")
    return _ranged(array, value_range)


def _ranged(array: np.ndarray, value_range: Range | None) -> np.ndarray:
    """u8 or u16 of the same shape."""
    if array.dtype.kind not in "uif":
        raise InputError(
            f"an array of {array.dtype}; expected uint8, uint16, or numbers with value_range"
        )
    if value_range is None:
        if array.dtype in (np.uint8, np.uint16):
            return array
        if array.dtype.kind != "f":
            raise InputError(
                f"an array of {array.dtype}, whose black and white are not known; state "
                "value_range=(black, white)"
            )
    low, high = map(float, value_range or (0, 1))
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"value_range={value_range}; expected (lowest, highest)")
    values = array.astype(np.float64)
    least, greatest = float(values.min()), float(values.max())
    if not (low <= least and greatest <= high):  # also where one is not a number
        raise InputError(
            f"an array of {array.dtype} with values from {least:g} to {greatest:g}; expected "
            f"{low:g} to {high:g}"
            + ("" if value_range else ", or state value_range=(black, white)")
        )
    return np.rint((values - low) / (high - low) * FULL_RANGE).astype(np.uint16)
