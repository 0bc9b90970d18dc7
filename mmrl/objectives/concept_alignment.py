"""Alignment of concepts with regions: does an image show a concept somewhere?

PC-Align of Nie et al. 2025 (ConceptCLIP).
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.objectives.base import Context, LogitScale, Objective, check_present, require
from mmrl.objectives.sentence_contrastive import sentence_negatives, sentence_scores
from mmrl.types import Loss


def concept_alignment_loss(
    regions: jax.Array,
    words: jax.Array,
    spans: jax.Array,
    owner: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
    *,
    negative: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """`concept_vector_loss` of concepts that are spans of tokens (ConceptCLIP, PC-Align).

    A concept is the mean of the features of its tokens, as they are, before normalisation.

    Args:
      regions: f[B, R, D]. words: f[B, L, D], a feature of every token, begin mark included. Not
        normalised.
      spans: i32[C, 2], first token of each concept and the token after its last one, as indices
        into the axis L; -1, or no token, for padding.
      owner: i32[C], the row of each concept; -1 for padding.
      scale, bias, negative, present: see `concept_vector_loss`.

    Returns:
      f32[].
    """
    require(
        words.ndim == 3 and spans.ndim == 2 and spans.shape == (*owner.shape, 2),
        f"spans i32[C, 2] must match owner i32[C], and words be [B, L, D], got {spans.shape}, "
        f"{owner.shape}, {words.shape}",
    )
    spans, owner = jnp.asarray(spans), jnp.asarray(owner)
    place = jnp.arange(words.shape[1], dtype=spans.dtype)
    start, end = spans[:, :1], spans[:, 1:]
    inside = (start >= 0) & (place >= start) & (place < end)  # C L
    length = inside.sum(axis=1, dtype=jnp.float32)
    owner = jnp.where(length > 0, owner, -1)
    # Not a product with the mask: a token outside of all spans may hold anything.
    own = jnp.asarray(words)[jnp.maximum(owner, 0)].astype(jnp.float32)  # C L D
    total = jnp.sum(jnp.where(inside[..., None], own, 0.0), axis=1)
    concepts = total / jnp.maximum(length, 1.0)[:, None]
    return concept_vector_loss(
        regions, concepts, owner, scale, bias, negative=negative, present=present
    )


def concept_vector_loss(
    regions: jax.Array,
    concepts: jax.Array,
    owner: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float,
    *,
    negative: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """Binary cross-entropy of whether an image shows a concept.

    sum_bc -log sigmoid(y_bc m_bc) / C with m_bc = max_p(scale * cos(region_bp, concept_c)) + bias,
    y = 1 if concept c is from row b and -1 otherwise, and C the number of concepts.

    Args:
      regions: f[B, R, D]. concepts: f[C, D]. Not normalised.
      owner: i32[C], the row of each concept; -1 for padding.
      scale, bias: f32[]; the scale is above 0, and the inverse temperature itself.
      negative: bool[B, C], which images and concepts of other rows form negative pairs; the rest
        are left out of the sum. None: all.
      present: bool[B], the rows that have all inputs; None: all. The others are left out with their
        concepts.

    Returns:
      f32[]; 0 if there are no concepts.
    """
    require(
        regions.ndim == 3
        and concepts.ndim == 2
        and regions.shape[2] == concepts.shape[1]
        and owner.shape == concepts.shape[:1],
        f"regions [B, R, D] must match concepts [C, D] and owner [C], got {regions.shape}, "
        f"{concepts.shape}, {owner.shape}",
    )
    size = regions.shape[0]
    require(
        negative is None or negative.shape == (size, *owner.shape),
        f"negative must be bool[{size}, {len(owner)}], got {getattr(negative, 'shape', None)}",
    )
    regions, concepts, owner = map(jnp.asarray, (regions, concepts, owner))
    present = check_present(present, size)
    mine = owner == jnp.arange(size, dtype=owner.dtype)[:, None]  # B C
    if present is not None:
        mine &= present[:, None]
        # Whatever absent rows and padding contain, their gradient is 0.
        regions = jnp.where(present[:, None, None], regions, jnp.ones((), regions.dtype))
    valid = mine.any(axis=0)
    concepts = jnp.where(valid[:, None], concepts, jnp.ones((), concepts.dtype))
    included = mine | (jnp.ones_like(mine) if negative is None else negative)
    included &= valid if present is None else valid & present[:, None]
    wide = (x.astype(jnp.float32) for x in (regions, concepts))
    match = jnp.float32(scale) * sentence_scores(*wide, scale=1.0, aggregate="max")
    logits = match + jnp.float32(bias)
    losses = -jax.nn.log_sigmoid(jnp.where(mine, logits, -logits))
    total = jnp.sum(jnp.where(included, losses, 0.0))
    return total / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


class ConceptAlignment(Objective):
    """`concept_vector_loss` with learned scale and bias; concepts are sentences.

    Sentences that deny something, or call it normal, are left out.

    Two deviations from ConceptCLIP: its concepts are medical terms within a report, ours are
    sentences that are encoded alone; and there, a concept that two reports share is a negative of
    both images, while here equal sentences, and reports of one duplicate group, are no negatives.

    Args:
      temperature: initial value of the learned temperature, 0.1 as in SigLIP (scale 10). The scale
        is clipped at 100 after each update.
      bias: initial value of the learned bias, -10 as in SigLIP.
      equal_are_negatives: contrasts images with sentences that their own reports hold, too, as
        published.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "regions": "image.regions",
        "sentences": "text@sentences.sentence",
    }
    batch: ClassVar[Mapping[str, str]] = {
        "valid": "sentences.affirmed",
        "key": "sentences.key",
        "known": "sentences.known",
        "group": "group",
    }

    def __init__(
        self, *, temperature: float = 0.1, bias: float = -10.0, equal_are_negatives: bool = False
    ) -> None:
        self.equal_are_negatives = equal_are_negatives
        self.logit_scale = LogitScale(temperature)
        self.logit_bias = nnx.Param(jnp.float32(bias))

    def __call__(
        self,
        *,
        context: Context,
        regions: jax.Array,
        sentences: jax.Array,
        valid: jax.Array,
        key: jax.Array,
        known: jax.Array,
        group: jax.Array,
    ) -> Loss:
        """Scores every image with every sentence of the global batch."""
        size, _, width = sentences.shape
        present = context.present
        if present is not None:
            valid = valid & present[:, None]
        same = None if self.equal_are_negatives else key
        negative = sentence_negatives(valid, same, group, present, known=known)
        row = jnp.arange(size, dtype=jnp.int32)[:, None]
        scale, bias = jnp.exp(self.logit_scale()), self.logit_bias[...]
        value = concept_vector_loss(
            regions,
            sentences.reshape(-1, width),
            jnp.where(valid, row, -1).reshape(-1),
            scale,
            bias,
            negative=negative.reshape(size, -1),
            present=present,
        )
        count = valid.sum(dtype=jnp.float32)
        metrics = {
            "loss": (value * count, count),
            "logit_scale": (scale, jnp.float32(1)),
            "logit_bias": (bias, jnp.float32(1)),
        }
        return Loss(value, metrics)

    def post_update(self, context: Context) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
