"""Changes how strongly an image, or a crop of it, is stained."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.context import Context
from mmrl.models.derived.base import Arrays, Derived
from mmrl.types import InputError

# What haematoxylin, eosin and diaminobenzidine absorb of red, green and blue (Ruifrok and Johnston
# 2001, table 2), as rows of length 1.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)


class StainJitter(Derived):
    """Scales and shifts the amount of each stain (Tellez et al. 2018, section III-B).

    The optical density -log((pixel + 1) / 256) is a sum over stains of amount times absorption.
    Each image or crop draws, for each of three stains, a factor from 1 - strength to 1 + strength
    and an addend from -strength to strength, both uniform. Arrays: those of the image, with pixels
    u8 of the same shape.

    Args:
      strength: from 0, which changes nothing, to below 1.

    Raises:
      InputError: a number out of range.
    """

    batch: ClassVar[Mapping[str, str]] = {"index": "index"}

    def __init__(self, *, strength: float = 0.05) -> None:
        if not 0 <= strength < 1:
            raise InputError(f"StainJitter: strength {strength}; expected at least 0 and below 1")
        self.strength = strength

    def __call__(self, *, context: Context, given: Arrays, index: jax.Array) -> Arrays:
        """See Derived; pixels u8[B, H, W, 3] or u8[B, S, H, W, 3].

        Raises:
          InputError: grey images.
        """
        pixels = given["pixels"]
        if pixels.shape[-1] != 3:
            raise InputError(
                f"StainJitter: images of {pixels.shape[-1]} channel; expected 3, which "
                "config.data.colour=rgb and channels of the tower give"
            )
        # One draw for the rows and columns of each image.
        shape = (*pixels.shape[1:-3], 1, 1, 3)

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            factor, addend = jax.random.uniform(
                key, (2, *shape), minval=-self.strength, maxval=self.strength
            )
            return 1 + factor, addend

        factor, addend = jax.vmap(draw)(context.row_keys(index))
        to_stains = jnp.asarray(np.linalg.inv(STAINS), jnp.float32)
        to_colour = jnp.asarray(STAINS, jnp.float32)
        density = -jnp.log((pixels.astype(jnp.float32) + 1) / 256)
        amount = jnp.einsum("...c,cs->...s", density, to_stains) * factor + addend
        coloured = 256 * jnp.exp(-jnp.einsum("...s,sc->...c", amount, to_colour)) - 1
        return {"pixels": jnp.clip(jnp.round(coloured), 0, 255).astype(jnp.uint8)}
