"""Hides patches of an image behind a learned token, as in iBOT."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.context import Context
from mmrl.models.derived.base import Arrays, Derived
from mmrl.models.derived.patches import patch_count
from mmrl.types import InputError


class HiddenPatches(Derived):
    """Hides a random share of the patches of some images, or crops (Zhou et al. 2022, iBOT).

    Each one hides patches with a probability; its share of them is drawn uniformly (Oquab et al.
    2024, DINOv2, where exactly that part of each batch hides patches). Arrays: those of the image;
    hidden bool[B, P], or bool[B, S, P] of crops, True for patches that the encoder does not see.

    Args:
      patch_size: side of a patch of the encoder, in pixels; None: it has no patches.
      probability: with which an image hides patches.
      shares: least and greatest share of its patches that it then hides; at least one patch.

    Raises:
      InputError: a number out of range, or an encoder without patches.
    """

    batch: ClassVar[Mapping[str, str]] = {"index": "index"}

    def __init__(
        self,
        *,
        patch_size: int | None,
        probability: float = 0.5,
        shares: tuple[float, float] = (0.1, 0.5),
    ) -> None:
        low, high = shares
        if not (0 <= probability <= 1 and 0 <= low <= high < 1):
            raise InputError(
                f"HiddenPatches: probability {probability}, shares {shares}; expected 0 to 1, and "
                "two ascending numbers from 0 to below 1"
            )
        if patch_size is None:
            raise InputError("HiddenPatches: the encoder has no patches; expected one such as vit")
        self.patch_size, self.probability, self.shares = patch_size, probability, (low, high)

    def __call__(self, *, context: Context, given: Arrays, index: jax.Array) -> Arrays:
        """See Derived.

        Raises:
          InputError: images that are no multiple of the patch size.
        """
        pixels = given["pixels"]
        count = patch_count("HiddenPatches", pixels, self.patch_size)
        low, high = self.shares

        def draw(key: jax.Array) -> jax.Array:
            """Which patches of one image are hidden, bool[P]."""
            chosen, size, order = jax.random.split(key, 3)
            share = jax.random.uniform(size, minval=low, maxval=high)
            number = jnp.maximum(jnp.floor(share * count).astype(jnp.int32), 1)
            rank = jnp.argsort(jax.random.permutation(order, count))
            return (rank < number) & jax.random.bernoulli(chosen, self.probability)

        keys = context.row_keys(index)
        if pixels.ndim == 4:
            return {"hidden": jax.vmap(draw)(keys)}
        crops = jax.vmap(lambda key: jax.random.split(key, pixels.shape[1]))(keys)
        return {"hidden": jax.vmap(jax.vmap(draw))(crops)}
