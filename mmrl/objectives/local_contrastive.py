"""Local word-region contrast (GLoRIA, Huang et al. 2021, section 3.2; systems.md O2)."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives.base import Objective, batch_mean, require, two_way_cross_entropy
from mmrl.types import Batch, Encoded, Loss

# Captions are scanned in chunks so that at most this many of the B x B x W x R attention
# weights exist at once (2**24 float32 are 64 MiB); the backward pass recomputes each chunk.
_WEIGHTS_AT_ONCE = 2**24

Temperatures = tuple[float, float, float]


def word_region_attention(
    words: jax.Array, word_mask: jax.Array, regions: jax.Array, *, temperature: float = 4.0
) -> jax.Array:
    """How much each word looks at each region of one image.

    Softmax over the valid *words* of regions @ words.T, then over *regions* of `temperature`
    times that (GLoRIA, equations 4-5).

    Args:
      words: f[W, D]. word_mask: bool[W]. regions: f[R, D].

    Returns:
      f32[W, R]; rows sum to 1. Rows of invalid words are uniform and mean nothing.
    """
    scores = jnp.einsum("wd,rd->wr", words.astype(jnp.float32), regions.astype(jnp.float32))
    return _attention(scores, word_mask, temperature)


def _attention(scores: jax.Array, word_mask: jax.Array, temperature: float) -> jax.Array:
    """scores f32[..., W, R], word_mask bool[W] -> attention f32[..., W, R]."""
    # A caption without words would make the first softmax 0/0; its result is discarded later.
    any_word = word_mask.any()
    kept = jnp.where(word_mask[:, None] | ~any_word, scores, -jnp.inf)
    over_words = jax.nn.softmax(kept, axis=-2)
    return jax.nn.softmax(temperature * over_words, axis=-1)


def _one_caption(
    words: jax.Array,
    word_mask: jax.Array,
    regions: jax.Array,
    gram: jax.Array,
    temperatures: Temperatures,
) -> jax.Array:
    """Similarity of one caption with every image, f32[B].

    The context c_w is never formed: cos(c_w, w) needs only c_w . w = sum_r a_wr s_wr and
    |c_w|^2 = a_w G a_w with the Gram matrix G = regions regions^T of the image.

    Args:
      words f32[W, D], word_mask bool[W], regions f32[B, R, D], gram f32[B, R, R].
    """
    scores = jnp.einsum("wd,brd->bwr", words, regions)
    attention = _attention(scores, word_mask, temperatures[0])  # B W R
    dot = jnp.sum(attention * scores, axis=-1)  # B W
    context_square = jnp.einsum("bwr,brs,bws->bw", attention, gram, attention)
    word_square = jnp.sum(words * words, axis=-1)[None]  # 1 W
    # The floor keeps all-zero vectors at cosine 0 with a finite gradient.
    cosine = dot * jax.lax.rsqrt(jnp.maximum(context_square * word_square, 1e-12))
    kept = jnp.where(word_mask, temperatures[1] * cosine, -jnp.inf)
    any_word = word_mask.any()
    pooled = jax.nn.logsumexp(jnp.where(any_word, kept, 0.0), axis=-1)
    return jnp.where(any_word, temperatures[2] * pooled, 0.0)


def local_similarity(
    words: jax.Array,
    word_mask: jax.Array,
    regions: jax.Array,
    *,
    temperatures: Temperatures = (4.0, 5.0, 10.0),
) -> jax.Array:
    """Word-region similarity of every image with every caption.

    For image i and text t: softmax over the valid words of regions @ words.T; softmax over
    regions of temperatures[0] times that; c_w the attention-weighted sum of regions;
    temperatures[2] * logsumexp over valid words of temperatures[1] * cos(c_w, w)
    (GLoRIA, equations 4-7).

    Beyond a size of 64 MiB, captions are processed in chunks, each recomputed in the backward
    pass, so the B x B x W x R attention never exists as a whole.

    Args:
      words: f[B, W, D]. word_mask: bool[B, W]. regions: f[B, R, D]. Not normalised. The image
        and the text batch may differ in size.

    Returns:
      f32[B_image, B_text]. A caption without a valid word has similarity 0 with every image.
    """
    require(
        words.ndim == 3 and regions.ndim == 3 and words.shape[2] == regions.shape[2],
        f"words [B, W, D] and regions [B, R, D] must share D, got {words.shape}, {regions.shape}",
    )
    require(
        word_mask.shape == words.shape[:2],
        f"word_mask must be bool{list(words.shape[:2])}, got {word_mask.shape}",
    )
    words, regions = words.astype(jnp.float32), regions.astype(jnp.float32)
    gram = jnp.einsum("brd,bsd->brs", regions, regions)

    def one_caption(caption: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _one_caption(*caption, regions, gram, temperatures)

    weights_per_caption = regions.shape[0] * regions.shape[1] * words.shape[1]
    chunk = max(1, _WEIGHTS_AT_ONCE // weights_per_caption)
    if chunk >= words.shape[0]:  # all fits at once: nothing to scan, nothing to recompute
        by_caption = jax.vmap(one_caption)((words, word_mask))
    else:
        one_caption = jax.checkpoint(one_caption)
        by_caption = jax.lax.map(one_caption, (words, word_mask), batch_size=chunk)
    return by_caption.T  # B_image B_text


def local_contrastive_loss(
    words: jax.Array,
    word_mask: jax.Array,
    regions: jax.Array,
    *,
    temperatures: Temperatures = (4.0, 5.0, 10.0),
    group: jax.Array | None = None,
) -> jax.Array:
    """Mean of both cross-entropies over `local_similarity` (GLoRIA, equations 8-9).

    Args:
      words, word_mask, regions, temperatures: as in `local_similarity`.
      group: i32[B]; pairs off the diagonal with equal group leave the denominators.

    Returns:
      f32[].
    """
    similarity = local_similarity(words, word_mask, regions, temperatures=temperatures)
    return two_way_cross_entropy(similarity, group)


class LocalContrastive(Objective):
    """`local_contrastive_loss` on the encoders' local features.

    Args:
      temperatures: of the attention, of the pooling over words, and of the final contrast.
    """

    needs: ClassVar[tuple[str, ...]] = ("image.regions", "text.words", "text.word_mask")

    def __init__(self, *, temperatures: Temperatures = (4.0, 5.0, 10.0)) -> None:
        first, second, third = temperatures
        self.temperatures = (float(first), float(second), float(third))

    def __call__(self, encoded: Encoded, batch: Batch) -> Loss:
        """Contrasts words and regions across the global batch."""
        value = local_contrastive_loss(
            encoded["text.words"],
            encoded["text.word_mask"],
            encoded["image.regions"],
            temperatures=self.temperatures,
            group=batch["group"],
        )
        return Loss(value, {"loss": batch_mean(value, encoded["text.words"].shape[0])})
