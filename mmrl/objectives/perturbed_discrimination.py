"""Perturbed-report discrimination (Zhong, Batmanghelich, Sun 2025)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import (
    Context,
    LogitScale,
    Objective,
    other_rows,
    require,
    zero_absent,
)
from mmrl.types import Loss, Metrics


def discrimination_logits(
    image: jax.Array,
    candidates: jax.Array,
    valid: jax.Array,
    logit_scale: jax.Array,
    *,
    other: jax.Array | None = None,
) -> jax.Array:
    """exp(logit_scale) * cosine of each image with its own candidates, f32[B, 1+K].

    Arguments as in `discrimination_loss`; invalid candidates are -inf.
    """
    require(
        candidates.ndim == 3 and image.shape == (candidates.shape[0], candidates.shape[2]),
        f"image [B, D] must match candidates [B, 1+K, D], got {image.shape}, {candidates.shape}",
    )
    size, count = candidates.shape[:2]
    require(
        valid.shape in ((size, count - 1), (size, count)),
        f"valid must be bool[{size}, {count - 1}] over the copies, got {valid.shape}",
    )
    scores = jnp.einsum(
        "bd,bcd->bc", image.astype(jnp.float32), candidates.astype(jnp.float32)
    )  # B 1+K
    if other is not None:
        scores = scores - _of_others(image, candidates, other)
    copies = valid[:, -(count - 1) :] if count > 1 else valid[:, :0]
    kept = jnp.concatenate([jnp.ones((size, 1), dtype=bool), copies], axis=1)
    return jnp.where(kept, jnp.exp(logit_scale) * scores, -jnp.inf)


def _of_others(image: jax.Array, candidates: jax.Array, other: jax.Array) -> jax.Array:
    """Mean cosine of each candidate with the `other` images, f32[B, 1+K]; 0 if there are none."""
    weights = other.astype(jnp.float32)
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    # The mean cosine with some images is the cosine with their mean.
    means = jnp.einsum("bj,jd->bd", weights, image.astype(jnp.float32))
    return jnp.einsum("bd,bcd->bc", means, candidates.astype(jnp.float32))


def discrimination_loss(
    image: jax.Array,
    candidates: jax.Array,
    valid: jax.Array,
    logit_scale: jax.Array,
    *,
    other: jax.Array | None = None,
) -> jax.Array:
    """Given the image, pick the true report among itself and its K perturbed copies.

    A copy can often be told from a report without the image, by its wording. With `other`, the
    score of a candidate is its cosine with the image minus its mean cosine with other images. What
    all images share cancels, so preferring a wording earns nothing.

    Args:
      image: f[B, D], L2-normalised.
      candidates: f[B, 1+K, D], L2-normalised; index 0 is the original report.
      valid: bool[B, K], False where no perturbed copy could be made: that candidate is out.
        bool[B, 1+K] is accepted too; its first column is taken as True.
      logit_scale: f32[], logarithm of the inverse temperature.
      other: bool[B, B], at [i, j] whether image j is compared with for the candidates of row i;
        None: the published loss.

    Returns:
      f32[]: cross-entropy of index 0, averaged over the rows that have a valid copy; the others
      weigh nothing. Constant embeddings with all copies valid give log(1+K).
    """
    logits = discrimination_logits(image, candidates, valid, logit_scale, other=other)
    loss = jax.nn.logsumexp(logits, axis=1) - logits[:, 0]
    weight = _row_weight(logits)
    return jnp.sum(loss * weight) / jnp.maximum(weight.sum(), 1.0)


def _row_weight(logits: jax.Array) -> jax.Array:
    """f32[B]: 1 for rows with at least one valid copy, else 0."""
    return jnp.any(logits[:, 1:] > -jnp.inf, axis=1).astype(jnp.float32)


class PerturbedDiscrimination(Objective):
    """`discrimination_loss` with its own learned temperature, as in the paper.

    Args:
      temperature: initial value. The scale is clipped at 100 after each update.
      relative: whether the scores are relative to those with the other images of the batch, so that
        nothing can be won without the image; see `discrimination_loss`. The paper's are not.
      names: kinds of perturbation in the batch, and how `kind` numbers them. For each one the
        metrics hold its share of all copies, and the share of its copies that are valid.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "image": "image.embedding",
        "text": "text.embedding",
        "perturbed": "text@perturbed.embedding",
    }
    batch: ClassVar[Mapping[str, str]] = {
        "valid": "perturbed.valid",
        "kind": "perturbed.kind",
        "group": "group",
    }

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        relative: bool = False,
        names: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        self.logit_scale, self.relative = LogitScale(temperature), relative
        self.kinds = tuple((names or {}).get("kind", {}).items())

    def __call__(
        self,
        *,
        context: Context,
        image: jax.Array,
        text: jax.Array,
        perturbed: jax.Array,
        valid: jax.Array,
        kind: jax.Array,
        group: jax.Array,
    ) -> Loss:
        """Contrasts each report with its own perturbed copies, given its image."""
        if context.present is not None:  # a row without valid copies weighs nothing
            valid = valid & context.present[:, None]
        candidates = jnp.concatenate([text[:, None], perturbed], axis=1)  # B 1+K D
        image = zero_absent(context.present, image)  # others are compared with it, too
        other = None
        if self.relative:
            other = other_rows(group, len(group), context.present)
        value = discrimination_loss(image, candidates, valid, self.logit_scale(), other=other)
        logits = discrimination_logits(image, candidates, valid, self.logit_scale(), other=other)
        weight = _row_weight(logits)
        # Ties count as wrong, so constant embeddings score 0, not 1.
        correct = (logits[:, :1] > logits[:, 1:]).all(axis=1).astype(jnp.float32)
        metrics = {
            "loss": (value * weight.sum(), weight.sum()),
            "accuracy": (jnp.sum(correct * weight), weight.sum()),
            "logit_scale": (jnp.exp(self.logit_scale()), jnp.float32(1)),
        }
        return Loss(value, metrics | self._rates(kind, valid, context.present))

    def _rates(self, drawn: jax.Array, valid: jax.Array, present: jax.Array | None) -> Metrics:
        """The shares "{kind}/share" and "{kind}/valid", of the rows that are present.

        Args:
          drawn: i8[B, K]. valid: bool[B, K]. present: bool[B]; None: all.
        """
        if not self.kinds:
            return {}
        names, numbers = zip(*self.kinds, strict=True)
        # One reduction over the batch for all kinds: on a mesh each one is a collective.
        of_kind = drawn[..., None] == jnp.array(numbers, drawn.dtype)  # B K kinds
        size = jnp.float32(drawn.size)
        if present is not None:
            of_kind &= present[:, None, None]
            size = present.sum(dtype=jnp.float32) * drawn.shape[1]
        stacked = jnp.stack([of_kind, of_kind & valid[..., None]])
        counts = stacked.sum(axis=(1, 2), dtype=jnp.float32)  # 2 kinds
        rates = {}
        for place, name in enumerate(names):
            rates[f"{name}/share"] = (counts[0, place], size)
            rates[f"{name}/valid"] = (counts[1, place], counts[0, place])
        return rates

    def post_update(self, context: Context) -> None:
        """Keeps the scale within its bound."""
        self.logit_scale.clip()
