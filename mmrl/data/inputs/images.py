"""Images: all images of each record as a set, such as the projections or the slices of a study."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter
from mmrl.data.image.jitter import DRAWS
from mmrl.data.inputs.base import Place, Reader, Rows, Shapes
from mmrl.data.inputs.image import Image, Pixels
from mmrl.types import InputError


class Images(Image):
    """pixels u8[n, S, H, W, C] and mask bool[n, S]: the images of the record, in their order.

    S is `max_images`. A record with fewer images fills the first places; the others are black, and
    `mask` is False there. Of a record with more, training draws S at each step and evaluation takes
    the first S. The images of a record are jittered alike, with one draw for all of them, so that
    slices of a volume still match each other.

    Args: as of Input. config.data.views chooses no image here, but still rejects records.

    Raises:
      InputError: as of Image; config.data.views=each, which makes an example of every image.
    """

    options: ClassVar[tuple[str, ...]] = ("max_images", *Image.options)

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.most = int(data.get("max_images", 8))
        if data["views"] == "each":
            raise InputError(
                f"config.data.views=each makes an example of every image, and input {name!r} holds "
                "all images of a study; expected first, frontal or random"
            )

    def shapes(self) -> Shapes:
        """See Input."""
        return {
            "pixels": ((self.most, self.size, self.size, self.channels), np.uint8),
            "mask": ((self.most,), np.bool_),
        }

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Sets(self, place)


class _Sets(Pixels):
    """Chooses, reads, prepares and jitters the images of each record."""

    def __init__(self, own: Images, place: Place) -> None:
        super().__init__(own, place)
        self._set = own

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own, place = self._set, self._place
        pixels = self.black(len(rows.indices), own.most, own.size, own.size)
        mask = np.zeros(pixels.shape[:2], np.bool_)
        seeds = rows.stream(f"{own.name}/choice")
        jitter = rows.stream(f"{own.name}/jitter")
        drawn = counter.uniforms(jitter[:, None], np.arange(DRAWS)).tolist()
        for row, (index, seed) in enumerate(zip(rows.indices, seeds, strict=True)):
            count = int(place.corpus.counts[index])
            chosen = counter.subset(seed, count, own.most) if place.train else range(count)
            for element, number in enumerate(chosen[: own.most]):
                self.fill(pixels[row, element], index, int(number), drawn[row])
                mask[row, element] = True
        return {"pixels": self.coloured(pixels), "mask": mask}
