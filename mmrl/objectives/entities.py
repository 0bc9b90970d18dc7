"""Which entities of a vocabulary an image shows, or a report names.

The alignment through knowledge of Chen et al. 2022 (Align, Reason and Learn), section 3.2.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, Objective
from mmrl.objectives.label_classification import label_loss
from mmrl.types import InputError, Loss


def entity_loss(logits: jax.Array, labels: jax.Array, known: jax.Array | None = None) -> jax.Array:
    """Binary cross-entropy of every known entity, averaged over them.

    Args:
      logits: f[B, E]. labels: [B, E], 0 absent to 1 present; values between them are soft targets.
      known: bool[B, E], False: not to be judged; None: all are known.

    Returns:
      f32[]; 0 where no entity is known.

    Raises:
      ValueError: shapes that differ.
    """
    labels = jnp.asarray(labels).astype(jnp.float32)
    known = jnp.ones(labels.shape, bool) if known is None else jnp.asarray(known).astype(bool)
    return label_loss(jnp.asarray(logits), labels, known)


class Entities(Objective):
    """`entity_loss` of a head of the image tower plus that of one of the text tower.

    Both heads have one feature for each entity. The defaults read the labels of records; an input
    with the entities of the reports has arrays of the same form.

    Metrics: `image` and `text`, the losses; `image_accuracy` and `text_accuracy`.
    """

    reads: ClassVar[Mapping[str, str]] = {"image": "image.entities", "text": "text.entities"}
    batch: ClassVar[Mapping[str, str]] = {"values": "labels.values", "mask": "labels.mask"}

    def __call__(
        self,
        *,
        context: Context,
        image: jax.Array,
        text: jax.Array,
        values: jax.Array,
        mask: jax.Array,
    ) -> Loss:
        """Judges every known entity of every row that has both inputs.

        Args:
          image, text: f[B, E], logits.
          values: f[B, E], 0 absent, 1 present, above 1 uncertain, which counts as unknown.
          mask: bool[B, E], False: unknown.

        Raises:
          InputError: another number of logits than of entities.
        """
        for name, logits in (("image", image), ("text", text)):
            if logits.shape != values.shape:
                raise InputError(
                    f"entities reads {logits.shape[-1]} logits of the {name} tower for "
                    f"{values.shape[-1]} entities; expected one for each: config.towers.{name}"
                    ".heads.entities"
                )
        known = mask & (values <= 1)
        if context.present is not None:
            known &= context.present[:, None]
        count = known.sum(dtype=jnp.float32)
        losses = {
            "image": entity_loss(image, values, known),
            "text": entity_loss(text, values, known),
        }
        metrics = {name: (value * count, count) for name, value in losses.items()}
        for name, logits in (("image", image), ("text", text)):
            right = (logits > 0) == (values > 0.5)
            metrics[f"{name}_accuracy"] = ((right & known).sum(dtype=jnp.float32), count)
        value = losses["image"] + losses["text"]
        return Loss(value, {"loss": (value * count, count), **metrics})
