"""The mean over all regions, which forgets where in the image something is."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.pool.base import Pooler, cleared


def masked_mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x [..., R, D], mask bool[..., R] -> f32[..., D], the mean over R; 0 where nothing counts."""
    x = cleared(x.astype(jnp.float32), mask)
    if mask is None:
        return x.mean(axis=-2)
    counts = mask[..., None].sum(axis=-2).astype(jnp.float32)
    return x.sum(axis=-2) / jnp.maximum(counts, 1.0)


class Mean(Pooler):
    """The mean over all regions."""

    unordered: ClassVar[bool] = True

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

    def __call__(
        self,
        regions: jax.Array,
        mask: jax.Array | None = None,
        grid: tuple[int, int] | None = None,
    ) -> jax.Array:
        """See Pooler."""
        if mask is None:
            return regions.mean(axis=1)
        return masked_mean(regions, mask).astype(regions.dtype)
