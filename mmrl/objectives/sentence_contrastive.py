"""Contrast of single sentences with the regions of images, which teaches where findings are."""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import (
    Context,
    Objective,
    attention_entropy,
    check_group,
    check_present,
    other_rows,
    require,
)
from mmrl.types import InputError, Loss, Metrics
from mmrl.vectors import contract, l2_normalize, matmul_dtype

AGGREGATES = ("logsumexp", "max", "attention")

# Without a chunk size, images are compared in parts whose scores take at most this many numbers
# (2**24 float32 are 64 MiB).
_SCORES_AT_ONCE = 2**24


def sentence_scores(
    regions: jax.Array,
    sentences: jax.Array,
    *,
    scale: float = 20.0,
    sharpness: float = 20.0,
    aggregate: str = "logsumexp",
    chunk_size: int = 0,
) -> jax.Array:
    """Scores of every sentence with every image.

    With c_r the cosine of a sentence with region r of an image, the score is

      logsumexp  scale / sharpness * (logsumexp_r(sharpness * c_r) - log R), a soft maximum
      max        scale * max_r c_r
      attention  scale * the cosine of the sentence with the mean of the normalised regions, which
                 softmax_r(sharpness * c_r) weights

    Args:
      regions: f[N, R, D], not normalised. sentences: f[M, D], not normalised.
      chunk_size: images whose cosines are held at a time; they are recomputed in the backward pass.
        0: as many as take 64 MiB.

    Returns:
      f32[N, M].
    """
    check_aggregate(aggregate)
    require(
        regions.ndim == 3 and sentences.ndim == 2 and regions.shape[2] == sentences.shape[1],
        f"regions [N, R, D] must match sentences [M, D], got {regions.shape}, {sentences.shape}",
    )
    dtype = matmul_dtype(regions, sentences)
    regions, sentences = l2_normalize(regions), l2_normalize(sentences)
    count = regions.shape[1]

    def score(regions: jax.Array) -> jax.Array:
        """regions f32[n, R, D] -> f32[n, M]."""
        cosine = contract("nrd,md->nmr", regions, sentences, dtype)
        if aggregate == "max":
            return scale * cosine.max(axis=2)
        if aggregate == "logsumexp":
            soft = jax.nn.logsumexp(sharpness * cosine, axis=2) - jnp.log(jnp.float32(count))
            return scale / sharpness * soft
        weights = jax.nn.softmax(sharpness * cosine, axis=2)
        context = contract("nmr,nrd->nmd", weights, regions, dtype)
        square = jnp.maximum(jnp.sum(context * context, axis=2), 1e-12)
        return scale * jnp.sum(weights * cosine, axis=2) * jax.lax.rsqrt(square)

    size = regions.shape[0]
    chunk = chunk_size or max(1, _SCORES_AT_ONCE // (count * sentences.shape[0]))
    if chunk >= size:
        return score(regions)
    one = jax.checkpoint(lambda x: score(x[None])[0])
    return jax.lax.map(one, regions, batch_size=chunk)


def sentence_contrastive_loss(
    regions: jax.Array,
    sentences: jax.Array,
    valid: jax.Array,
    *,
    key: jax.Array | None = None,
    known: jax.Array | None = None,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    scale: float = 20.0,
    sharpness: float = 20.0,
    aggregate: str = "logsumexp",
    chunk_size: int = 0,
) -> jax.Array:
    """Given a sentence, find its image; given an image, find its sentence.

    For each valid sentence s of report i, the mean of two cross-entropies over `sentence_scores`:
    of image i against the images of other reports, and of s against the valid sentences of other
    reports. A sentence and an image are no negatives of each other if the key of the sentence is
    among those known to hold for the report of the image.

    Args:
      regions: f[B, R, D], or f[B, D] for one vector per image. sentences: f[B, S, D].
      valid: bool[B, S]. key: i32[B, S], equal for sentences with the same text; None: none are.
      known: i32[B, E], keys of texts that hold for each report; None: those of its valid sentences.
      group: i32[B], duplicate groups, none of whose members are negatives of each other.
      present: bool[B], the rows that have both inputs; None: all.
      scale, sharpness, aggregate, chunk_size: see `sentence_scores`.

    Returns:
      f32[], the mean over all valid sentences; 0 if there are none.
    """
    if regions.ndim == 2:
        regions = regions[:, None]
    require(
        regions.ndim == 3
        and sentences.ndim == 3
        and regions.shape[::2] == sentences.shape[::2]
        and valid.shape == sentences.shape[:2],
        f"regions [B, R, D] must match sentences [B, S, D] and valid [B, S], got {regions.shape}, "
        f"{sentences.shape}, {valid.shape}",
    )
    require(
        key is None or key.shape == valid.shape,
        f"key must be i32{list(valid.shape)}, got {key if key is None else key.shape}",
    )
    size, count, width = sentences.shape
    group, present = check_group(group, size), check_present(present, size)
    if present is not None:
        valid = valid & present[:, None]
        # Whatever absent rows and places contain, their gradient is 0.
        regions = jnp.where(present[:, None, None], regions, jnp.ones((), regions.dtype))
    sentences = jnp.where(valid[..., None], sentences, jnp.ones((), sentences.dtype))
    scores = sentence_scores(
        regions,
        sentences.reshape(-1, width),
        scale=scale,
        sharpness=sharpness,
        aggregate=aggregate,
        chunk_size=chunk_size,
    ).reshape(size, size, count)  # image, report, sentence
    negative = sentence_negatives(valid, key, group, present, known=known)
    own = jnp.eye(size, dtype=bool)[..., None]
    positive = jnp.einsum("iis->is", scores)  # B S
    # Column (j, s): images i that may not have the sentence, and image j itself.
    over_images = jax.nn.logsumexp(jnp.where(negative | own, scores, -jnp.inf), axis=0)
    # Row i: sentences that image i may not show; each own sentence is added to them in turn.
    others = jnp.where(negative, scores, -jnp.inf).reshape(size, -1)
    # The gradient of a log-sum-exp of -inf alone would be NaN.
    any_other = negative.any(axis=(1, 2))[:, None]
    most = jax.nn.logsumexp(jnp.where(any_other, others, 0.0), axis=1, keepdims=True)
    over_sentences = jnp.where(any_other, jnp.logaddexp(most, positive), positive)
    loss = 0.5 * (over_images + over_sentences) - positive
    return jnp.sum(jnp.where(valid, loss, 0.0)) / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


def sentence_negatives(
    valid: jax.Array,
    key: jax.Array | None,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    *,
    known: jax.Array | None = None,
) -> jax.Array:
    """Which sentences are negatives of which images; arguments as in `sentence_contrastive_loss`.

    Returns:
      bool[B, B, S], True at [i, j, s] if image i and sentence s of report j are a negative pair.
    """
    negative = other_rows(group, valid.shape[0], present)[..., None] & valid[None]
    if key is None:
        return negative
    if known is None:
        known, holds = key, valid
    else:
        holds = jnp.ones(known.shape, bool)

    def add(shared: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        """Adds the pairs that share one of the keys of each report, known and holding i32[B]."""
        same = one[0][:, None, None] == key[None]
        return shared | (same & one[1][:, None, None]), None

    # One key of each report at a time, not B x B x S x E comparisons at once.
    shared, _ = jax.lax.scan(add, jnp.zeros_like(negative), (known.T, holds.T))
    return negative & ~shared


def check_aggregate(aggregate: str) -> None:
    """Raises InputError unless `aggregate` is one of `AGGREGATES`."""
    if aggregate not in AGGREGATES:
        raise InputError(
            f"unknown aggregate {aggregate!r} of sentence scores; choices: {', '.join(AGGREGATES)}"
        )


class SentenceContrastive(Objective):
    """`sentence_contrastive_loss` of sentences that are encoded one by one.

    A word that has read the whole report carries the report, so that any region serves it. A
    sentence on its own carries its finding alone, and only the region that shows it tells the image
    from others. Only sentences that state something have such a region, so the others are left out.

    With `reads` set to regions=image.embedding, sentences=text@sentences.embedding and
    valid=sentences.valid it contrasts whole images with all sentences, as DreamLIP does with
    sub-captions (Zheng et al. 2024).

    The metric `attention_entropy` is the entropy of softmax_r(sharpness * c_r), the attention of a
    sentence over the regions of its own image, 1 if it is uniform.

    Args:
      scale: inverse temperature of the contrast.
      sharpness: inverse temperature of the soft maximum, or of the attention, over the regions.
      aggregate: how the cosines with the regions become one score: logsumexp, max or attention, see
        `sentence_scores`.
      chunk_size: images that are compared at a time, to save memory; 0 means about 64 MiB.

    Raises:
      InputError: unknown aggregate, or a number out of range.
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
        self,
        *,
        scale: float = 20.0,
        sharpness: float = 20.0,
        aggregate: str = "logsumexp",
        chunk_size: int = 0,
    ) -> None:
        check_aggregate(aggregate)
        if not (scale > 0 and sharpness > 0 and chunk_size >= 0):
            raise InputError(
                f"sentence_contrastive: scale {scale}, sharpness {sharpness}, chunk_size "
                f"{chunk_size}; expected numbers above 0, and at least 0"
            )
        self.sharpness = float(sharpness)
        self.loss = functools.partial(
            sentence_contrastive_loss,
            scale=float(scale),
            sharpness=self.sharpness,
            aggregate=aggregate,
            chunk_size=chunk_size,
        )

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
        """Contrasts the sentences of the global batch with its images."""
        value = self.loss(
            regions, sentences, valid, key=key, known=known, group=group, present=context.present
        )
        if context.present is not None:
            valid = valid & context.present[:, None]
        weight = valid.sum(dtype=jnp.float32)
        metrics: Metrics = {"loss": (value * weight, weight)}
        if regions.ndim == 3:
            one, two = jax.lax.stop_gradient((regions, sentences))
            cosine = contract("bsd,brd->bsr", l2_normalize(two), l2_normalize(one), jnp.float32)
            metrics["attention_entropy"] = attention_entropy(self.sharpness * cosine, valid)
        return Loss(value, metrics)
