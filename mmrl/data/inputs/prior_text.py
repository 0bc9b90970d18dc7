"""Prior text: the report of the patient's latest study before that of the record."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data.inputs.base import Place, Reader, Rows
from mmrl.data.inputs.text import Text, Texts


class PriorText(Text):
    """tokens i32[n, L] and mask bool[n, L] of the report of the prior, and present bool[n].

    The prior is that of the input `prior`. Where there is none, or where its report has no such
    text, `present` is False and the tokens are those of an empty text.

    Args: as of Text.
    """

    options: ClassVar[tuple[str, ...]] = ("sections", "text", "max_tokens", "separator")
    required: ClassVar[bool] = False

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.optional = True

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _PriorTexts(self, place)


class _PriorTexts(Texts):
    """Reads and tokenises the texts of other rows."""

    def read(self, rows: Rows) -> tuple[list[str], list[int]]:
        """The text of the prior of each row, "" without one, and its duplicate group."""
        indices = np.asarray(rows.indices, np.int64)
        priors = self._place.corpus.priors[indices]
        there = priors >= 0
        chosen = np.where(there, priors, indices).tolist()
        texts, groups = super().read(rows._replace(indices=chosen))
        return [text if has else "" for text, has in zip(texts, there, strict=True)], groups
