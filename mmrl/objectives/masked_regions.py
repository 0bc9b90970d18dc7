"""Identification of hidden patches among those of all images (Shi et al. 2021, DCVLP)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, LogitScale, Objective, judged_answers
from mmrl.objectives.masked_image import masked_region_logits
from mmrl.types import InputError, Loss


class MaskedRegions(Objective):
    """`masked_region_loss` of a fusion that does not see some patches, with a learned scale.

    The targets are the encodings of the whole image, without a gradient. Metrics: `accuracy`, the
    share of the hidden patches that are most like their own target; chance is 1 in B P. With
    `control`, in evaluation also `control_accuracy`, the same with another text.

    With `epsilon`, the loss is the mean of that of the predictions and that of the predictions
    moved by one step of the fast gradient sign method (Goodfellow et al. 2015, section 4), which
    are the hardest within epsilon of each feature to first order: adversarial perturbations across
    modalities, as the predictions are made of image and text. Metric: `adversarial`, the latter.

    Args:
      temperature: of the first scale, 1 / temperature.
      epsilon: size of the step of the adversary, in each feature; 0: there is none.
      control: whether `reads.control` names what the fusion makes with another text. It follows
        `prediction` by default.
      widths: of what is read.

    Raises:
      InputError: encodings of two sizes, a temperature that is not above 0, or an epsilon below 0.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "prediction": "fused@hidden.regions",
        "target": "image.local",
        "control": "prediction",
    }
    batch: ClassVar[Mapping[str, str]] = {"mask": "hidden.hidden"}

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        epsilon: float = 0.0,
        control: bool = False,
        widths: Mapping[str, int],
    ) -> None:
        if len(set(widths.values())) > 1 or not temperature > 0 or not epsilon >= 0:
            raise InputError(
                f"MaskedRegions: features {dict(widths)}, temperature {temperature}, epsilon "
                f"{epsilon}; expected as many, a number above 0, and none below 0"
            )
        self.logit_scale, self.control = LogitScale(temperature), control
        self.epsilon = float(epsilon)

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

        def judge(made: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits, hidden = masked_region_logits(made, target, mask, scale, present=present)
            hidden = hidden.reshape(-1)
            losses = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
            right = jnp.argmax(logits, axis=1) == jnp.arange(len(logits))
            total = jnp.sum(jnp.where(hidden, losses, 0.0))
            found = (right & hidden).sum(dtype=jnp.float32)
            return total, found, hidden.sum(dtype=jnp.float32)

        loss = judged_answers(context, judge, (prediction,), (control,) if self.control else None)
        if not self.epsilon:
            return loss
        count = loss.metrics["loss"][1]
        slope = jax.grad(lambda made: judge(made)[0])(jax.lax.stop_gradient(prediction))
        moved = prediction + jnp.asarray(self.epsilon, prediction.dtype) * jnp.sign(slope)
        harder = judge(moved)[0]
        value = (loss.value + harder / jnp.maximum(count, 1.0)) / 2
        return Loss(
            value, loss.metrics | {"loss": (value * count, count), "adversarial": (harder, count)}
        )

    def post_update(self, context: Context) -> None:
        """Bounds the scale by 100."""
        self.logit_scale.clip()
