"""Hides patches of an image behind a learned token, as in iBOT."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.context import Context
from mmrl.models.derived.base import Arrays, Derived
from mmrl.models.derived.patches import patch_count
from mmrl.models.layers import check_choice
from mmrl.types import InputError

SHAPES = ("patches", "blocks")
_ASPECT = 0.3  # height / width of a block is from this to 1 / this
_LEAST_AREA = 4
_ATTEMPTS = 32  # each block takes about half of what is left, if it is not refused


class HiddenPatches(Derived):
    """Hides a random share of the patches of some images, or crops (Zhou et al. 2022, iBOT).

    Each one hides patches with a probability; its share of them is drawn uniformly (Oquab et al.
    2024, DINOv2, where exactly that part of each batch hides patches). Arrays: those of the image;
    hidden bool[B, P], or bool[B, S, P] of crops, True for patches that the encoder does not see.

    Args:
      patch_size: side of a patch of the encoder, in pixels; None: it has no patches.
      probability: with which an image hides patches.
      shares: least and greatest share of its patches that it then hides; at least one patch.
      shape: patches (each is drawn alone) or blocks (rectangles, see `hidden_blocks`).

    Raises:
      InputError: an unknown shape, a number out of range, or an encoder without patches.
    """

    batch: ClassVar[Mapping[str, str]] = {"index": "index"}

    def __init__(
        self,
        *,
        patch_size: int | None,
        probability: float = 0.5,
        shares: tuple[float, float] = (0.1, 0.5),
        shape: str = "patches",
    ) -> None:
        check_choice("HiddenPatches", "shape", shape, SHAPES)
        low, high = shares
        if not (0 <= probability <= 1 and 0 <= low <= high < 1):
            raise InputError(
                f"HiddenPatches: probability {probability}, shares {shares}; expected 0 to 1, and "
                "two ascending numbers from 0 to below 1"
            )
        if patch_size is None:
            raise InputError("HiddenPatches: the encoder has no patches; expected one such as vit")
        self.patch_size, self.probability, self.shares = patch_size, probability, (low, high)
        self.in_blocks = shape == "blocks"

    def __call__(self, *, context: Context, given: Arrays, index: jax.Array) -> Arrays:
        """See Derived.

        Raises:
          InputError: images that are no multiple of the patch size.
        """
        pixels = given["pixels"]
        count = patch_count("HiddenPatches", pixels, self.patch_size)
        rows, columns = (side // self.patch_size for side in pixels.shape[-3:-1])
        low, high = self.shares

        def draw(key: jax.Array) -> jax.Array:
            """Which patches of one image are hidden, bool[P]."""
            chosen, size, order = jax.random.split(key, 3)
            share = jax.random.uniform(size, minval=low, maxval=high)
            number = jnp.maximum(jnp.floor(share * count).astype(jnp.int32), 1)
            if self.in_blocks:
                hidden = hidden_blocks(order, (rows, columns), number)
            else:
                hidden = jnp.argsort(jax.random.permutation(order, count)) < number
            return hidden & jax.random.bernoulli(chosen, self.probability)

        keys = context.row_keys(index)
        if pixels.ndim == 4:
            return {"hidden": jax.vmap(draw)(keys)}
        crops = jax.vmap(lambda key: jax.random.split(key, pixels.shape[1]))(keys)
        return {"hidden": jax.vmap(jax.vmap(draw))(crops)}


def hidden_blocks(key: jax.Array, grid: tuple[int, int], number: jax.Array) -> jax.Array:
    """Hides rectangles of patches (Bao et al. 2022, BEiT, algorithm 1, as in DINOv2).

    The area of a rectangle is uniform from 4 to the number of patches that are still to be hidden,
    its aspect log-uniform from 0.3 to 1 / 0.3, and its place uniform within the grid. Rectangles
    that hide nothing new, or too much, are refused. BEiT hides fewer patches where it finds no
    further rectangle; here the last ones are then drawn one by one.

    Args:
      grid: rows and columns of patches.
      number: i32[], the patches to hide.

    Returns:
      bool[rows * columns], True for exactly `number` patches.
    """
    rows, columns = grid
    blocks, alone = jax.random.split(key)
    row, column = jnp.mgrid[:rows, :columns]

    def side(length: jax.Array, most: int) -> jax.Array:
        return jnp.clip(jnp.round(length).astype(jnp.int32), 1, most)

    def add(hidden: jax.Array, drawn: jax.Array) -> tuple[jax.Array, None]:
        left = number - hidden.sum(dtype=jnp.int32)
        area = _LEAST_AREA + drawn[0] * jnp.maximum(left - _LEAST_AREA, 0).astype(jnp.float32)
        aspect = jnp.float32(_ASPECT) ** (2 * drawn[1] - 1)
        high = side(jnp.sqrt(area * aspect), rows)
        wide = side(jnp.sqrt(area / aspect), columns)
        top, start = (
            jnp.floor(drawn[2 + axis] * (most - length + 1).astype(jnp.float32)).astype(jnp.int32)
            for axis, (length, most) in enumerate(((high, rows), (wide, columns)))
        )
        inside = (row >= top) & (row < top + high) & (column >= start) & (column < start + wide)
        both = hidden | inside
        return jnp.where(both.sum(dtype=jnp.int32) <= number, both, hidden), None

    drawn = jax.random.uniform(blocks, (_ATTEMPTS, 4))
    hidden, _ = jax.lax.scan(add, jnp.zeros(grid, bool), drawn)
    noise = jax.random.uniform(alone, (rows * columns,))
    return jnp.argsort(jnp.argsort(jnp.where(hidden.reshape(-1), -1.0, noise))) < number
