"""Prior: the image of the patient's latest study before that of the record."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mmrl.data.inputs.base import Place, Reader, Rows, Shapes
from mmrl.data.inputs.image import Image


class Prior(Image):
    """pixels u8[n, S, S, C] of the prior, jittered in training, and present bool[n].

    The prior is of the same split and part of a mixture, and never later than the record, see
    `mmrl.data.priors`. Its image is the one that config.data.views chooses for evaluation. Pixels
    are 0 where there is no prior.

    Args: as of Input.
    """

    required: ClassVar[bool] = False

    def shapes(self) -> Shapes:
        """See Input."""
        return {**super().shapes(), "present": ((), np.bool_)}

    def numbers(self, place: Place, rows: Rows) -> list[int]:
        """Which image of its record each row shows; -1 where it has none."""
        corpus, indices = place.corpus, np.asarray(rows.indices, np.int64)
        return np.where(corpus.counts[indices] > 0, corpus.numbers[indices], -1).tolist()

    def open(self, place: Place) -> Reader:
        """See Input."""
        return _Priors(super().open(place), place.corpus.priors)


class _Priors:
    """Reads the images of other rows."""

    def __init__(self, read: Reader, priors: np.ndarray) -> None:
        self._read, self._priors = read, priors

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        priors = self._priors[np.asarray(rows.indices, np.int64)]
        there = np.flatnonzero(priors >= 0)
        found = self._read(Rows(priors[there].tolist(), rows.step, rows.seeds[there]), made)
        arrays = {}
        for name, array in found.items():
            arrays[name] = np.zeros((len(priors), *array.shape[1:]), array.dtype)
            arrays[name][there] = array
        return arrays
