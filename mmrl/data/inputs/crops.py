"""Crops: several crops of the image of each record, for multi-crop training."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter
from mmrl.data.image.images import Preprocess
from mmrl.data.image.jitter import DRAWS, Jitter
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.data.inputs.image import Image, Pixels
from mmrl.types import InputError


class Crops(Image):
    """pixels u8[n, V, s, s, C]: V crops of the image that the input `image` shows.

    Each crop has draws of its own: of its place and size (`crop_scale`, `aspect`) and, in training,
    of the other changes of an image. In evaluation each example has the same crops every time.
    There are no horizontal flips. Several inputs of this kind, such as wide and local crops, decode
    an image once if they load it at one size (`load_size`).

    Args: as of Input. V is `num_crops`, s is `crop_size` or, where that is 0, the size of the
      tower.

    Raises:
      InputError: as of Image; a size that is no multiple of the patches of the tower.
    """

    tower_options: ClassVar[tuple[str, ...]] = ("size",)
    options: ClassVar[tuple[str, ...]] = ("num_crops", "crop_size", *Image.options)

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.count = int(data.get("num_crops", 2))
        self.side = int(data.get("crop_size", 0)) or self.size
        patch = int(tower.get("patch_size") or 1)
        if self.side % patch:
            raise InputError(
                f"config.inputs.{name}.crop_size={self.side}; expected a multiple of {patch}, the "
                "patch size of its tower"
            )
        loaded = int(data["load_size"]) or max(self.size, self.side)
        if loaded < self.side:
            raise InputError(
                f"config.inputs.{name}.crop_size={self.side}; expected at most load_size={loaded}"
            )
        self.loaded = Preprocess(loaded, data["resize"])
        self.jitter = dataclasses.replace(self.jitter, size=self.side)
        self.evaluated = Jitter(self.side, self.jitter.crop_scale, self.jitter.aspect)
        self.recent = Recent()

    def link(self, inputs: Mapping[str, Input]) -> None:
        """See Input."""
        equal = (
            one.recent
            for one in inputs.values()
            if isinstance(one, Crops)
            and (one.loaded, one.colour, one.channels) == (self.loaded, self.colour, self.channels)
        )
        self.recent = next(equal, self.recent)

    def shapes(self) -> Shapes:
        """See Input."""
        return {"pixels": ((self.count, self.side, self.side, self.channels), np.uint8)}

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Crops(self, place)


class Recent:
    """The images of the rows that each thread makes, kept until it makes other rows."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __call__(
        self, key: tuple[Any, ...], load: Callable[[], Sequence[np.ndarray]]
    ) -> Sequence[np.ndarray]:
        """load(), or what it returned for the same key before."""
        kept = self._of_thread
        if getattr(kept, "key", None) != key:
            kept.images, kept.key = load(), key
        return kept.images

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Recent, ()  # without the images: worker processes load their own


class _Crops(Pixels):
    """Loads images and crops them."""

    def __init__(self, own: Crops, place: Place) -> None:
        super().__init__(own, place, own.loaded)
        self._crops = own

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own, place = self._crops, self._place
        if not place.train:  # whatever batch an example is in
            seeds = counter.bits(np.uint64(0), np.asarray(rows.indices))
            rows = rows._replace(seeds=seeds)
        numbers = own.numbers(place, rows)
        places = list(zip(rows.indices, numbers, strict=True))
        images = own.recent(
            (place.corpus.name, place.train, *places),
            lambda: [self.load(*one) for one in places],
        )
        jitter = own.jitter if place.train else own.evaluated
        pixels = self.black(len(images), own.count, own.side, own.side)
        each = np.arange(own.count * DRAWS).reshape(own.count, DRAWS)
        drawn = counter.uniforms(rows.stream(f"{own.name}/jitter")[:, None, None], each).tolist()
        for crops, image, draws in zip(pixels, images, drawn, strict=True):
            for crop, draw in zip(crops, draws, strict=True):
                jitter.apply(image, draw, crop)
        return {"pixels": self.coloured(pixels)}
