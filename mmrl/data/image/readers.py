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


def header(root: str, relative: str) -> dicom.Header | None:
    """The header of a DICOM file; None for a file of another kind.

    Raises:
      DicomError: the file or its header cannot be read.
    """
    return dicom.inspect(os.path.join(root, relative)) if _is_dicom(relative) else None


def _is_dicom(path: str) -> bool:
    return path.lower().endswith(_DICOM)
