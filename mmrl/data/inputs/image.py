"""Images: the one of each record that training or evaluation looks at."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter, stall
from mmrl.data.image.images import Preprocess
from mmrl.data.image.jitter import DRAWS, Jitter
from mmrl.data.image.load import Load
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.types import InputError

_JITTERS = ("crop_scale", "aspect", "translate", "rotate", "brightness", "contrast", "gamma")


class Image(Input):
    """pixels u8[n, S, S, 1], jittered in training; S is the size of the tower.

    Args: as of Input. config.data.views chooses the image of a record.

    Raises:
      InputError: a jitter or a size out of its range.
    """

    kind: ClassVar[str] = "image"
    options: ClassVar[tuple[str, ...]] = ("load_size", "resize", *_JITTERS)
    required: ClassVar[bool] = True

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.size = int(tower["size"])
        if 0 < data["load_size"] < self.size:
            raise InputError(
                f"load_size={data['load_size']} of input {name!r} must be 0 or at least the size "
                f"of its tower, {self.size}"
            )
        self.preprocess = Preprocess(self.size, data["resize"])
        self.loaded = Preprocess(data["load_size"] or self.size, data["resize"])
        self.jitter = Jitter(size=self.size, **{key: data[key] for key in _JITTERS})

    def shapes(self) -> Shapes:
        """See Input."""
        return {"pixels": ((self.size, self.size, 1), np.uint8)}

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Images(self, place)

    def numbers(self, place: Place, rows: Rows) -> list[int]:
        """Which image of its record each row shows."""
        corpus, train = place.corpus, place.train
        views = rows.stream("image/view").tolist() if train else [0] * len(rows.indices)
        return [
            view % count
            if train and (count := int(corpus.choices[index])) > 1
            else int(corpus.numbers[index])
            for index, view in zip(rows.indices, views, strict=True)
        ]


class _Images:
    """Reads, prepares and jitters images."""

    def __init__(self, own: Image, place: Place) -> None:
        self._own, self._place = own, place
        cached = own.data["cache_mib"] if place.train and own.data["cache_images"] else 0
        preprocess = own.loaded if place.train else own.preprocess
        self.load = Load(place.corpus, preprocess, cached, place.mark)

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own, place = self._own, self._place
        numbers = own.numbers(place, rows)
        present = np.array([number >= 0 for number in numbers])
        pixels = np.zeros((len(numbers), own.size, own.size), np.uint8)
        uniforms: list[list[float]] = [[]] * len(numbers)
        if place.train:
            seeds = rows.stream(f"{own.name}/jitter")
            uniforms = counter.uniforms(seeds[:, None], np.arange(DRAWS)).tolist()
        for row, index, number, drawn in zip(pixels, rows.indices, numbers, uniforms, strict=True):
            if number < 0:
                continue
            image = functools.partial(self._loaded, index, number)
            if place.train:
                own.jitter.fill(row, own.loaded.size, drawn, image)
            else:
                image(row)
        arrays = {"pixels": pixels[..., None]}
        return arrays if own.required else arrays | {"present": present}

    def _loaded(self, index: int, number: int, *window: Any) -> np.ndarray:
        """What `Load` returns; the stage after it is augmentation."""
        image = self.load(index, number, *window)
        self._place.mark(stall.AUGMENT, index)
        return image
