"""Vector towers: a third modality, such as expression profiles or rows of a table."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from mmrl import streams
from mmrl.models.towers.base import Arrays, Tower


class Vector(Tower):
    """A tower whose inputs have values f32[B, F].

    Args:
      encoder, others: as of Tower.
      size: number of features F of a vector.
    """

    input: ClassVar[str] = "vector"

    def __init__(
        self,
        *,
        encoder: Any,
        size: int,
        **others: Any,
    ) -> None:
        super().__init__(encoder=encoder, **others)

    @staticmethod
    def encoder_options(given: Mapping[str, Any]) -> dict[str, Any]:
        """See Tower."""
        return {"size": given["size"]}

    def __call__(
        self,
        inputs: Mapping[str, Arrays],
        wanted: Mapping[str, tuple[str, ...]],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, dict[str, jax.Array]]:
        """See Tower."""
        encoded = {}
        for name, features in wanted.items():
            own = None if key is None else streams.fold(key, name)
            found = self._encode(self.encoder, inputs[name]["values"], train=train, key=own)
            encoded[name] = self._pooled(found.pooled, features)
        return encoded
