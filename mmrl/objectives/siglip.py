"""Pairwise sigmoid contrast (SigLIP; Zhai et al. 2023, algorithm 1)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.objectives.base import LogitScale, Objective, batch_mean, negatives, require
from mmrl.types import Batch, Encoded, Loss


def siglip_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    *,
    group: jax.Array | None = None,
) -> jax.Array:
    """-1/B * sum_ij log sigmoid(y_ij (exp(logit_scale) image_i . text_j + logit_bias)).

    Args:
      image, text: f[B, D], already L2-normalised. logit_scale, logit_bias: f32[].
      group: i32[B]; pairs off the diagonal with equal group leave the sum.

    Returns:
      f32[]; y is +1 on the diagonal and -1 elsewhere.
    """
    require(
        image.ndim == 2 and image.shape == text.shape,
        f"image and text must both be [B, D], got {image.shape} and {text.shape}",
    )
    size = image.shape[0]
    cosine = image.astype(jnp.float32) @ text.astype(jnp.float32).T
    logits = jnp.exp(logit_scale) * cosine + logit_bias
    sign = 2.0 * jnp.eye(size, dtype=jnp.float32) - 1.0
    kept = negatives(group, size)
    return -jnp.sum(jnp.where(kept, jax.nn.log_sigmoid(sign * logits), 0.0)) / size


class Siglip(Objective):
    """`siglip_loss` with learned scale and bias.

    Args:
      temperature: initial value, 0.1 as in the paper (scale 10).
      bias: initial value; -10 offsets the B - 1 negatives per positive at the start.
    """

    needs: ClassVar[tuple[str, ...]] = ("image.embedding", "text.embedding")

    def __init__(self, *, temperature: float = 0.1, bias: float = -10.0) -> None:
        self.logit_scale = LogitScale(temperature)
        self.logit_bias = nnx.Param(jnp.float32(bias))

    def __call__(self, encoded: Encoded, batch: Batch) -> Loss:
        """Scores every image-report pair of the global batch on its own."""
        image, text = encoded["image.embedding"], encoded["text.embedding"]
        bias = self.logit_bias[...]
        value = siglip_loss(image, text, self.logit_scale(), bias, group=batch["group"])
        metrics = {
            "loss": batch_mean(value, image.shape[0]),
            "logit_scale": (jnp.exp(self.logit_scale()), jnp.float32(1)),
            "logit_bias": (bias, jnp.float32(1)),
        }
        return Loss(value, metrics)

    def post_update(self) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
