"""Global image-report contrastive loss over the whole batch.

ConVIRT (Zhang et al. 2020) and CLIP (Radford et al. 2021).
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives import all_pairs, tiles
from mmrl.objectives.base import (
    Context,
    LogitScale,
    Objective,
    batch_mean,
    check_group,
    check_present,
    require,
    two_way_cross_entropy,
    zero_absent,
)
from mmrl.types import Loss
from mmrl.vectors import contract, matmul_dtype


def contrastive_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    *,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    implementation: str = "auto",
    chunk_size: int = 0,
) -> jax.Array:
    """Symmetric cross-entropy over exp(logit_scale) * image @ text.T.

    Radford et al. 2021 (CLIP), figure 3; Zhang et al. 2020 (ConVIRT), equations 2-4 with
    lambda = 1/2.

    Args:
      image, text: f[B, D], already L2-normalised; row i of both is pair i.
      logit_scale: f32[], logarithm of the inverse temperature.
      group: i32[B], duplicate groups. Pairs off the diagonal with equal group are left out of the
        denominators.
      present: bool[B], the pairs that have both inputs; None: all. The loss is that of a batch
        without the other pairs, and 0 if no pair is left.
      implementation: all give the same result. "dense" holds all B x B logits. "chunked" holds one
        tile of them at a time and computes it again in the backward pass. "ring" does so on every
        device that shares the batch, and the texts move from device to device. "auto" is described
        in `all_pairs.choose`.
      chunk_size: maximum number of images and of texts in a tile; 0 means about 16 MiB of logits.

    Returns:
      f32[]. Constant embeddings give log B.
    """
    require(
        image.ndim == 2 and image.shape == text.shape,
        f"image and text must both be [B, D], got {image.shape} and {text.shape}",
    )
    image, text = jnp.asarray(image), jnp.asarray(text)
    size, dtype = image.shape[0], matmul_dtype(image, text)
    group, present = check_group(group, size), check_present(present, size)
    image, text = zero_absent(present, image), zero_absent(present, text)
    logits = functools.partial(_logits, dtype=dtype)
    form, ring = all_pairs.choose(implementation, size, 1, image)
    if form == "dense":
        whole = logits(logit_scale, image.astype(jnp.float32), text.astype(jnp.float32), None)
        return two_way_cross_entropy(whole, group, present)
    local_size = size // ring.size
    shape = tiles.tile_shape(local_size, local_size, 1, chunk_size)
    tiled = tiles.TiledLoss(logits, tiles.TwoWayCrossEntropy(), shape)
    return all_pairs.pair_loss(
        tiled, logit_scale, image, text, group=group, present=present, ring=ring
    )


def _logits(
    logit_scale: jax.Array, image: jax.Array, text: jax.Array, mask: None, *, dtype: Any
) -> jax.Array:
    return jnp.exp(logit_scale) * contract("bd,cd->bc", image, text, dtype)


class GlobalContrastive(Objective):
    """`contrastive_loss` with a learned temperature.

    Args:
      temperature: initial value of the learned temperature, 0.07 as in CLIP. The scale, its
        inverse, is clipped at 100 after each update.
      implementation: how the loss over all pairs is computed, with equal results: dense, chunked,
        ring, or auto, which chooses by the size of the batch; see `contrastive_loss`.
      chunk_size: maximum number of images and of texts in a tile; 0 means about 16 MiB of logits.

    Raises:
      InputError: unknown implementation or negative chunk size.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    batch: ClassVar[Mapping[str, str]] = {"group": "group"}

    def __init__(
        self, *, temperature: float = 0.07, implementation: str = "auto", chunk_size: int = 0
    ) -> None:
        all_pairs.check_implementation(implementation, chunk_size)
        self.implementation, self.chunk_size = implementation, chunk_size
        self.logit_scale = LogitScale(temperature)

    def __call__(
        self, *, context: Context, image: jax.Array, text: jax.Array, group: jax.Array
    ) -> Loss:
        """Contrasts the global batch; `group` marks pairs that are no negatives."""
        value = contrastive_loss(
            image,
            text,
            self.logit_scale(),
            group=group,
            present=context.present,
            implementation=self.implementation,
            chunk_size=self.chunk_size,
        )
        metrics = {
            "loss": batch_mean(value, image.shape[0], context.present),
            "logit_scale": (jnp.exp(self.logit_scale()), jnp.float32(1)),
        }
        return Loss(value, metrics)

    def post_update(self, context: Context) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
