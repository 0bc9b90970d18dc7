"""Contrast of an image with several sub-captions, and of each with the regions that it groups.

Zheng et al. 2024 (DreamLIP); the contrast within reports is that of Bica et al. 2024 (SPARC).
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.build import unknown
from mmrl.objectives.base import (
    Context,
    LogitScale,
    Objective,
    check_group,
    check_present,
    diagonal_cross_entropies,
    require,
)
from mmrl.objectives.sentence_contrastive import sentence_negatives
from mmrl.types import InputError, Loss, Metrics
from mmrl.vectors import l2_normalize

WEIGHTINGS = ("minmax", "softmax")
NEGATIVES = ("batch", "report")


def multi_positive_loss(
    image: jax.Array,
    texts: jax.Array,
    scale: jax.Array | float,
    *,
    valid: jax.Array | None = None,
    key: jax.Array | None = None,
    known: jax.Array | None = None,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """The symmetric contrast of images with their k-th texts, averaged over k (DreamLIP).

    With every text valid and distinct, this is the mean over k of 1/2 (CE(Z_k) + CE(Z_k^T)), where
    Z_k = scale * cos(image_i, text_jk) and the target is the diagonal. A text that is not valid is
    no row of either; its image remains a candidate for the texts of other reports.

    Args:
      image: f[B, D]. texts: f[B, K, D]. Neither has to be normalised.
      scale: f32[], the inverse temperature itself, not its logarithm.
      valid: bool[B, K]; None: all are. key: i32[B, K], equal for equal texts; None: none are equal.
      known: i32[B, E], keys of texts that hold for each report and are therefore no negatives of
        its image; None: the keys of its valid texts.
      group: i32[B], duplicate groups, none of whose members are negatives of each other.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[], the mean over all valid texts; 0 if there are none.
    """
    require(
        image.ndim == 2 and texts.ndim == 3 and image.shape == texts.shape[::2],
        f"image [B, D] must match texts [B, K, D], got {image.shape}, {texts.shape}",
    )
    valid, group, present = _marks(texts, valid, key, group, present)
    image, texts = l2_normalize(_keep(image, present)), l2_normalize(_keep(texts, valid))
    logits = jnp.float32(scale) * jnp.einsum("id,jkd->kij", image, texts)
    negative = jnp.moveaxis(sentence_negatives(valid, key, group, present, known=known), 2, 0)
    included = negative | jnp.eye(image.shape[0], dtype=bool)
    return _mean(diagonal_cross_entropies(logits, included), valid.T)


def grouping_loss(
    texts: jax.Array,
    regions: jax.Array,
    scale: jax.Array | float,
    *,
    threshold: float = 0.1,
    weighting: str = "minmax",
    negatives: str = "batch",
    valid: jax.Array | None = None,
    key: jax.Array | None = None,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
) -> jax.Array:
    """The symmetric contrast of texts with the regions that they group (DreamLIP, as intended).

    1/2 (CE(Z) + CE(Z^T)) with Z = scale * g t^T over all B K texts t, the target on the diagonal,
    and g from `grouped_regions`. The B K x B K logits are held at once.

    Args:
      texts: f[B, K, D]. regions: f[B, R, D]. Neither has to be normalised.
      scale: f32[], the inverse temperature itself, not its logarithm.
      threshold, weighting: see `grouped_regions`.
      negatives: "batch", or "report" to contrast a text only with those of its own report, as SPARC
        does (with threshold=-1).
      valid: bool[B, K]; the others are neither rows nor columns. None: all are.
      key: i32[B, K], equal for equal texts, which are no negatives of each other.
      group: i32[B], duplicate groups: texts of different reports of a group are no negatives.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      f32[], the mean over all valid texts; 0 if there are none.

    Raises:
      InputError: unknown `weighting` or `negatives`.
    """
    _check_choice("negatives", negatives, NEGATIVES)
    require(
        texts.ndim == 3 and regions.ndim == 3 and texts.shape[::2] == regions.shape[::2],
        f"texts [B, K, D] must match regions [B, R, D], got {texts.shape}, {regions.shape}",
    )
    size, count, width = texts.shape
    valid, group, present = _marks(texts, valid, key, group, present)
    texts, regions = l2_normalize(_keep(texts, valid)), l2_normalize(_keep(regions, present))
    grouped = grouped_regions(texts, regions, threshold=threshold, weighting=weighting)
    if negatives == "batch":  # as if one report held all texts
        texts, grouped = (x.reshape(1, -1, width) for x in (texts, grouped))
        valid = valid.reshape(1, -1)
        key = None if key is None else key.reshape(1, -1)
    logits = jnp.float32(scale) * jnp.einsum("bkd,bld->bkl", grouped, texts)
    included = valid[:, :, None] & valid[:, None, :]
    if key is not None:
        included &= key[:, :, None] != key[:, None, :]
    if group is not None and negatives == "batch":
        related = (group[:, None] == group[None, :]) & ~jnp.eye(size, dtype=bool)
        included &= ~jnp.repeat(jnp.repeat(related, count, axis=0), count, axis=1)
    included |= jnp.eye(logits.shape[1], dtype=bool)
    return _mean(diagonal_cross_entropies(logits, included), valid)


def grouped_regions(
    texts: jax.Array, regions: jax.Array, *, threshold: float = 0.1, weighting: str = "minmax"
) -> jax.Array:
    """For each text, the direction of the weighted mean of the regions that resemble it.

    With s_p the cosine of a text with region p of its image, the weights are

      minmax   (s_p - min s) / (max s - min s + 1e-10)
      softmax  softmax_p(s)

    Those below the threshold become 0, and the others are divided by their sum. Gradients flow
    through the weights. If no weight is left, all regions weigh the same: with minmax when all
    regions resemble the text equally, with softmax when the threshold is above the greatest weight.

    Args:
      texts: f32[B, K, D]. regions: f32[B, R, D]. Both L2-normalised.
      threshold: of the weights; below 0 it is 1 / R.
      weighting: minmax or softmax.

    Returns:
      f32[B, K, D], L2-normalised.

    Raises:
      InputError: unknown `weighting`.
    """
    _check_choice("weighting", weighting, WEIGHTINGS)
    share = 1.0 / regions.shape[1]
    scores = jnp.einsum("bkd,bpd->bkp", texts, regions)
    if weighting == "minmax":
        low, high = (f(scores, axis=2, keepdims=True) for f in (jnp.min, jnp.max))
        weights = (scores - low) / (high - low + 1e-10)
    else:
        weights = jax.nn.softmax(scores, axis=2)
    weights = jnp.where(weights < (share if threshold < 0 else threshold), 0.0, weights)
    total = weights.sum(axis=2, keepdims=True)
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), share)
    return l2_normalize(jnp.einsum("bkp,bpd->bkd", weights, regions))


def _marks(
    texts: jax.Array,
    valid: jax.Array | None,
    key: jax.Array | None,
    group: jax.Array | None,
    present: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """(valid bool[B, K], without the rows that are not present, group, present), checked."""
    size, count, _ = texts.shape
    for name, array in (("valid", valid), ("key", key)):
        require(
            array is None or array.shape == (size, count),
            f"{name} must be [{size}, {count}], got {getattr(array, 'shape', None)}",
        )
    group, present = check_group(group, size), check_present(present, size)
    valid = jnp.ones((size, count), bool) if valid is None else jnp.asarray(valid)
    return (valid if present is None else valid & present[:, None]), group, present


def _keep(features: jax.Array, kept: jax.Array | None) -> jax.Array:
    """Features with ones in the places that are not kept: no gradient, whatever they contain."""
    features = jnp.asarray(features)
    if kept is None:
        return features
    kept = kept.reshape(*kept.shape, *[1] * (features.ndim - kept.ndim))
    return jnp.where(kept, features, jnp.ones((), features.dtype))


def _mean(losses: tuple[jax.Array, jax.Array], valid: jax.Array) -> jax.Array:
    """Mean of both losses f32[..., N] over the valid places bool[..., N]."""
    total = jnp.sum(jnp.where(valid, 0.5 * (losses[0] + losses[1]), 0.0))
    return total / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise InputError(unknown(f"{name} of sub_captions", given, choices))


class SubCaptions(Objective):
    """`multi_positive_loss` plus `grouping_loss`, each with a learned temperature of its own.

    The sub-captions are the sentences of a report, each encoded alone. Equal sentences of different
    reports are no negatives, which the published losses do not consider. `multi_positive=0` with
    `negatives="report"` and `threshold=-1` follows the fine-grained loss of SPARC (Bica et al.
    2024), with sentences instead of words.

    Args:
      multi_positive: weight of the contrast of images with sentences.
      grouping: weight of the contrast of sentences with the regions that they group.
      threshold: weight below which a region is left out of a group; below 0 it is 1 / R.
      weighting: how cosines become weights: minmax or softmax, see `grouped_regions`.
      negatives: sentences with which grouped regions are contrasted: batch, or report for those of
        the same report alone.
      temperature: initial value of both learned temperatures, 0.07 as in CLIP. The scales, their
        inverses, are clipped at 100 after each update.

    Raises:
      InputError: unknown weighting or negatives, or a number out of range.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "image": "image.embedding",
        "regions": "image.regions",
        "texts": "text@sentences.embedding",
        "sentences": "text@sentences.sentence",
    }
    batch: ClassVar[Mapping[str, str]] = {
        "valid": "sentences.valid",
        "key": "sentences.key",
        "known": "sentences.known",
        "group": "group",
    }

    def __init__(
        self,
        *,
        multi_positive: float = 1.0,
        grouping: float = 1.0,
        threshold: float = 0.1,
        weighting: str = "minmax",
        negatives: str = "batch",
        temperature: float = 0.07,
    ) -> None:
        _check_choice("weighting", weighting, WEIGHTINGS)
        _check_choice("negatives", negatives, NEGATIVES)
        weights = {"multi_positive": float(multi_positive), "grouping": float(grouping)}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise InputError(
                f"sub_captions: multi_positive {multi_positive}, grouping {grouping}; expected "
                "weights of at least 0, one of them above 0"
            )
        if not (threshold < 1 and temperature > 0):
            raise InputError(
                f"sub_captions: threshold {threshold}, temperature {temperature}; expected a "
                "number below 1 and a number above 0"
            )
        self.weights = tuple(weights.items())
        self.grouping = functools.partial(
            grouping_loss, threshold=float(threshold), weighting=weighting, negatives=negatives
        )
        self.logit_scale, self.grouping_scale = LogitScale(temperature), LogitScale(temperature)

    def __call__(
        self,
        *,
        context: Context,
        image: jax.Array,
        regions: jax.Array,
        texts: jax.Array,
        sentences: jax.Array,
        valid: jax.Array,
        key: jax.Array,
        known: jax.Array,
        group: jax.Array,
    ) -> Loss:
        """Contrasts the sentences of the global batch with its images and with its regions."""
        scale, local = jnp.exp(self.logit_scale()), jnp.exp(self.grouping_scale())
        present = context.present
        marks = {"valid": valid, "key": key, "group": group, "present": present}
        terms = {
            "multi_positive": functools.partial(
                multi_positive_loss, image, texts, scale, known=known, **marks
            ),
            "grouping": functools.partial(self.grouping, sentences, regions, local, **marks),
        }
        count = (valid if present is None else valid & present[:, None]).sum(dtype=jnp.float32)
        metrics: Metrics = {
            "logit_scale": (scale, jnp.float32(1)),
            "grouping_scale": (local, jnp.float32(1)),
        }
        value = jnp.float32(0)
        for name, weight in self.weights:
            if weight:
                term = terms[name]()
                value += weight * term
                metrics[name] = (term * count, count)
        metrics["loss"] = (value * count, count)
        return Loss(value, metrics)

    def post_update(self, context: Context) -> None:
        """Keeps the scales within their bound."""
        self.logit_scale.clip()
        self.grouping_scale.clip()
