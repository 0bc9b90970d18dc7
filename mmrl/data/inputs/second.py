"""A second image of the record: another projection, or another exposure."""

from typing import ClassVar

import numpy as np

from mmrl.data.inputs.base import Place, Rows, Shapes
from mmrl.data.inputs.image import Image


class Second(Image):
    """Another image of the record than the input `image` shows: pixels u8[n, S, S, C].

    Training draws it among the others, evaluation takes the next one in the order of the record.
    `present` bool[n] is False for records with one image.

    Args: as of Input.
    """

    required: ClassVar[bool] = False

    def shapes(self) -> Shapes:
        """See Input."""
        return {**super().shapes(), "present": ((), np.bool_)}

    def numbers(self, place: Place, rows: Rows) -> list[int]:
        """Which image of its record each row shows; -1 where there is no other."""
        first = super().numbers(place, rows)
        draws = rows.stream(f"{self.name}/view").tolist() if place.train else [0] * len(first)
        numbers = []
        for index, number, draw in zip(rows.indices, first, draws, strict=True):
            count = int(place.corpus.counts[index])
            numbers.append((number + 1 + draw % (count - 1)) % count if count > 1 else -1)
        return numbers
