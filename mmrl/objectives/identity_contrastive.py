"""Contrast in which all pairs of one identity or label are positives (Yang et al. 2022, UniCL)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import (
    Context,
    LogitScale,
    Objective,
    batch_mean,
    check_present,
    require,
    row_count,
    zero_absent,
)
from mmrl.types import Loss


def identity_contrastive_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    identity: jax.Array,
    *,
    present: jax.Array | None = None,
) -> jax.Array:
    """Symmetric cross-entropy whose targets are shared by all pairs of equal identity.

    Yang et al. 2022 (UniCL), equations 2-4, with a mean in place of the sum of both directions: the
    target of image i is 1 / P for each of the P texts of its identity, and 0 for all others.
    Supervised contrast (Khosla et al. 2020, equation 2) between two modalities.

    Args:
      image, text: f[B, D], already L2-normalised; row i of both is pair i.
      logit_scale: f32[], logarithm of the inverse temperature.
      identity: [B] or [B, C]; rows that are equal in all C elements are of one identity.
      present: bool[B], the pairs that have all inputs; None: all. The loss is that of a batch
        without the other pairs, and 0 if no pair is left.

    Returns:
      f32[]. Constant embeddings give log B. If all identities differ, it is `contrastive_loss`.
    """
    size = len(image)
    require(
        image.ndim == 2 and image.shape == text.shape,
        f"image and text must both be [B, D], got {image.shape} and {text.shape}",
    )
    require(
        identity.ndim in (1, 2) and len(identity) == size,
        f"identity must be [{size}] or [{size}, C], got {identity.shape}",
    )
    present, known = check_present(present, size), jnp.asarray(identity).reshape(size, -1)
    image, text = (zero_absent(present, jnp.asarray(x)).astype(jnp.float32) for x in (image, text))
    logits = jnp.exp(logit_scale) * (image @ text.T)
    same = (known[:, None] == known[None]).all(axis=-1)
    if present is not None:
        # The diagonal of an absent row remains, so that its loss is finite: 0.
        among = (present[:, None] & present[None]) | jnp.eye(size, dtype=bool)
        logits, same = jnp.where(among, logits, -jnp.inf), same & among
    target = same.astype(jnp.float32) / same.sum(axis=1, keepdims=True, dtype=jnp.float32)
    # All members of an identity have the same target, so it is that of both directions.
    meant = jnp.where(same, target * logits, 0.0)
    over_texts, over_images = (
        jnp.sum(jax.nn.logsumexp(logits, axis=axis) - meant.sum(axis=axis)) for axis in (1, 0)
    )
    return 0.5 * (over_texts + over_images) / row_count(size, present)


class IdentityContrastive(Objective):
    """`identity_contrastive_loss` with a learned temperature.

    By default an identity is a duplicate group. With reads.identity=labels.values it is what all
    labels of a record state together.

    Args:
      temperature: initial value of the learned temperature. The scale, its inverse, is clipped at
        100 after each update.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    batch: ClassVar[Mapping[str, str]] = {"identity": "group"}

    def __init__(self, *, temperature: float = 0.07) -> None:
        self.logit_scale = LogitScale(temperature)

    def __call__(
        self, *, context: Context, image: jax.Array, text: jax.Array, identity: jax.Array
    ) -> Loss:
        """Contrasts the global batch."""
        value = identity_contrastive_loss(
            image, text, self.logit_scale(), identity, present=context.present
        )
        return Loss(value, {"loss": batch_mean(value, len(image), context.present)})

    def post_update(self, context: Context) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
