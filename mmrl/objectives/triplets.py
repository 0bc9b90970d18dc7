"""Triplets of an anchor, a similar and a dissimilar pair (Ozturk et al. 2025, MedTrim)."""

import jax
import jax.numpy as jnp

from mmrl.objectives.base import check_present, require, row_count, zero_absent
from mmrl.vectors import l2_normalize

Pair = tuple[jax.Array, jax.Array]


def triplet_loss(
    image: jax.Array,
    text: jax.Array,
    positive: Pair,
    negative: Pair,
    *,
    margin: float = 0.3,
    present: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Hinges within and across modalities, for anchors that are images and that are texts.

    With d = 1 - cosine, the loss of images is the mean over b of
    1/2 sum over m in {image, text} of max(0, d(image, positive_m) - d(image, negative_m) + margin),
    and that of texts the same with the text as anchor. MedTrim trains on their sum.

    Args:
      image, text: f[B, D], the anchors.
      positive, negative: (image f[B, D], text f[B, D]). None has to be normalised.
      margin: of the hinges.
      present: bool[B], the rows that have a positive and a negative; None: all.

    Returns:
      (f32[], f32[]): the loss of the images and that of the texts; 0 if no row is present.

    Raises:
      ValueError: shapes that differ.
    """
    arrays = (image, text, *positive, *negative)
    require(
        len(positive) == len(negative) == 2
        and image.ndim == 2
        and all(x.shape == image.shape for x in arrays),
        f"anchors, positives and negatives must be [B, D] alike, got {[x.shape for x in arrays]}",
    )
    present = check_present(present, len(image))
    unit = [l2_normalize(zero_absent(present, jnp.asarray(x))) for x in arrays]
    anchors, positives, negatives = unit[:2], unit[2:4], unit[4:]

    def loss(anchor: jax.Array) -> jax.Array:
        one, two = (
            jax.nn.relu(jnp.sum(anchor * (far - near), axis=1) + jnp.float32(margin))
            for near, far in zip(positives, negatives, strict=True)
        )
        return 0.5 * zero_absent(present, one + two).sum() / row_count(len(anchor), present)

    return loss(anchors[0]), loss(anchors[1])
