"""Alignment of words with regions within each pair (Wang et al. 2022, MGCA, section 3.3, CTA)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import (
    Context,
    Objective,
    batch_mean,
    check_present,
    require,
    row_count,
    zero_absent,
)
from mmrl.types import InputError, Loss
from mmrl.vectors import l2_normalize


def attention_weights(
    attention: jax.Array,
    mask: jax.Array | None = None,
    *,
    low: float = 0.1,
    high: float = 0.9,
) -> jax.Array:
    """Weights from attention: clipped to its own quantiles, then divided by their sum (MGCA).

    Quantiles are those of the entries of a row that are not 0, with linear interpolation between
    neighbours. Entries of 0 remain 0.

    Args:
      attention: f[B, L], at least 0, such as what the summary token pays to each word.
      mask: bool[B, L], the entries that take part; the others get 0. None: all.
      low, high: quantiles to which entries are clipped, from 0 to 1.

    Returns:
      f32[B, L], without a gradient. Rows sum to 1, or are 0 if all of their entries are.

    Raises:
      ValueError: shapes that do not fit, or quantiles out of order.
    """
    require(
        attention.ndim == 2 and (mask is None or mask.shape == attention.shape),
        f"attention and mask must be [B, L], got {attention.shape}, {getattr(mask, 'shape', None)}",
    )
    require(0 <= low <= high <= 1, f"quantiles must be 0 <= low <= high <= 1, got {low}, {high}")
    attention = jax.lax.stop_gradient(jnp.asarray(attention)).astype(jnp.float32)
    used = attention != 0
    if mask is not None:
        used &= jnp.asarray(mask).astype(bool)
    last = jnp.maximum(used.sum(axis=1, keepdims=True, dtype=jnp.int32) - 1, 0)
    ordered = jnp.sort(jnp.where(used, attention, jnp.inf), axis=1)  # those not used come last

    def quantile(share: float) -> jax.Array:
        place = jnp.float32(share) * last.astype(jnp.float32)
        below = jnp.floor(place).astype(jnp.int32)
        above = jnp.minimum(below + 1, last)
        one, two = (jnp.take_along_axis(ordered, at, axis=1) for at in (below, above))
        return one + (place - below.astype(jnp.float32)) * jnp.where(one == two, 0.0, two - one)

    clipped = jnp.where(used, jnp.clip(attention, quantile(low), quantile(high)), 0.0)
    total = clipped.sum(axis=1, keepdims=True)
    return clipped / jnp.where(total == 0, 1.0, total)


def token_alignment_loss(
    words: jax.Array,
    word_mask: jax.Array,
    regions: jax.Array,
    *,
    word_weights: jax.Array | None = None,
    region_weights: jax.Array | None = None,
    temperature: float = 0.1,
    normalise_region_context: bool = True,
    padding: bool = True,
    present: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Finds each word by what it attends to among the regions of its image, and the reverse.

    For each pair, words w_l and regions r_p are normalised. The context of a word is the normalised
    c_l = sum_p softmax_p(<w_l, r_p> / t) r_p, and z_ij = <w_i, c_j> / t. The loss of the words is
    1/2 mean_b sum_i weight_i (CE(z_i., i) + CE(z_.i, i)), and that of the regions the same with
    words and regions exchanged, where contexts attend to valid words alone.

    Args:
      words: f[B, L, D], without the begin mark. word_mask: bool[B, L], False: padding.
      regions: f[B, P, D]. Neither has to be normalised.
      word_weights: f[B, L], as they enter the sum; those of padding count as 0. No gradient. None:
        1 / number of valid words.
      region_weights: f[B, P], as they enter the sum. No gradient. None: 1 / P.
      temperature: t, of attention and contrast.
      normalise_region_context: whether the contexts of regions are normalised. The released code
        does so for convolutional encoders, and not for transformers.
      padding: True, as released: padding remains among the candidates of the words, so its features
        and the number of places matter. False: padding changes nothing.
      present: bool[B], the rows that have all inputs; None: all.

    Returns:
      (f32[], f32[]): the loss of the words and that of the regions; 0 if no row is present.

    Raises:
      ValueError: shapes that do not fit.
    """
    require(
        words.ndim == 3 and regions.ndim == 3 and words.shape[::2] == regions.shape[::2],
        f"words [B, L, D] must match regions [B, P, D], got {words.shape}, {regions.shape}",
    )
    size = len(words)
    for name, array, shape in (
        ("word_mask", word_mask, words.shape[:2]),
        ("word_weights", word_weights, words.shape[:2]),
        ("region_weights", region_weights, regions.shape[:2]),
    ):
        require(
            array is None or array.shape == shape,
            f"{name} must be {shape}, got {getattr(array, 'shape', None)}",
        )
    present, valid = check_present(present, size), jnp.asarray(word_mask).astype(bool)
    words, regions = (zero_absent(present, jnp.asarray(x)) for x in (words, regions))
    if present is not None:
        valid &= present[:, None]
    if not padding:
        words = jnp.where(valid[..., None], words, jnp.zeros((), words.dtype))
    words, regions = l2_normalize(words), l2_normalize(regions)
    heat = jnp.float32(temperature)
    scores = jnp.einsum("bld,bpd->blp", words, regions) / heat

    context = l2_normalize(jnp.einsum("blp,bpd->bld", jax.nn.softmax(scores, axis=2), regions))
    candidates = None if padding else valid
    of_words = _cross_entropies(words, context, heat, candidates)

    # A report without a word attends to all places, and nothing of it is counted.
    some = valid.any(axis=1)
    usable = valid | ~some[:, None]
    attention = jax.nn.softmax(jnp.where(usable[..., None], scores, -jnp.inf), axis=1)
    context = jnp.einsum("blp,bld->bpd", attention, words)
    if normalise_region_context:
        context = l2_normalize(context)
    of_regions = _cross_entropies(regions, context, heat, None)

    count = row_count(size, present)
    if word_weights is None:
        shares = 1.0 / jnp.maximum(valid.sum(axis=1, keepdims=True, dtype=jnp.float32), 1.0)
    else:
        shares = jax.lax.stop_gradient(jnp.asarray(word_weights)).astype(jnp.float32)
    word_loss = jnp.sum(jnp.where(valid, shares * of_words, 0.0)) / count
    if region_weights is None:
        shares = jnp.full(regions.shape[:2], 1.0 / regions.shape[1], jnp.float32)
    else:
        shares = jax.lax.stop_gradient(jnp.asarray(region_weights)).astype(jnp.float32)
    region_loss = jnp.sum(jnp.where(some[:, None], shares * of_regions, 0.0)) / count
    return word_loss, region_loss


