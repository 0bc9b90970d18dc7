"""A vector of the record: an expression profile, a row of a table, features from outside."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.types import InputError


class Vector(Input):
    """values f32[n, F] and present bool[n]; zeros where the record has no vector.

    Args: as of Input. F is the size of the tower.

    Raises:
      InputError: from `open`, vectors of another size.
    """

    kind: ClassVar[str] = "vector"

    def shapes(self) -> Shapes:
        """See Input."""
        return {"values": ((int(self.tower["size"]),), np.float32), "present": ((), np.bool_)}

    def open(self, place: Place) -> Reader:
        """See Input."""
        size, vectors = int(self.tower["size"]), place.corpus.vectors
        if vectors is None or vectors.shape[1] != size:
            found = "no vectors" if vectors is None else f"vectors of {vectors.shape[1]} numbers"
            raise InputError(
                f"{place.corpus.name} has {found}; input {self.name!r} needs {size}, the size of "
                "its tower"
            )
        return _Vectors(vectors)


class _Vectors:
    """Rows of a table; NaN marks records without a vector."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self._vectors[np.asarray(rows.indices, np.int64)]
        present = ~np.isnan(values).any(axis=1)
        return {
            "values": np.where(present[:, None], values, 0).astype(np.float32),
            "present": present,
        }
