"""What changed since a prior image: a transformer over the regions of both, as in BioViL-T."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import Block, BlockOptions, LayerNorm, Size, split_key
from mmrl.types import InputError


@functools.lru_cache
def sine_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D positions f32[rows * columns, width], row by row, as in DETR and BioViL-T.

    Row y of H, counted from 1, is the angle 2 pi y / (H + 1e-6); columns likewise. Of the
    width / 2 features of a side, number i is the sine (i even) or the cosine (i odd) of
    angle / 10000^(2 floor(i / 2) / (width / 2)). Those of rows come first.
    """
    half = width // 2
    periods = 10000.0 ** (2 * (np.arange(half) // 2) / half)
    sides = []
    for count in grid:
        angles = 2 * np.pi * np.arange(1, count + 1)[:, None] / (count + 1e-6) / periods
        sides.append(np.where(np.arange(half) % 2 == 0, np.sin(angles), np.cos(angles)))
    rows, columns = sides
    shape = (*grid, half)
    both = [np.broadcast_to(rows[:, None], shape), np.broadcast_to(columns[None], shape)]
    return np.concatenate(both, axis=-1).reshape(-1, width).astype(np.float32)


class TemporalBlock(Block):
    """A pre-norm block that adds positions to queries, keys and values alike, after the norm."""

    def __call__(  # type: ignore[override]
        self, x: jax.Array, places: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """x [B, L, width], places [L, width] -> [B, L, width]; without a key no dropout."""
        attention_key, mlp_key = split_key(key, 2)
        drop = functools.partial(self.dropout, deterministic=key is None)
        x = x + drop(self.attention(self.attention_norm(x) + places[None]), rngs=attention_key)
        return x + drop(self.mlp(self.mlp_norm(x)), rngs=mlp_key)


class Temporal(nnx.Module):
    """The regions of a current image, as seen beside those of a prior one.

    `VisionTransformerPooler` of BioViL-T (Bannur et al. 2023, section 3.1): `depth` blocks over the
    regions of both images, then a norm; the regions of the current image are kept. Every block adds
    positions and the type of the image, current or prior, to the input of its attention, values
    included. Queries, keys and values have no bias.

    Args:
      width: features of a region, a multiple of 4 and of `num_heads`.
      num_heads: attention heads.
      depth: blocks.
      mlp_dim: hidden features of the MLPs; 0: width.
      dropout: rate on the regions and on both branches of every block, in training.

    Raises:
      InputError: sizes that do not fit together, or a rate that is not one.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int = 8,
        depth: int = 3,
        mlp_dim: int = 0,
        dropout: float = 0.0,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if min(width, num_heads, depth) < 1 or width % num_heads or width % 4 or mlp_dim < 0:
            raise InputError(
                f"pool temporal: width {width}, num_heads {num_heads}, depth {depth}, mlp_dim "
                f"{mlp_dim}; expected a width that is a multiple of 4 and of num_heads, depth >= 1"
            )
        self.width, self.depth = width, depth
        init = nnx.with_partitioning(nnx.initializers.truncated_normal(0.02), (None, "embed"))
        self.types = nnx.Param(init(rngs.params(), (2, width), param_dtype))
        for index in range(depth):
            block = TemporalBlock(
                Size(width, depth, num_heads),
                mlp_dim or width,
                dropout=dropout,
                attention="xla",
                block=BlockOptions(qkv_bias=False),
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            setattr(self, f"block_{index:02d}", block)
        self.norm = LayerNorm(width, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        current: jax.Array,
        prior: jax.Array,
        grid: tuple[int, int] | None = None,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Regions of both images [B, R, width] -> [B, R, width], in the same dtype.

        Args:
          grid: rows and columns of the regions of an image; None: a square one.
          key: of dropout; None: no dropout.

        Raises:
          ValueError: regions of different shapes, or of another grid.
        """
        count = current.shape[1]
        grid = grid or (math.isqrt(count),) * 2
        if current.shape != prior.shape or grid[0] * grid[1] != count:
            raise ValueError(
                f"regions {current.shape} and {prior.shape} of the grid {grid}; expected as many "
                "of both, rows * columns"
            )
        places = jnp.asarray(sine_positions(grid, self.width))[None]
        places = (places + self.types[...].astype(jnp.float32)[:, None]).astype(current.dtype)
        first, *keys = split_key(key, 1 + self.depth)
        x = jnp.concatenate([current, prior], axis=1)
        x = self.dropout(x, deterministic=first is None, rngs=first)
        for index, own in enumerate(keys):
            x = getattr(self, f"block_{index:02d}")(x, places.reshape(-1, self.width), own)
        return self.norm(x)[:, :count]
