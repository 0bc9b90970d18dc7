"""Several corpora as one, with a weight for each in training.

    config.data.source = "mixture"
    config.data.parts = (
        {"source": "prepared", "path": "corpora/mimic", "weight": 2.0},
        {"source": "prepared", "path": "corpora/openi", "weight": 1.0},
    )

Two thirds of every batch come from the first part and one third from the second, up to one example.
Each part is shuffled and read completely before it is shuffled again. Without weights, parts are
drawn in proportion to their sizes. Evaluation reads each record once. Grey and colour parts need
config.data.colour, which makes all images alike.
"""

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmrl.data.corpus import loader, records
from mmrl.data.image import channels
from mmrl.data.reading import within
from mmrl.data.reading.splits import check_split
from mmrl.types import InputError, Record, Reject, Source


class _Images:
    """(index, number) -> image of the part that holds the record."""

    def __init__(
        self, starts: np.ndarray, loads: Sequence[Callable[[int, int], np.ndarray]]
    ) -> None:
        self._starts, self._loads = starts, loads

    def __call__(self, index: int, number: int = 0) -> np.ndarray:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._loads[part](index - int(self._starts[part]), number)


class Mixture:
    """The records of one split of several corpora, one part after the other; a Source.

    Ids begin with the name of the source of the part, and must differ between parts.

    Args:
      split: train, val or test.
      parts: mappings {"source": name, options of that source..., "weight": number above 0}; either
        all parts have a weight or none has.

    Attributes:
      starts: i64[P], the index of the first record of each part.
      weights: those of the parts; None where parts are drawn in proportion to their sizes.
      rejects, total, warnings: of all parts together.
      channels: that of the parts, 1 or 3; 0 where they differ.
      image: (index, number = 0) -> image, see `ImageRef`.

    Raises:
      InputError: as `check_options`, before any corpus is read; as the sources of the parts.
    """

    def __init__(self, *, split: str, parts: Sequence[Mapping[str, Any]]) -> None:
        check_split(split)
        self.check_options("mixture", {"parts": parts})
        self._parts: list[Source] = []
        for part in parts:
            self._parts.append(within.make(split, part, also=("weight",)))
        sizes = [len(part) for part in self._parts]
        self.starts = np.cumsum([0, *sizes])[:-1]
        self._length = sum(sizes)
        weights = tuple(float(part["weight"]) for part in parts if part.get("weight") is not None)
        self.weights: tuple[float, ...] | None = weights or None
        self.rejects: list[Reject] = [reject for part in self._parts for reject in part.rejects]
        self.total: int = sum(part.total for part in self._parts)
        found = {channels.of(part) for part in self._parts}
        self.channels = found.pop() if len(found) == 1 else 0
        warnings = (getattr(part, "warnings", []) for part in self._parts)
        self.warnings: list[str] = list(itertools.chain.from_iterable(warnings))
        self.image = _Images(self.starts, [loader(part) for part in self._parts])

    @staticmethod
    def check_options(where: str, given: Mapping[str, Any]) -> None:
        """Checks the options of all parts before any part is built.

        Args:
          where: the config key for messages, such as "config.data".

        Raises:
          InputError: no part, an unknown source or option, a missing one, a mixture within a
            mixture, a weight that is no positive number, or weights for some parts only.
        """
        parts = given.get("parts")
        if isinstance(parts, str | Mapping) or not parts:
            raise InputError(f"{where}.parts is {parts!r}; expected mappings, one for each corpus")
        weighted = []
        for number, part in enumerate(parts):
            at = f"{where}.parts[{number}]"
            if hasattr(part, "items") and part.get("source") == "mixture":
                raise InputError(f"{at} is a mixture; list its parts here instead")
            within.check(at, part, also=("weight",))
            weight = part.get("weight")
            weighted.append(weight is not None)
            number_given = isinstance(weight, int | float) and not isinstance(weight, bool)
            if weight is not None and not (number_given and 0 < weight < float("inf")):
                raise InputError(f"{at}.weight is {weight!r}; expected a number above 0")
        if len(set(weighted)) > 1:
            missing = weighted.index(False)
            raise InputError(
                f"{where}.parts[{missing}] has no weight; expected one in all parts or in none"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        position %= len(self)
        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self._parts[part][position - int(self.starts[part])]

    def __iter__(self) -> Iterator[Record]:
        """Yields all records, part after part, as fast as each source can."""
        return itertools.chain.from_iterable(map(records, self._parts))
