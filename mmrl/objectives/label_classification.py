"""Multi-label classification: logits against the labels of the record."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, Objective, require
from mmrl.types import InputError, Loss


def label_loss(logits: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Binary cross-entropy of every known label, averaged over them.

    Args:
      logits: f[B, C]. values: f[B, C], 0 absent, 1 present, above 1 uncertain. mask: bool[B, C],
        False: unknown. Uncertain labels count as unknown.

    Returns:
      f32[]; 0 where no label is known.

    Raises:
      ValueError: shapes that differ.
    """
    per_label, weight = _cross_entropy(logits, values, mask)
    return per_label.sum() / jnp.maximum(weight.sum(), 1.0)


def require_alike(logits: jax.Array, values: jax.Array, mask: jax.Array) -> None:
    """Raises ValueError unless there is one logit for each label."""
    require(
        logits.shape == values.shape == mask.shape,
        f"logits {logits.shape}, values {values.shape} and mask {mask.shape} must be "
        "alike; the head needs one feature for each label",
    )


def _cross_entropy(
    logits: jax.Array, values: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(masked cross-entropy f32[B, C], weight f32[B, C])."""
    require_alike(logits, values, mask)
    known = mask & (values <= 1)
    # log(1 + exp(x)) - x y, which is stable for large |x|.
    logits = jnp.where(known, logits.astype(jnp.float32), 0.0)
    loss = jax.nn.softplus(logits) - logits * values.astype(jnp.float32)
    return jnp.where(known, loss, 0.0), known.astype(jnp.float32)


class OfLabels(Objective):
    """Base of the objectives that train a head on labels: config.towers.image.heads.labels.

    Attributes:
      name: of the module, for messages.
    """

    name: ClassVar[str]
    reads: ClassVar[Mapping[str, str]] = {"logits": "image.labels"}
    batch: ClassVar[Mapping[str, str]] = {"values": "labels.values", "mask": "labels.mask"}

    def known(
        self, context: Context, logits: jax.Array, values: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """bool[B, C]: `mask` without the rows that lack the encoded input.

        Raises:
          InputError: another number of logits than of labels.
        """
        if logits.shape != values.shape:
            raise InputError(
                f"{self.name} reads {logits.shape[-1]} logits for {values.shape[-1]} "
                "labels; expected one for each: config.towers.image.heads.labels must be the "
                "number of config.data.label_names"
            )
        return mask if context.present is None else mask & context.present[:, None]


class LabelClassification(OfLabels):
    """`label_loss` of a head with one feature for each label: config.towers.image.heads.labels.

    A row that lacks the encoded input has no known labels.
    """

    name: ClassVar[str] = "label_classification"

    def __call__(
        self, *, context: Context, logits: jax.Array, values: jax.Array, mask: jax.Array
    ) -> Loss:
        """Classifies every row by its known labels.

        Raises:
          InputError: another number of logits than of labels.
        """
        mask = self.known(context, logits, values, mask)
        per_label, weight = _cross_entropy(logits, values, mask)
        total, count = per_label.sum(), weight.sum()
        right = ((logits > 0) == (values > 0.5)).astype(jnp.float32) * weight
        metrics = {"loss": (total, count), "accuracy": (right.sum(), count)}
        return Loss(total / jnp.maximum(count, 1.0), metrics)
