"""Bag: features of the parts of a study, such as the patches of a slide, computed elsewhere."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data import counter, stall
from mmrl.data.corpus import Corpus
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.types import InputError


class Bag(Input):
    """values f32[n, S, F], mask bool[n, S] and present bool[n]: the bag of features of the record.

    S is `max_elements`. A bag with fewer rows fills the first places; the others are zero, and
    `mask` is False there. Of a bag with more, training draws S rows at each step and evaluation
    takes S rows at equal distances, the first and the last among them; both keep their order.

    Args: as of Input. F is the size of the tower.

    Raises:
      InputError: from `open`, a corpus without bags, or whose first bag has another F; when it is
        read, any other such bag.
    """

    kind: ClassVar[str] = "vector"
    options: ClassVar[tuple[str, ...]] = ("max_elements",)

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.most, self.size = int(data.get("max_elements", 256)), int(tower["size"])

    def shapes(self) -> Shapes:
        """See Input."""
        return {
            "values": ((self.most, self.size), np.float32),
            "mask": ((self.most,), np.bool_),
            "present": ((), np.bool_),
        }

    def open(self, place: Place) -> Reader:
        """See Input."""
        first = np.flatnonzero(place.corpus.bags)[:1]
        if not len(first):
            raise InputError(
                f"no record of {place.corpus.name} has a bag of features, which input "
                f"{self.name!r} reads"
            )
        self.features(place.corpus, int(first[0]))
        return _Bags(self, place)

    def features(self, corpus: Corpus, index: int) -> np.ndarray:
        """The bag of an example, f[rows, F].

        Raises:
          InputError: it cannot be read, or has another F; names the record.
        """
        bag = corpus.bag(index)
        if bag.shape[1] != self.size:
            raise InputError(
                f"record {corpus.ids[index]}: features {list(bag.shape)}; input {self.name!r} "
                f"needs [S, {self.size}], the size of its tower"
            )
        return bag


class _Bags:
    """Reads bags and chooses their rows."""

    def __init__(self, own: Bag, place: Place) -> None:
        self._own, self._place = own, place

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own, corpus = self._own, self._place.corpus
        values = np.zeros((len(rows.indices), own.most, own.size), np.float32)
        mask = np.zeros(values.shape[:2], np.bool_)
        present = corpus.bags[np.asarray(rows.indices, np.int64)]
        seeds = rows.stream(f"{own.name}/choice")
        for row, (index, seed) in enumerate(zip(rows.indices, seeds, strict=True)):
            if not present[row]:
                continue
            self._place.mark(stall.READ, index)
            bag = own.features(corpus, index)
            chosen = self._choose(len(bag), seed)
            values[row, : len(chosen)], mask[row, : len(chosen)] = bag[chosen], True
        return {"values": values, "mask": mask, "present": present}

    def _choose(self, count: int, seed: np.uint64) -> np.ndarray:
        """i64[at most S], ascending: the rows of a bag of `count` rows."""
        most = self._own.most
        if self._place.train:
            return counter.subset(seed, count, most)
        return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)
