"""Embeddings of words follow a graph of knowledge (Alawad et al. 2021).

The paper pulls the embeddings of concepts together that UMLS connects, beside the loss of its task.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Context, Objective, batch_mean, require
from mmrl.types import InputError, Loss
from mmrl.vectors import l2_normalize


def name_vectors(embedded: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the tokens of each name.

    Args:
      embedded: f[..., L, D]. mask: bool[..., L], the tokens that count.

    Returns:
      f32[..., D]; 0 for a name without tokens.
    """
    require(
        embedded.shape[:-1] == mask.shape,
        f"embedded must be [..., L, D] and mask [..., L], got {embedded.shape}, {mask.shape}",
    )
    total = jnp.sum(jnp.where(mask[..., None], embedded, 0).astype(jnp.float32), axis=-2)
    return total / jnp.maximum(mask.sum(axis=-1, keepdims=True, dtype=jnp.float32), 1.0)


def graph_loss(names: jax.Array, *, margin: float = 0.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pulls linked names together, and keeps others apart.

    The distance is 1 - cosine. That of a row is d(head, tail) + max(0, margin - d(head, other)).

    Args:
      names: f[B, 3, D]: head, tail and a name that is not linked to the head.
      margin: of the other names; 0: linked names are pulled alone, as in the paper.

    Returns:
      (loss f32[], mean distance of linked names f32[], of others f32[]).

    Raises:
      ValueError: another shape.
    """
    require(names.ndim == 3 and names.shape[1] == 3, f"names must be [B, 3, D], got {names.shape}")
    head, tail, other = jnp.moveaxis(l2_normalize(names), 1, 0)
    linked, others = (1 - jnp.sum(head * one, axis=1) for one in (tail, other))
    loss = jnp.mean(linked + jax.nn.relu(jnp.float32(margin) - others))
    return loss, linked.mean(), others.mean()


class GraphRegulariser(Objective):
    """`graph_loss` of names that are linked, a name being the mean of the embeddings of its tokens.

    Metrics: linked and others, the mean distances.

    Args:
      margin: distance, 1 - cosine, up to which names that are not linked are pushed apart. The
        paper pulls alone: 0. Then all names of a connected graph come together.

    Raises:
      InputError: a margin that is no number from 0 to 2.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "embedded": "text@relations.embedded",
        "mask": "text@relations.word_mask",
    }

    def __init__(self, *, margin: float = 0.0) -> None:
        if not 0 <= margin <= 2:
            raise InputError(f"graph_regulariser: margin {margin}; expected a number from 0 to 2")
        self.margin = margin

    def __call__(self, *, context: Context, embedded: jax.Array, mask: jax.Array) -> Loss:
        """Pulls the pairs of all rows: they do not depend on the records."""
        value, linked, others = graph_loss(name_vectors(embedded, mask), margin=self.margin)
        size = len(embedded)
        means = {"loss": value, "linked": linked, "others": others}
        return Loss(value, {name: batch_mean(one, size) for name, one in means.items()})
