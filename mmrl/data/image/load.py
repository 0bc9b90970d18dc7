"""Loads and prepares the images of a corpus, and keeps them in memory if asked to."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from mmrl.data import stall
from mmrl.data.corpus import Corpus
from mmrl.data.image.channels import fit
from mmrl.data.image.images import Preprocess
from mmrl.types import InputError


class Load:
    """(index, number) -> preprocessed image, u8[S, S], or [S, S, 3] in colour.

    Images are kept in memory until `cache_mib` MiB are used, in each process separately. None is
    evicted: an epoch reads each image once, so a cache that evicts the oldest image would have
    evicted every image before its next use.

    Args:
      cache_mib: 0 keeps none.
      channels, colour: of the images that it returns, and config.data.colour, see `channels.fit`.
      mark: called with each stage before it begins, see `stall.Board.mark`.
    """

    def __init__(
        self,
        corpus: Corpus,
        preprocess: Preprocess,
        cache_mib: int,
        mark: Callable[[int, int], None] = stall.ignore,
        *,
        channels: int = 1,
        colour: str = "as_stored",
    ) -> None:
        self._load, self._positions, self._ids = corpus.load, corpus.positions, corpus.ids
        self._preprocess, self._mark = preprocess, mark
        self._channels, self._colour = channels, colour
        self._kept = cache_mib * 2**20 // (preprocess.size**2 * channels)
        self.cache: dict[tuple[int, int], np.ndarray] = {}
        self._adding = threading.Lock()

    def __call__(
        self,
        index: int,
        number: int,
        out: np.ndarray | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """The image of one example.

        Args:
          index: of the example in the corpus.
          number: of the image in its record.
          out: u8[h, w] or [h, w, 3]. If given, the window of the image whose first pixel is at
            (row, column) `corner` is written there.

        Returns:
          `out`, or else the whole image, which must not be modified: it may be in the
          cache.

        Raises:
          InputError: the image cannot be read; names the record.
        """
        key = int(self._positions[index]), number
        image = self.cache.get(key)
        if image is None:
            keep = len(self.cache) < self._kept
            try:
                self._mark(stall.READ, index)
                image = self._load(*key)
                self._mark(stall.PREPROCESS, index)
                image = fit(image, self._channels, self._colour)
                if out is not None and not keep:
                    return self._preprocess(image, out, corner)
                image = self._preprocess(image)
            except InputError as error:
                raise InputError(f"record {self._ids[index]}: {error}") from None
            if keep:
                with self._adding:
                    if len(self.cache) < self._kept:
                        self.cache[key] = image
        if out is None:
            return image
        (top, left), (height, width) = corner, out.shape[:2]
        np.copyto(out, image[top : top + height, left : left + width])
        return out

    def __getstate__(self) -> dict[str, Any]:
        # Without the pixels: a worker process fills a cache of its own.
        kept = {name: value for name, value in self.__dict__.items() if name != "_adding"}
        return {**kept, "cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _adding=threading.Lock())
