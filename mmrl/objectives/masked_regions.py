"""Identification of hidden patches among those of all images (Shi et al. 2021, DCVLP)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, LogitScale, Objective
from mmrl.objectives.masked_image import masked_region_logits
from mmrl.types import InputError, Loss, Metrics


class MaskedRegions(Objective):
    """`masked_region_loss` of a fusion that does not see some patches, with a learned scale.

    The targets are the encodings of the whole image, without a gradient. Metrics: `accuracy`, the
    share of the hidden patches that are most like their own target; chance is 1 in B P. With
    `control`, in evaluation also `control_accuracy`, the same with another text.

    Args:
      temperature: of the first scale, 1 / temperature.
      control: whether `reads.control` names what the fusion makes with another text. Without one,
        redirect it to what `prediction` reads.
      widths: of what is read.

    Raises:
      InputError: encodings of two sizes, or a temperature that is not above 0.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "prediction": "fused@hidden.regions",
        "target": "image.local",
        "control": "fused@hidden.regions",
    }
    batch: ClassVar[Mapping[str, str]] = {"mask": "hidden.hidden"}

    def __init__(
        self, *, temperature: float = 0.07, control: bool = False, widths: Mapping[str, int]
    ) -> None:
        if len(set(widths.values())) > 1 or not temperature > 0:
            raise InputError(
                f"MaskedRegions: features {dict(widths)}, temperature {temperature}; expected as "
                "many, and a number above 0"
            )
        self.logit_scale, self.control = LogitScale(temperature), control

    def __call__(
        self,
        *,
        context: Context,
        prediction: jax.Array,
        target: jax.Array,
        control: jax.Array,
        mask: jax.Array,
    ) -> Loss:
        """Compares the hidden patches of the global batch with all patches.

        Args:
          prediction, target, control: f[B, P, D]. mask: bool[B, P], True: hidden.
        """
        scale, present = jnp.exp(self.logit_scale()), context.present

        def judged(made: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """(sum of the losses, hidden patches that are found, hidden patches)."""
            logits, hidden = masked_region_logits(made, target, mask, scale, present=present)
            hidden = hidden.reshape(-1)
            losses = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
            right = jnp.argmax(logits, axis=1) == jnp.arange(len(logits))
            total = jnp.sum(jnp.where(hidden, losses, 0.0))
            found = (right & hidden).sum(dtype=jnp.float32)
            return total, found, hidden.sum(dtype=jnp.float32)

        total, found, count = judged(prediction)
        metrics: Metrics = {"loss": (total, count), "accuracy": (found, count)}
        if self.control and context.key is None:
            metrics["control_accuracy"] = judged(control)[1:]
        return Loss(total / jnp.maximum(count, 1.0), metrics)

    def post_update(self, context: Context) -> None:
        """Bounds the scale by 100."""
        self.logit_scale.clip()
