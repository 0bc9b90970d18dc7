"""Chooses the reader of an image file: DICOM by its suffix, JPEG and PNG by their content."""

import functools
import os
from collections.abc import Callable

import numpy as np

from mmrl.data.image import dicom, dicom_pixels, images
from mmrl.data.reading.rows import Fault
from mmrl.types import InputError

_DICOM = (".dcm", ".dicom")


def loader(root: str, relative: str, *, allow_burned_in: bool = False) -> Callable[[], np.ndarray]:
    """Returns a function that reads `relative` under `root`: u8[H, W] or u16[H, W]. It pickles.

    Args:
      allow_burned_in: accept DICOM images whose header says that text is burned into the pixels.
    """
    if _is_dicom(relative):
        return functools.partial(dicom_pixels.load_file, root, relative, allow_burned_in)
    return functools.partial(images.load_file, root, relative)


def fault(root: str, relative: str, verify: str, *, allow_burned_in: bool = False) -> Fault | None:
    """The reason and detail for which an image file is refused, or None.

    Args:
      verify: "decode" decodes the image; "header" reads the file, and finds those cut short;
        "exists" only checks that the file is there.
    """
    full = os.path.join(root, relative)
    if not relative or not os.path.isfile(full):
        return "missing_image", f"no file '{relative}'" if relative else "the image cell is blank"
    try:
        if verify == "decode":
            loader(root, relative, allow_burned_in=allow_burned_in)()
        elif verify == "header" and _is_dicom(relative):
            dicom_pixels.check_file(full, allow_burned_in=allow_burned_in)
        elif verify == "header":
            images.check_file(full)
    except InputError as error:
        return getattr(error, "reason", "unreadable_image"), str(error)
    return None


def size(root: str, relative: str) -> tuple[int, int]:
    """Height and width of an image file in pixels.

    Raises:
      InputError: the file or its header cannot be read.
    """
    full = os.path.join(root, relative)
    found = dicom.inspect(full) if _is_dicom(relative) else images.check_file(full)
    return found.height, found.width


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
    if (kind := images.check_file(full).format) != "PNG":
        raise InputError(f"{full}: a mask as {kind}, which changes pixels; expected PNG")
    inside = images.read(full) != 0
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
      DicomError: the file or its header cannot be read.
    """
    return dicom.inspect(os.path.join(root, relative)) if _is_dicom(relative) else None


def _is_dicom(path: str) -> bool:
    return path.lower().endswith(_DICOM)