def _cross_entropies(
    places: jax.Array, contexts: jax.Array, temperature: jax.Array, valid: jax.Array | None
) -> jax.Array:
    """Mean of both cross-entropies of f32[B, L, D] with their contexts, f32[B, L]."""
    logits = jnp.einsum("bid,bjd->bij", places, contexts) / temperature
    right = jnp.diagonal(logits, axis1=1, axis2=2)
    if valid is not None:  # the diagonal remains, so that no line is empty
        among = valid[:, :, None] & valid[:, None, :]
        logits = jnp.where(among | jnp.eye(logits.shape[1], dtype=bool), logits, -jnp.inf)
    both = jax.nn.logsumexp(logits, axis=2) + jax.nn.logsumexp(logits, axis=1)
    return 0.5 * both - right


class TokenAlignment(Objective):
    """The two parts of `token_alignment_loss`, added up, with uniform weights.

    Args:
      temperature: of attention and contrast.
      normalise_region_context: whether the contexts of regions are normalised.
      padding: whether padding remains among the candidates of the words, as in the released code.

    Raises:
      InputError: a temperature that is not above 0.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "words": "text.words",
        "word_mask": "text.word_mask",
        "regions": "image.regions",
    }

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        normalise_region_context: bool = True,
        padding: bool = False,
    ) -> None:
        if not temperature > 0:
            raise InputError(f"TokenAlignment: temperature {temperature}; expected above 0")
        self.temperature, self.padding = temperature, padding
        self.normalises = normalise_region_context

    def __call__(
        self, *, context: Context, words: jax.Array, word_mask: jax.Array, regions: jax.Array
    ) -> Loss:
        """Aligns the words and regions of each pair."""
        of_words, of_regions = token_alignment_loss(
            words,
            word_mask,
            regions,
            temperature=self.temperature,
            normalise_region_context=self.normalises,
            padding=self.padding,
            present=context.present,
        )
        terms = {"loss": of_words + of_regions, "words": of_words, "regions": of_regions}
        size, present = len(words), context.present
        metrics = {name: batch_mean(term, size, present) for name, term in terms.items()}
        return Loss(terms["loss"], metrics)
