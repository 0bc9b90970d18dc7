"""Image-text matching: do this image and this text belong together?"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import (
    Context,
    Objective,
    batch_mean,
    check_present,
    require,
    row_count,
    zero_absent,
)
from mmrl.types import Loss


def matching_loss(
    positive: jax.Array,
    negative_text: jax.Array,
    negative_image: jax.Array,
    *,
    present: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy of three pairs for each row (Li et al. 2021, ALBEF, section 3.2).

    Args:
      positive: f[B, 2], logits of "no" and "yes" for an image with its own text.
      negative_text: f[B, 2], for the image with another text.
      negative_image: f[B, 2], for the text with another image.
      present: bool[B], the rows that have all three pairs; None: all. The loss is that of a batch
        without the other rows.

    Returns:
      f32[]; 0 if no row is present. log 2 for constant logits of (0, 0).
    """
    losses, _ = _judged(positive, negative_text, negative_image, present)
    return losses.sum() / (3 * row_count(len(positive), present))


def _judged(
    positive: jax.Array,
    negative_text: jax.Array,
    negative_image: jax.Array,
    present: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropies f32[3, B] and whether the answer is right, f32[3, B]; 0 for absent rows.

    Equal logits are half right.
    """
    require(
        positive.ndim == 2
        and positive.shape == negative_text.shape == negative_image.shape
        and positive.shape[1] == 2,
        f"logits must be [B, 2] three times, got {positive.shape}, {negative_text.shape}, "
        f"{negative_image.shape}",
    )
    present = check_present(present, len(positive))
    logits = jnp.stack([positive, negative_text, negative_image]).astype(jnp.float32)
    logits = zero_absent(present, logits.swapaxes(0, 1)).swapaxes(0, 1)
    # How much more "yes" than "no" counts for the answer that is right.
    margin = (logits[..., 1] - logits[..., 0]) * jnp.array([1.0, -1.0, -1.0])[:, None]
    losses, right = jax.nn.softplus(-margin), 0.5 + 0.5 * jnp.sign(margin)
    if present is not None:
        losses, right = (x * present[None].astype(jnp.float32) for x in (losses, right))
    return losses, right


class Matching(Objective):
    """`matching_loss` of a head with two features of a fusion, such as heads.match = 2.

    Two derived inputs select the negatives: config.derived.negative_text and negative_image, both
    of `hard_negatives`. Metrics: `accuracy` over the three pairs of each row, of which an answer
    that is always "no" has 2/3, and `balanced_accuracy`, the mean of the accuracies over pairs that
    match and over pairs that do not, of which every constant answer has 1/2.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "positive": "fused.match",
        "negative_text": "fused@negative_text.match",
        "negative_image": "fused@negative_image.match",
    }

    def __call__(
        self,
        *,
        context: Context,
        positive: jax.Array,
        negative_text: jax.Array,
        negative_image: jax.Array,
    ) -> Loss:
        """Judges the pairs of all rows that have both inputs and both negatives."""
        size, present = len(positive), context.present
        losses, right = _judged(positive, negative_text, negative_image, present)
        rows = row_count(size, present)
        value = losses.sum() / (3 * rows)
        own, others = right[0].sum(), right[1:].sum()
        return Loss(
            value,
            {
                "loss": batch_mean(value, size, present),
                "accuracy": batch_mean((own + others) / (3 * rows), size, present),
                "balanced_accuracy": batch_mean((own + others / 2) / (2 * rows), size, present),
            },
        )
