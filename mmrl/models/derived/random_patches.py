"""Removes patches of an image at random, as in MAE."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from mmrl.context import Context
from mmrl.models.derived.base import Arrays, Derived
from mmrl.models.derived.patches import check_share, keep_lowest, patch_count
from mmrl.types import InputError


class RandomPatches(Derived):
    """Keeps a random share of the patches of each image (He et al. 2022, MAE, section 3).

    Arrays: those of the image; kept i32[B, P'], the places of the patches that the encoder gets,
    ascending; mask bool[B, P], True for patches that are removed.

    Args:
      patch_size: side of a patch of the encoder, in pixels; None: it has no patches.
      share: of the patches that are removed; int(P (1 - share)) are kept.

    Raises:
      InputError: a share below 0 or from 1 on, or an encoder without patches.
    """

    batch: ClassVar[Mapping[str, str]] = {"index": "index"}

    def __init__(self, *, patch_size: int | None, share: float = 0.75) -> None:
        check_share("RandomPatches", share)
        if patch_size is None:
            raise InputError("RandomPatches: the encoder has no patches; expected one such as vit")
        self.patch_size, self.share = patch_size, share

    def __call__(self, *, context: Context, given: Arrays, index: jax.Array) -> Arrays:
        """See Derived.

        Raises:
          InputError: images that are no multiple of the patch size, or no patch would be kept.
        """
        count = patch_count("RandomPatches", given["pixels"], self.patch_size)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(context.row_keys(index))
        return keep_lowest(noise, self.share)
