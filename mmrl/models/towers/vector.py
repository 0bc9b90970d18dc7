"""Vector towers: a third modality, such as expression profiles or rows of a table."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from mmrl import streams
from mmrl.models.towers.base import Arrays
from mmrl.models.towers.sets import SetTower


class Vector(SetTower):
    """A tower whose inputs have values f32[B, F], or f32[B, S, F].

    Args:
      encoder, others: as of SetTower.
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
            arrays = inputs[name]
            values, mask = arrays["values"], arrays.get("mask")
            encoded[name] = self._encoded(values, 2, features, mask=mask, train=train, key=own)
        return encoded
