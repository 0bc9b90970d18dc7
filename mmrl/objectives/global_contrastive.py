"""Global image-report contrast over the whole batch (ConVIRT, CLIP; systems.md O1)."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import LogitScale, Objective, batch_mean, require, two_way_cross_entropy
from mmrl.types import Batch, Encoded, Loss


def contrastive_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    *,
    group: jax.Array | None = None,
) -> jax.Array:
    """Symmetric cross-entropy over exp(logit_scale) * image @ text.T.

    Radford et al. 2021 (CLIP), figure 3; Zhang et al. 2020 (ConVIRT), equations 2-4 with
    lambda = 1/2.

    Args:
      image, text: f[B, D], already L2-normalised; row i of both is pair i.
      logit_scale: f32[], logarithm of the inverse temperature.
      group: i32[B]; pairs off the diagonal with equal group leave the denominators.

    Returns:
      f32[]. Constant embeddings give log B.
    """
    require(
        image.ndim == 2 and image.shape == text.shape,
        f"image and text must both be [B, D], got {image.shape} and {text.shape}",
    )
    image, text = image.astype(jnp.float32), text.astype(jnp.float32)
    return two_way_cross_entropy(jnp.exp(logit_scale) * (image @ text.T), group)


class GlobalContrastive(Objective):
    """`contrastive_loss` with a learned temperature.

    Args:
      temperature: initial value; 0.07 as in CLIP. The scale is clipped at 100 after each update.
    """

    needs: ClassVar[tuple[str, ...]] = ("image.embedding", "text.embedding")

    def __init__(self, *, temperature: float = 0.07) -> None:
        self.logit_scale = LogitScale(temperature)

    def __call__(self, encoded: Encoded, batch: Batch) -> Loss:
        """Contrasts the global batch; batch["group"] marks pairs that are no negatives."""
        image, text = encoded["image.embedding"], encoded["text.embedding"]
        value = contrastive_loss(image, text, self.logit_scale(), group=batch["group"])
        size = image.shape[0]
        metrics = {
            "loss": batch_mean(value, size),
            "logit_scale": (jnp.exp(self.logit_scale()), jnp.float32(1)),
        }
        return Loss(value, metrics)

    def post_update(self) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
