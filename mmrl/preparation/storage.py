"""How pixels are kept: the size of the image, the form of its file.

The same steps in the same order as `mmrl.data.image.images.Preprocess` takes, so that a corpus kept
as PNG at the size of training gives the very pixels that training on the source gives.
"""

import dataclasses
from typing import Any

import cv2
import numpy as np

from mmrl.data.image.images import to_uint8
from mmrl.types import InputError

FORMATS = ("jpeg", "png")
_PNG_LEVEL = 6  # of zlib; 9 saves under 1 % more and takes twice the time


@dataclasses.dataclass(frozen=True)
class Storage:
    """What an image becomes.

    Attributes:
      size: the long side in pixels at most; images are made smaller by area, never larger, and
        keep their aspect.
      format: jpeg (grey, 8 bit; u16 is brought to u8 by its full range) or png (lossless; u16
        stays).
      quality: of JPEG, 1 to 100.

    Raises:
      InputError: one of them is out of range.
    """

    size: int = 256
    format: str = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 8192:
            raise InputError(f"--size={self.size}; expected 16 to 8192 pixels")
        if self.format not in FORMATS:
            raise InputError(f"--format={self.format}; choices: {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality={self.quality}; expected 1 to 100")

    def reduce(self, image: np.ndarray) -> np.ndarray:
        """u8[H, W] or u16[H, W] to what is stored, before encoding."""
        if self.format == "jpeg":
            image = to_uint8(image)
        height, width = image.shape
        scale = self.size / max(height, width)
        if scale >= 1:
            return image
        smaller = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)

    def encode(self, stored: np.ndarray) -> bytes:
        """The file of an image that `reduce` made; equal pixels give equal bytes."""
        if self.format == "jpeg":
            settings = [cv2.IMWRITE_JPEG_QUALITY, self.quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
            done, data = cv2.imencode(".jpg", stored, settings)
        else:
            done, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
        if not done:
            raise RuntimeError(
                f"{stored.dtype}{stored.shape} could not be encoded as {self.format}"
            )
        return data.tobytes()

    def to_dict(self) -> dict[str, Any]:
        """What shapes the bytes, for plans and manifests."""
        plain = dataclasses.asdict(self)
        return plain if self.format == "jpeg" else {k: plain[k] for k in ("size", "format")}
