"""Reads images of all kinds: DICOM, JPEG, PNG, TIFF and WebP, told apart by their content.

Corpora, masks and encoders read images here and nowhere else.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import PIL.Image

from mmrl.data.image import arrays, containers, dicom, dicom_pixels, images
from mmrl.data.image.kinds import MAX_BYTES, ImageError, kind_of, unknown
from mmrl.data.reading.rows import Fault
from mmrl.types import InputError

T = TypeVar("T")

# An error names a file only if it is no DICOM file, whose name is often that of a patient. Where
# the content does not tell, such as that of a missing file, its suffix must.
_NAMED = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def decode(data: bytes, *, allow_burned_in: bool = False) -> np.ndarray:
    """Decodes an image of any kind to one channel: u8[H, W] or u16[H, W].

    Args:
      data: the whole file.
      allow_burned_in: accept DICOM images whose header says that text is burned into the pixels.

    Raises:
      InputError: as `dicom_pixels.decode` for a DICOM file, and as `images.decode` for any other.
    """
    if kind_of(data) == "DICOM":
        return dicom_pixels.decode(data, allow_burned_in=allow_burned_in)
    return images.decode(data)


def check(data: bytes, *, allow_burned_in: bool = False) -> None:
    """Finds files that are cut short, and what else is wrong with them, without decoding.

    Raises:
      InputError: as `decode`, except for damage within compressed data.
    """
    if kind_of(data) == "DICOM":
        dicom_pixels.check(data, allow_burned_in=allow_burned_in)
    else:
        containers.inspect(data)


def decode_colour(data: bytes, *, allow_burned_in: bool = False) -> np.ndarray:
    """Decodes an image of any kind to red, green and blue: u8 or u16 [H, W, 3].

    A grey image is repeated. The rest is as of `decode`.
    """
    if kind_of(data) == "DICOM":
        return dicom_pixels.decode(data, allow_burned_in=allow_burned_in, colour=True)
    return images.decode_colour(data)


def decoder(channels: int) -> Callable[..., np.ndarray]:
    """`decode` for 1 channel, `decode_colour` for 3."""
    return decode_colour if channels == 3 else decode


def read(
    path: str | os.PathLike[str], *, allow_burned_in: bool = False, channels: int = 1
) -> np.ndarray:
    """Reads and decodes a file: u8 or u16 [H, W], or [H, W, 3] for 3 channels.

    Raises:
      InputError: as `decode`, or the file cannot be read; names the file unless it may be DICOM.
    """
    return _of_file(path, functools.partial(decoder(channels), allow_burned_in=allow_burned_in))


def load_file(
    root: str, relative: str, allow_burned_in: bool = False, channels: int = 1
) -> np.ndarray:
    """Reads `relative` under `root`; with functools.partial, the `load` of an ImageRef."""
    full = os.path.join(root, relative)
    return read(full, allow_burned_in=allow_burned_in, channels=channels)


def loader(
    root: str, relative: str, *, allow_burned_in: bool = False, channels: int = 1
) -> Callable[[], np.ndarray]:
    """Returns a function that reads `relative` under `root`, see `read`. It pickles.

    Args:
      allow_burned_in: as for `decode`.
    """
    return functools.partial(load_file, root, relative, allow_burned_in, channels)


def pixels(
    given: Any,
    *,
    allow_burned_in: bool = False,
    value_range: arrays.Range | None = None,
    colour: bool = False,
) -> np.ndarray:
    """The pixels of a path, of the bytes of a file, of an array or of a Pillow image.

    Args:
      given: an array is grey or has colours, see `arrays.grey`.
      allow_burned_in: as for `decode`.
      value_range: (lowest, highest) value of arrays, see `arrays.grey`; files state theirs.
      colour: return red, green and blue.

    Returns:
      u8 or u16 [H, W], or [H, W, 3] with `colour`.

    Raises:
      InputError: as `read` and `arrays.grey`.
    """
    use = functools.partial(decoder(3 if colour else 1), allow_burned_in=allow_burned_in)
    if isinstance(given, str | os.PathLike):
        return _of_file(given, use)
    if isinstance(given, bytes):
        return use(given)
    make = arrays.colour if colour else arrays.grey
    if isinstance(given, PIL.Image.Image):
        return arrays.of_pillow(given, value_range, make)
    return make(given, value_range)


def fault(root: str, relative: str, verify: str, *, allow_burned_in: bool = False) -> Fault | None:
    """The reason and detail for which an image file is refused, or None.

    Args:
      verify: "decode" decodes the image; "header" reads the file, and finds those cut short;
        "exists" only checks that the file is there.
    """
    full = os.path.join(root, relative)
    if not relative or not os.path.isfile(full):
        return "missing_image", f"no file '{relative}'" if relative else "the image cell is blank"
    use: Callable[..., Any] = decode if verify == "decode" else check
    try:
        if verify != "exists":
            _of_file(full, functools.partial(use, allow_burned_in=allow_burned_in))
    except InputError as error:
        return getattr(error, "reason", "unreadable_image"), str(error)
    return None


def size(root: str, relative: str) -> tuple[int, int]:
    """Height and width of an image file in pixels.

    Raises:
      InputError: the file or its header cannot be read.
    """
    return _of_file(os.path.join(root, relative), size_of)


def load_mask(
    root: str, relative: str, image_root: str, image: str, label: str
) -> dict[str, np.ndarray]:
    """{label: bool[H, W]} of a PNG file, True where its pixels are not 0.

    Args:
      root, relative: of the mask. image_root, image: of the image that it belongs to.

    Raises:
      InputError: no PNG file, it cannot be read, or its size is not that of the image.
    """
    full = os.path.join(root, relative)
    inside = _of_file(full, _mask)
    if inside.shape != (expected := size(image_root, image)):
        raise InputError(
            f"{full}: a mask of {inside.shape[1]} x {inside.shape[0]} pixels; expected"
            f" {expected[1]} x {expected[0]} as its image"
        )
    return {label: inside}


def mask_fault(root: str, image_root: str, verify: str, pair: tuple[str, str]) -> Fault | None:
    """The reason and detail for which a mask is refused, or None; None for a blank path.

    Args:
      verify: "exists" only checks that the file is there; otherwise it is decoded.
      pair: relative paths of the mask and of its image.
    """
    relative, image = pair
    if not relative:
        return None
    if not os.path.isfile(os.path.join(root, relative)):
        return "missing_mask", f"no file '{relative}'"
    try:
        if verify != "exists":
            load_mask(root, relative, image_root, image, "")
    except InputError as error:
        return "bad_mask", str(error)
    return None


def header(root: str, relative: str) -> dicom.Header | None:
    """The header of a DICOM file; None for a file of another kind.

    Raises:
      InputError: no image, or the file or its header cannot be read.
    """
    full = os.path.join(root, relative)
    return _of_file(full, dicom.inspect) if _of_file(full, _kind, 132) == "DICOM" else None


def _kind(data: bytes) -> str:
    if kind := kind_of(data):
        return kind
    raise unknown(data)


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of an image in pixels, by the bytes of its file; nothing is decoded.

    Raises:
      InputError: no image, or its header cannot be read.
    """
    found = dicom.inspect(data) if kind_of(data) == "DICOM" else containers.inspect(data)
    return found.height, found.width


