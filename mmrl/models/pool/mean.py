"""The mean over all regions, which forgets where in the image something is."""

import jax
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.pool.base import Pooler


class Mean(Pooler):
    """The mean over all regions."""

    def __init__(
        self,
        *,
        width: int,
        grid: tuple[int, int],
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.width = width

    def __call__(self, regions: jax.Array) -> jax.Array:
        """See Pooler."""
        return regions.mean(axis=1)
