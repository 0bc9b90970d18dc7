"""Removes the patches of an image that its text describes most, or least."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.context import Context
from mmrl.models.derived.base import Arrays
from mmrl.models.derived.patches import RankedPatches
from mmrl.vectors import l2_normalize


class DescribedPatches(RankedPatches):
    """Ranks patches by the cosine of their regions with the embedding of the text.

    Like the attention-masked image modelling of MMCLIP (Wu et al. 2024), which hides what the text
    speaks of. The heads `regions` and `embedding` need the same width.

    Args: as of RankedPatches.
    """

    reads: ClassVar[Mapping[str, str]] = {"regions": "image.regions", "text": "text.embedding"}

    def __call__(
        self,
        *,
        context: Context,
        given: Arrays,
        regions: jax.Array,
        text: jax.Array,
    ) -> Arrays:
        """See Derived; regions [B, P, D], text [B, D].

        Raises:
          ValueError: shapes that do not fit.
        """
        if regions.ndim != 3 or text.shape != (len(regions), regions.shape[2]):
            raise ValueError(
                f"regions must be [B, P, D] and text [B, D], got {regions.shape} and {text.shape}"
            )
        return self.keep(jnp.einsum("bpd,bd->bp", l2_normalize(regions), l2_normalize(text)))