def _mask(data: bytes) -> np.ndarray:
    if (kind := kind_of(data)) not in ("PNG", ""):
        why = ", which changes pixels" if kind == "JPEG" else ""
        raise InputError(f"a mask as {kind}{why}; expected PNG")
    return images.decode(data) != 0


def _of_file(path: str | os.PathLike[str], use: Callable[[bytes], T], most: int | None = None) -> T:
    """Returns use(bytes of a plain file, at most the first `most`); pipes are never opened.

    Raises:
      ImageError: no such file, above MAX_BYTES, or use() raised it; names the file if it may.
    """
    data = b""
    try:
        if not os.path.isfile(path):
            raise ImageError("no such file")
        if (length := os.path.getsize(path)) > MAX_BYTES:
            raise ImageError(f"{length} bytes; expected at most {MAX_BYTES}", "too_large")
        with open(path, "rb") as file:
            data = file.read(most)
        return use(data)
    except (InputError, OSError) as error:
        problem = error.strerror if isinstance(error, OSError) else str(error)
        reason = getattr(error, "reason", "unreadable_image")
    kind = kind_of(data)
    if kind != "DICOM" and (kind or os.fspath(path).lower().endswith(_NAMED)):
        problem = f"{os.fspath(path)}: {problem}"
    raise ImageError(problem or "cannot be read", reason)  # not within `except`: see DicomError
