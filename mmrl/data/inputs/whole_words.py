"""Texts with the places where words start, for masking whole words."""

from collections.abc import Mapping

import numpy as np

from mmrl.data.inputs.base import Place, Reader, Rows, Shapes
from mmrl.data.inputs.text import Text, Texts


class WholeWords(Text):
    """The arrays of Text, with starts bool[n, L], True for the first token of each word.

    `models.derived.masked_tokens` masks whole words by it, with its option `words`. As
    config.inputs.text = {"name": "whole_words"} it takes the place of the text itself.

    Args: as of Text.
    """

    def shapes(self) -> Shapes:
        """See Input."""
        return {**super().shapes(), "starts": ((self.length,), np.bool_)}

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _WholeWords(self, place)


class _WholeWords(Texts):
    """Reads and tokenises texts, and finds where their words start."""

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the rows."""
        arrays = super().__call__(rows, made)
        assert self._place.tokenizer is not None
        starts = np.zeros(arrays["tokens"].shape, bool)
        for row, tokens in enumerate(arrays["tokens"]):
            starts[row, [places[0] for _, places in self._place.tokenizer.words(tokens)]] = True
        return arrays | {"starts": starts}
