"""The means of zones of the image, concatenated: the head sees what is where."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.pool.base import Pooler
from mmrl.types import InputError


def overlaps(zones: int, regions: int) -> np.ndarray:
    """Weights f32[zones, regions] with which regions count in the mean of each zone, along a side.

    Both divide the side evenly. A region counts by the share of the zone that it covers, so rows
    sum to 1.
    """
    of_zone = np.arange(zones + 1) / zones
    of_region = np.arange(regions + 1) / regions
    low = np.maximum(of_zone[:-1, None], of_region[None, :-1])
    high = np.minimum(of_zone[1:, None], of_region[None, 1:])
    return (np.maximum(high - low, 0) * zones).astype(np.float32)


class Zones(Pooler):
    """Means of size x size zones that divide the image evenly, concatenated row by row.

    A region that lies in several zones counts in each by the share that it covers. Size 1 is the
    mean over all regions. On another grid than that of the constructor, zones divide the image in
    the same way.

    Args:
      width, grid, dtype, param_dtype, rngs: as of Pooler.
      size: zones along each side, at most as many as regions.

    Raises:
      InputError: another size.
    """

    def __init__(
        self,
        *,
        width: int,
        grid: tuple[int, int],
        size: int = 4,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if not 1 <= size <= min(grid):
            raise InputError(
                f"pool zones: size {size} with {grid[0]} x {grid[1]} regions; expected 1 to "
                f"{min(grid)}"
            )
        self.grid, self.size = grid, size
        self.width = width * size**2

    def __call__(
        self,
        regions: jax.Array,
        mask: jax.Array | None = None,
        grid: tuple[int, int] | None = None,
    ) -> jax.Array:
        """See Pooler.

        Raises:
          InputError: a mask, because zones need every region in its place.
        """
        if mask is not None:
            raise InputError(
                "pool zones of regions of which some are left out; expected all regions, or one of "
                "the poolers attention, gated_attention, mean"
            )
        grid = grid or self.grid
        rows, columns = (overlaps(self.size, count).astype(regions.dtype) for count in grid)
        x = regions.reshape(regions.shape[0], *grid, -1)
        # Two small products instead of one with the weights of all pairs of zones and regions.
        x = jnp.einsum("yr,brcd->bycd", rows, x)
        return jnp.einsum("xc,bycd->byxd", columns, x).reshape(x.shape[0], self.width)
