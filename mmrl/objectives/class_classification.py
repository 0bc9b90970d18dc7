"""Classification into mutually exclusive classes: logits against the one label that is present."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context
from mmrl.objectives.label_classification import OfLabels, require_alike
from mmrl.types import Loss


def class_loss(logits: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax cross-entropy of every row whose class is known, averaged over these rows.

    The classes are the labels. The class of a row is known if exactly one of its labels is present;
    it excludes the others, whether they are stated or not. Rows with none, or with several, count
    for nothing.

    Args:
      logits: f[B, C]. values: f[B, C], 1 present; any other value is not. mask: bool[B, C], False:
        unknown.

    Returns:
      f32[]; 0 where the class of no row is known.

    Raises:
      ValueError: shapes that differ.
    """
    per_row, known, _ = _cross_entropy(logits, values, mask)
    return per_row.sum() / jnp.maximum(known.sum(), 1.0)


def _cross_entropy(
    logits: jax.Array, values: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(cross-entropy f32[B], 0 where the class is unknown; f32[B] known; f32[B] class is largest).

    With ties, the first of the largest logits counts.
    """
    require_alike(logits, values, mask)
    present = mask & (values == 1)
    known = present.sum(axis=1) == 1
    logits = jnp.where(known[:, None], logits.astype(jnp.float32), 0.0)
    chances = jax.nn.log_softmax(logits, axis=1)
    own = jnp.where(present & known[:, None], chances, 0.0).sum(axis=1)
    right = jnp.argmax(logits, axis=1) == jnp.argmax(present, axis=1)
    return -own, known.astype(jnp.float32), right.astype(jnp.float32)


class ClassClassification(OfLabels):
    """`class_loss` of a head with one feature for each label: config.towers.image.heads.labels.

    A row that lacks the encoded input has no known class. The metric `known` is the share of rows
    whose class is known.
    """

    name: ClassVar[str] = "class_classification"

    def __call__(
        self, *, context: Context, logits: jax.Array, values: jax.Array, mask: jax.Array
    ) -> Loss:
        """Classifies every row whose class is known.

        Raises:
          InputError: another number of logits than of labels.
        """
        mask = self.known(context, logits, values, mask)
        present = context.present
        rows = jnp.float32(len(logits)) if present is None else present.sum(dtype=jnp.float32)
        per_row, known, right = _cross_entropy(logits, values, mask)
        total, count = per_row.sum(), known.sum()
        metrics = {
            "loss": (total, count),
            "accuracy": ((right * known).sum(), count),
            "known": (count, rows),
        }
        return Loss(total / jnp.maximum(count, 1.0), metrics)
