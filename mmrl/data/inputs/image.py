"""Images: the one of each record that training or evaluation looks at."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter, stall
from mmrl.data.image import channels
from mmrl.data.image.images import Preprocess
from mmrl.data.image.jitter import DRAWS, Jitter
from mmrl.data.image.load import Load
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.types import InputError, Source

_JITTERS = ("crop_scale", "aspect", "translate", "rotate", "brightness", "contrast", "gamma")


class Image(Input):
    """pixels u8[n, S, S, C], jittered in training; S and C are size and channels of the tower.

    Args: as of Input. config.data.views chooses the image of a record, config.data.colour says
    what becomes of its colour.

    Raises:
      InputError: a jitter, a size or a number of channels out of its range.
    """

    kind: ClassVar[str] = "image"
    options: ClassVar[tuple[str, ...]] = ("load_size", "resize", "colour", *_JITTERS)
    required: ClassVar[bool] = True

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.size, self.colour = int(tower["size"]), data["colour"]
        given = tower.get("channels", 1)
        self.channels = channels.check(f"channels of the tower of input {name!r}", given)
        channels.check_colour(f"colour of input {name!r}", self.colour)
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
        return {"pixels": ((self.size, self.size, self.channels), np.uint8)}

    def check(self, name: str, source: Source) -> None:
        """See Input."""
        self.loaded_channels(name, channels.of(source))

    def loaded_channels(self, corpus: str, stored: int) -> int:
        """The channels with which images of a corpus are prepared, see `channels.loaded`."""
        where = f"config.towers.{self.tower_name or 'image'}"
        return channels.loaded(self.colour, stored, self.channels, corpus=corpus, where=where)

    def open(self, place: Place) -> Reader:
        """See Input."""
        return Pixels(self, place)

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


class Pixels:
    """Reads, prepares and jitters images.

    Args:
      preprocess: of the images before they are jittered, if it is another one in evaluation.
    """

    def __init__(self, own: Image, place: Place, preprocess: Preprocess | None = None) -> None:
        self._own, self._place = own, place
        cached = own.data["cache_mib"] if place.train and own.data["cache_images"] else 0
        preprocess = preprocess or (own.loaded if place.train else own.preprocess)
        corpus = place.corpus
        self._channels = own.loaded_channels(corpus.name, corpus.channels)
        self.load = Load(
            corpus, preprocess, cached, place.mark, channels=self._channels, colour=own.colour
        )

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pixels of the rows and, where a record may have no image, `present`."""
        own, place = self._own, self._place
        numbers = own.numbers(place, rows)
        present = np.array([number >= 0 for number in numbers])
        pixels = self.black(len(numbers), own.size, own.size)
        uniforms: list[list[float]] = [[]] * len(numbers)
        if place.train:
            seeds = rows.stream(f"{own.name}/jitter")
            uniforms = counter.uniforms(seeds[:, None], np.arange(DRAWS)).tolist()
        for row, index, number, drawn in zip(pixels, rows.indices, numbers, uniforms, strict=True):
            if number >= 0:
                self.fill(row, index, number, drawn)
        arrays = {"pixels": self.coloured(pixels)}
        return arrays if own.required else arrays | {"present": present}

    def black(self, *shape: int) -> np.ndarray:
        """u8[*shape] or u8[*shape, 3], as images are loaded."""
        return np.zeros(shape if self._channels == 1 else (*shape, self._channels), np.uint8)

    def coloured(self, pixels: np.ndarray) -> np.ndarray:
        """Images as they are loaded -> u8[..., C], with the channels that the tower reads."""
        if self._channels > 1:
            return pixels
        return channels.repeated(pixels) if self._own.channels > 1 else pixels[..., None]

    def fill(self, out: np.ndarray, index: int, number: int, drawn: Sequence[float]) -> None:
        """Writes an image of an example to `out`, in training jittered by `drawn`."""
        image = functools.partial(self._loaded, index, number)
        if self._place.train:
            self._own.jitter.fill(out, self._own.loaded.size, drawn, image)
        else:
            image(out)

    def _loaded(self, index: int, number: int, *window: Any) -> np.ndarray:
        """What `Load` returns; the stage after it is augmentation."""
        image = self.load(index, number, *window)
        self._place.mark(stall.AUGMENT, index)
        return image
