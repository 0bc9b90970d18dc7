"""Image files of every kind that a corpus may name: JPEG and PNG by content, DICOM by suffix."""

import functools
import os
from collections.abc import Callable

import numpy as np

from mmrl.data.image import dicom, images
from mmrl.data.reading.rows import Fault
from mmrl.types import InputError

_DICOM = (".dcm", ".dicom")


def loader(root: str, relative: str, *, allow_burned_in: bool = False) -> Callable[[], np.ndarray]:
    """What reads `relative` under `root`, u8[H, W] or u16[H, W]; it pickles.

    Args:
      allow_burned_in: accept DICOM images whose header says that text is burned into the pixels.
    """
    if relative.lower().endswith(_DICOM):
        return functools.partial(dicom.load_file, root, relative, allow_burned_in)
    return functools.partial(images.load_file, root, relative)


def fault(root: str, relative: str, verify: str, *, allow_burned_in: bool = False) -> Fault | None:
    """Reason and detail of what is wrong with an image file, or None.

    Args:
      verify: "decode" decodes it, "header" finds files cut short, "exists" only looks for it.
    """
    full = os.path.join(root, relative)
    if not relative or not os.path.isfile(full):
        return "missing_image", f"no file '{relative}'" if relative else "the image cell is blank"
    try:
        if verify == "decode":
            loader(root, relative, allow_burned_in=allow_burned_in)()
        elif verify == "header" and relative.lower().endswith(_DICOM):
            dicom.check_file(full, allow_burned_in=allow_burned_in)
        elif verify == "header":
            images.check_file(full)
    except InputError as error:
        return getattr(error, "reason", "unreadable_image"), str(error)
    return None


def header(root: str, relative: str) -> dicom.Header | None:
    """The header of a DICOM file, without pseudonyms; None for a file of another kind.

    Raises:
      DicomError: the file or its header cannot be read.
    """
    if not relative.lower().endswith(_DICOM):
        return None
    return dicom.inspect(os.path.join(root, relative), None)
