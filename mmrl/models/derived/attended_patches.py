"""Removes the patches of an image that its encoder attends to most, or least."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.context import Context
from mmrl.models.derived.base import Arrays
from mmrl.models.derived.patches import RankedPatches


class AttendedPatches(RankedPatches):
    """Ranks patches by the attention that the summary of the image pays to them in the last block.

    Attention is the mean over the heads, as in AttMask (Kakogeorgiou et al. 2022, section 3.2).

    Args: as of RankedPatches.
    """

    reads: ClassVar[Mapping[str, str]] = {"attention": "image.attention"}

    def __call__(self, *, context: Context, given: Arrays, attention: jax.Array) -> Arrays:
        """See Derived; attention f32[B, heads, P]."""
        return self.keep(attention.astype(jnp.float32).mean(axis=1))
