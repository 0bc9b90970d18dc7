"""Features that spread over the sphere (Sablayrolles et al. 2019, KoLeo)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, Objective, batch_mean
from mmrl.objectives.self_distillation import koleo_loss
from mmrl.types import Loss


class Koleo(Objective):
    """`koleo_loss` of pooled features, added up over the crops of an input (DINOv2, weight 0.1)."""

    reads: ClassVar[Mapping[str, str]] = {"features": "image@wide.pooled"}

    def __call__(self, *, context: Context, features: jax.Array) -> Loss:
        """Spreads the features f[B, D] of images, or f[B, S, D] of crops, each crop on its own."""
        crops = features[:, None] if features.ndim == 2 else features
        losses = [koleo_loss(crops[:, s], present=context.present) for s in range(crops.shape[1])]
        value = jnp.stack(losses).sum()
        return Loss(value, {"loss": batch_mean(value, len(features), context.present)})
