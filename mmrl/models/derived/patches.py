"""Which patches of an image are kept: what derived inputs that remove patches share."""

import jax
import jax.numpy as jnp

from mmrl.models.derived.base import Derived
from mmrl.models.layers import check_choice
from mmrl.types import InputError


def check_share(owner: str, share: float) -> None:
    """Raises InputError unless a share of patches, or of tokens, is from 0 to below 1."""
    if not 0 <= share < 1:
        raise InputError(f"{owner}: share {share}; expected at least 0 and below 1")


def patch_count(owner: str, pixels: jax.Array, patch_size: int) -> int:
    """The number of patches of each image of pixels [..., H, W, C].

    Raises:
      InputError: images that are no multiple of the patch size.
    """
    height, width = pixels.shape[-3:-1]
    if height % patch_size or width % patch_size:
        raise InputError(
            f"{owner}: images of {height} x {width} pixels; expected multiples of patch_size "
            f"{patch_size}"
        )
    return (height // patch_size) * (width // patch_size)


def keep_lowest(scores: jax.Array, share: float) -> dict[str, jax.Array]:
    """Removes a share of the patches, those with the highest scores; without a gradient.

    Args:
      scores: f32[B, P]; of equal ones, those of later patches count as higher.
      share: int(P (1 - share)) patches are kept, as in the public code of MAE (He et al. 2022).

    Returns:
      kept i32[B, P'], the places of the patches that are kept, ascending; mask bool[B, P], True:
      removed.

    Raises:
      InputError: no patch would be kept.
    """
    size, count = scores.shape
    keep = int(count * (1 - share))
    if not keep:
        raise InputError(f"share {share} of {count} patches; expected one that keeps a patch")
    order = jnp.argsort(jax.lax.stop_gradient(scores), axis=1)
    kept = jnp.sort(order[:, :keep], axis=1).astype(jnp.int32)
    rows = jnp.arange(size, dtype=jnp.int32)[:, None]
    return {"kept": kept, "mask": jnp.ones((size, count), bool).at[rows, kept].set(False)}


class RankedPatches(Derived):
    """Removes the patches of the highest, or of the lowest, scores.

    Arrays: those of the image; kept i32[B, P'], the places of the patches that the encoder gets,
    ascending; mask bool[B, P], True for patches that are removed.

    Args:
      share: of the patches that are removed; int(P (1 - share)) are kept.
      remove: most (the patches with the highest scores) or least.

    Raises:
      InputError: an unknown choice, or a share below 0 or from 1 on.
    """

    def __init__(self, *, share: float = 0.5, remove: str = "most") -> None:
        check_share(type(self).__name__, share)
        check_choice(type(self).__name__, "remove", remove, ("most", "least"))
        self.share, self.sign = share, 1.0 if remove == "most" else -1.0

    def keep(self, scores: jax.Array) -> dict[str, jax.Array]:
        """scores f32[B, P] -> the arrays of the patches that stay."""
        return keep_lowest(self.sign * scores, self.share)
