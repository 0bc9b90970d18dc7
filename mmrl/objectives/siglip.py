"""Pairwise sigmoid loss (SigLIP; Zhai et al. 2023, algorithm 1)."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.objectives import all_pairs, tiles
from mmrl.objectives.base import (
    Context,
    LogitScale,
    Objective,
    batch_mean,
    check_group,
    check_present,
    negatives,
    require,
    row_count,
    zero_absent,
)
from mmrl.types import Loss
from mmrl.vectors import contract, matmul_dtype


def siglip_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    *,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    implementation: str = "auto",
    chunk_size: int = 0,
) -> jax.Array:
    """-1/B * sum_ij log sigmoid(y_ij (exp(logit_scale) image_i . text_j + logit_bias)).

    Args:
      image, text: f[B, D], already L2-normalised. logit_scale, logit_bias: f32[].
      group: i32[B], duplicate groups. Pairs off the diagonal with equal group are left out of the
        sum.
      present: bool[B], the pairs that have both inputs; None: all. The loss is that of a batch
        without the other pairs, and 0 if no pair is left.
      implementation, chunk_size: as in `global_contrastive.contrastive_loss`.

    Returns:
      f32[]; y is +1 on the diagonal and -1 elsewhere.
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
    params = (logit_scale, logit_bias)
    if form == "dense":
        whole = logits(params, image.astype(jnp.float32), text.astype(jnp.float32), None)
        sign = 2.0 * jnp.eye(size, dtype=jnp.float32) - 1.0
        included = negatives(group, size, present)
        if present is not None:
            included &= present[:, None]  # without the diagonal of absent pairs
        total = -jnp.sum(jnp.where(included, jax.nn.log_sigmoid(sign * whole), 0.0))
        return total / row_count(size, present)
    local_size = size // ring.size
    shape = tiles.tile_shape(local_size, local_size, 1, chunk_size)
    tiled = tiles.TiledLoss(logits, tiles.SigmoidLoss(), shape)
    return all_pairs.pair_loss(tiled, params, image, text, group=group, present=present, ring=ring)


def _logits(
    params: tuple[jax.Array, jax.Array],
    image: jax.Array,
    text: jax.Array,
    mask: None,
    *,
    dtype: Any,
) -> jax.Array:
    logit_scale, logit_bias = params
    return jnp.exp(logit_scale) * contract("bd,cd->bc", image, text, dtype) + logit_bias


class Siglip(Objective):
    """`siglip_loss` with learned scale and bias.

    Args:
      temperature: initial value of the learned temperature, 0.1 as in the paper (scale 10).
      bias: initial value of the learned bias; -10, as in the paper, balances the B - 1 negatives of
        each positive pair at the start of training.
      implementation: how the loss over all pairs is computed, with equal results: dense, chunked,
        ring, or auto, which chooses by the size of the batch; see `siglip_loss`.
      chunk_size: maximum number of images and of texts in a tile; 0 means about 16 MiB of logits.

    Raises:
      InputError: unknown implementation or negative chunk size.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.embedding", "text": "text.embedding"}
    batch: ClassVar[Mapping[str, str]] = {"group": "group"}

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        bias: float = -10.0,
        implementation: str = "auto",
        chunk_size: int = 0,
    ) -> None:
        all_pairs.check_implementation(implementation, chunk_size)
        self.implementation, self.chunk_size = implementation, chunk_size
        self.logit_scale = LogitScale(temperature)
        self.logit_bias = nnx.Param(jnp.float32(bias))

    def __call__(
        self, *, context: Context, image: jax.Array, text: jax.Array, group: jax.Array
    ) -> Loss:
        """Scores every image-report pair of the global batch on its own."""
        bias = self.logit_bias[...]
        value = siglip_loss(
            image,
            text,
            self.logit_scale(),
            bias,
            group=group,
            present=context.present,
            implementation=self.implementation,
            chunk_size=self.chunk_size,
        )
        metrics = {
            "loss": batch_mean(value, image.shape[0], context.present),
            "logit_scale": (jnp.exp(self.logit_scale()), jnp.float32(1)),
            "logit_bias": (bias, jnp.float32(1)),
        }
        return Loss(value, metrics)

    def post_update(self, context: Context) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
