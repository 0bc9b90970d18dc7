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


def _cross_entropy(
    logits: jax.Array, values: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(masked cross-entropy f32[B, C], weight f32[B, C])."""
    require(
        logits.shape == values.shape == mask.shape,
        f"logits {logits.shape}, values {values.shape} and mask {mask.shape} must be "
        "alike; the head needs one feature for each label",
    )
    known = mask & (values <= 1)
    # log(1 + exp(x)) - x y, which is stable for large |x|.
    logits = jnp.where(known, logits.astype(jnp.float32), 0.0)
    loss = jax.nn.softplus(logits) - logits * values.astype(jnp.float32)
    return jnp.where(known, loss, 0.0), known.astype(jnp.float32)


class LabelClassification(Objective):
    """`label_loss` of a head with one feature for each label: config.towers.image.heads.labels.

    A row that lacks the encoded input has no known labels.
    """

    reads: ClassVar[Mapping[str, str]] = {"logits": "image.labels"}
    batch: ClassVar[Mapping[str, str]] = {"values": "labels.values", "mask": "labels.mask"}

    def __call__(
        self, *, context: Context, logits: jax.Array, values: jax.Array, mask: jax.Array
    ) -> Loss:
        """Classifies every row by its known labels.

        Raises:
          InputError: another number of logits than of labels.
        """
        if logits.shape != values.shape:
            raise InputError(
                f"label_classification reads {logits.shape[-1]} logits for {values.shape[-1]} "
                "labels; expected one for each: config.towers.image.heads.labels must be the "
                "number of config.data.label_names"
            )
        if context.present is not None:
            mask = mask & context.present[:, None]
        per_label, weight = _cross_entropy(logits, values, mask)
        total, count = per_label.sum(), weight.sum()
        right = ((logits > 0) == (values > 0.5)).astype(jnp.float32) * weight
        metrics = {"loss": (total, count), "accuracy": (right.sum(), count)}
        return Loss(total / jnp.maximum(count, 1.0), metrics)
