"""How a prepared corpus stores images: their size and file format.

Steps and order are those of `mmrl.data.image.images.Preprocess`. A corpus that is stored as PNG at
the size of training thus gives the same pixels as training on the source.
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
    """How images are stored.

    Attributes:
      size: greatest length of the long side in pixels. Larger images are reduced by area averaging
        and keep their aspect ratio; smaller images keep their size.
      format: jpeg (8 bits; the full range of u16 is scaled to u8) or png (lossless, 8 or 16 bits).
      quality: of JPEG, 1 to 100.

    Raises:
      InputError: an option outside its range.
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
        """u8 or u16 [H, W] or [H, W, 3] to the pixels that are stored."""
        if self.format == "jpeg":
            image = to_uint8(image)
        height, width = image.shape[:2]
        scale = self.size / max(height, width)
        if scale >= 1:
            return image
        smaller = max(1, round(width * scale)), max(1, round(height * scale))
        return cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)

    def encode(self, stored: np.ndarray) -> bytes:
        """Encodes pixels that `reduce` returned; equal pixels give equal bytes.

        JPEG stores colour at the full resolution (4:4:4).
        """
        colour = stored.ndim == 3
        if colour:
            stored = np.ascontiguousarray(stored[..., ::-1])  # OpenCV has blue first
        if self.format == "jpeg":
            settings = [cv2.IMWRITE_JPEG_QUALITY, self.quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
            if colour:
                settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            done, data = cv2.imencode(".jpg", stored, settings)
        else:
            done, data = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
        if not done:
            raise RuntimeError(
                f"{stored.dtype}{stored.shape} could not be encoded as {self.format}"
            )
        return data.tobytes()

    def to_dict(self) -> dict[str, Any]:
        """The options that affect the stored bytes, for plans and manifests."""
        plain = dataclasses.asdict(self)
        return plain if self.format == "jpeg" else {k: plain[k] for k in ("size", "format")}
