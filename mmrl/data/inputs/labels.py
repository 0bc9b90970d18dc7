"""Labels of the record, as the policy of config.data.label_policy reads them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mmrl.data.corpus import Corpus
from mmrl.data.inputs.base import Input, Place, Reader, Rows, Shapes
from mmrl.data.labels import Policy
from mmrl.types import InputError


class Labels(Input):
    """values f32[n, C], 0 or 1 (2: uncertain, as a class), and mask bool[n, C], False: unknown.

    Args: as of Input. `label_names` lists the C labels in order; `label_policy` says what
      uncertain and blank ones count as.

    Raises:
      InputError: no label names; from `open`, a name that the corpus does not have.
    """

    options: ClassVar[tuple[str, ...]] = ("label_names", "label_policy")

    def __init__(self, name: str, tower: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__(name, tower, data)
        self.label_names = tuple(data.get("label_names") or ())
        self.policy = Policy.from_config(data["label_policy"])
        if not self.label_names:
            raise InputError(
                f"config.inputs.{name}.label_names is empty; list the labels to train on"
            )

    def shapes(self) -> Shapes:
        """See Input."""
        count = len(self.label_names)
        return {"values": ((count,), np.float32), "mask": ((count,), np.bool_)}

    def table(self, corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
        """values i8[N, C] and mask bool[N, C] of all examples of a corpus.

        Raises:
          InputError: a name that the corpus does not have.
        """
        what = f"label in config.inputs.{self.name}.label_names"
        return self.policy.table(self.label_names, corpus.label_names, corpus.labels, what=what)

    def open(self, place: Place) -> Reader:
        """See Input."""
        values, mask = self.table(place.corpus)
        return _Labels(values.astype(np.float32), mask)


class _Labels:
    """Rows of two tables."""

    def __init__(self, values: np.ndarray, mask: np.ndarray) -> None:
        self._values, self._mask = values, mask

    def __call__(self, rows: Rows, made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        indices = np.asarray(rows.indices, np.int64)
        return {"values": self._values[indices], "mask": self._mask[indices]}
