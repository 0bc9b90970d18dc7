"""Local word-region contrastive loss (GLoRIA, Huang et al. 2021, section 3.2)."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives import all_pairs, local_kernel, tiles
from mmrl.objectives.base import (
    Context,
    Objective,
    batch_mean,
    check_group,
    check_present,
    require,
    two_way_cross_entropy,
    zero_absent,
)
from mmrl.types import InputError, Loss
from mmrl.vectors import contract, matmul_dtype

# `local_similarity` holds at most this many of the B x B x W x R attention weights at a time (2**24
# float32 are 64 MiB). Beyond that it loops over captions and recomputes in the backward pass.
_WEIGHTS_AT_ONCE = 2**24

# Tiles are cut to a multiple of this many words.
_WORD_BLOCK = 8

TILES = ("xla", "kernel")

Temperatures = tuple[float, float, float]


def _prepare(regions: jax.Array, *, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Regions f32[b, R, D] and their Gram matrices f32[b, R, R]; None if those save no work.

    Let C be the regions, a the attention of a word w over them, and s = C w its scores. The
    context vector c = C^T a is needed only for cos(c, w), and both parts of the cosine follow
    without it: c . w = a . s and |c|^2 = a^T (C C^T) a. Forward and backward pass together then
    take 3 R^2 W + 4 R W D multiplications per pair instead of 8 R W D, and the contexts, an array
    of b x c x W x D, are never held.
    """
    count, width = regions.shape[1:]
    if 3 * count > 4 * width:
        return regions, None
    return regions, contract("brd,bsd->brs", regions, regions, dtype)


def _tile(
    params: tuple[()],
    images: tuple[jax.Array, jax.Array | None],
    words: jax.Array,
    word_mask: jax.Array,
    *,
    temperatures: Temperatures,
    dtype: Any,
) -> jax.Array:
    """Similarity of b images with c captions, f32[b, c].

    Args:
      params: none; the argument is that of `tiles.TiledLoss.logits`.
      images: from `_prepare`. words: f32[c, W, D]. word_mask: bool[c, W].
    """
    regions, gram = images
    first, second, third = temperatures
    # In this order of axes (image, region, caption, word), no product needs a transposed copy.
    scores = contract("brd,cwd->brcw", regions, words, dtype)
    any_word = word_mask.any(axis=1)  # c
    # Without a valid word, the first softmax would be 0/0. All words of such a caption count as
    # valid here, and its similarity is set to 0 at the end.
    usable = word_mask | ~any_word[:, None]
    over_words = jax.nn.softmax(jnp.where(usable, scores, -jnp.inf), axis=3)
    attention = jax.nn.softmax(first * over_words, axis=1)  # over regions
    dot = jnp.sum(attention * scores, axis=1)  # b c w
    if gram is None:
        context = contract("brd,brcw->bdcw", regions, attention, dtype)
        context_square = jnp.sum(context * context, axis=1)
    else:
        context_square = _quadratic(gram, attention, dtype)
    word_square = jnp.sum(words * words, axis=2)  # c w
    # The lower bound gives all-zero vectors a cosine of 0 and a finite gradient.
    cosine = dot * jax.lax.rsqrt(jnp.maximum(context_square * word_square, 1e-12))
    pooled = jax.nn.logsumexp(jnp.where(usable, second * cosine, -jnp.inf), axis=2)
    return jnp.where(any_word, third * pooled, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _quadratic(gram: jax.Array, attention: jax.Array, dtype: Any) -> jax.Array:
    """a^T G a for each word, f32[b, c, W]. The gradient uses that G is symmetric.

    Args:
      gram: f32[b, R, R]. attention: f32[b, R, c, W].
    """
    return _quadratic_forward(gram, attention, dtype)[0]


def _quadratic_forward(gram: jax.Array, attention: jax.Array, dtype: Any) -> tuple[jax.Array, Any]:
    product = contract("brs,bscw->brcw", gram, attention, dtype)
    return jnp.sum(attention * product, axis=1), (attention, product)


def _quadratic_backward(
    dtype: Any, saved: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    attention, product = saved
    of_gram = contract("brcw,bscw->brs", cotangent[:, None] * attention, attention, dtype)
    return of_gram, 2.0 * cotangent[:, None] * product


_quadratic.defvjp(_quadratic_forward, _quadratic_backward)


def _widths(words: int) -> tuple[int, ...]:
    """Numbers of words to which tiles of short captions are cut.

    A quarter, half, three quarters and all of W, rounded up to multiples of _WORD_BLOCK.
    """
    quarters = (-(-words * part // (4 * _WORD_BLOCK)) * _WORD_BLOCK for part in (1, 2, 3, 4))
    return tuple(sorted({min(words, width) for width in quarters}))


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

    If the B x B x W x R attention weights exceed 64 MiB, captions are processed in chunks that
    are recomputed in the backward pass.

    Args:
      words: f[B, W, D]. word_mask: bool[B, W]. regions: f[B, R, D]. Not normalised. The image
        and the text batch may differ in size.

    Returns:
      f32[B_image, B_text]. A caption without a valid word has similarity 0 with every image.
    """
    _check(words, word_mask, regions)
    dtype = matmul_dtype(words, regions)
    words, regions = words.astype(jnp.float32), regions.astype(jnp.float32)
    images = _prepare(regions, dtype=dtype)
    tile = functools.partial(_tile, (), images, temperatures=temperatures, dtype=dtype)
    weights_per_caption = regions.shape[0] * regions.shape[1] * words.shape[1]
    chunk = max(1, _WEIGHTS_AT_ONCE // weights_per_caption)
    if chunk >= words.shape[0]:
        return tile(words, word_mask)

    @jax.checkpoint
    def one_caption(caption: tuple[jax.Array, jax.Array]) -> jax.Array:
        return tile(caption[0][None], caption[1][None])[:, 0]

    return jax.lax.map(one_caption, (words, word_mask), batch_size=chunk).T  # B_image B_text


def _check(words: jax.Array, word_mask: jax.Array, regions: jax.Array) -> None:
    require(
        words.ndim == 3 and regions.ndim == 3 and words.shape[2] == regions.shape[2],
        f"words [B, W, D] and regions [B, R, D] must share D, got {words.shape}, {regions.shape}",
    )
    require(
        word_mask.shape == words.shape[:2],
        f"word_mask must be bool{list(words.shape[:2])}, got {word_mask.shape}",
    )


def local_contrastive_loss(
    words: jax.Array,
    word_mask: jax.Array,
    regions: jax.Array,
    *,
    temperatures: Temperatures = (4.0, 5.0, 10.0),
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    implementation: str = "auto",
    chunk_size: int = 0,
    tile: str = "xla",
) -> jax.Array:
    """Mean of both cross-entropies over `local_similarity` (GLoRIA, equations 8-9).

    Args:
      words, word_mask, regions, temperatures: as in `local_similarity`, for B pairs.
      group: i32[B], duplicate groups. Pairs off the diagonal with equal group are left out of the
        denominators.
      present: bool[B], the pairs that have both inputs; None: all. The loss is that of a batch
        without the other pairs, and 0 if no pair is left.
      implementation: all give the same result. "dense" holds all B x B x W x R attention weights.
        "chunked" holds one tile of them at a time and computes it again in the backward pass.
        "ring" does so on every device that shares the batch, and the words move from device to
        device. "auto" is described in `all_pairs.choose`.
      chunk_size: maximum number of images and of captions in a tile; 0 means about 16 MiB of
        attention weights.
      tile: "xla", or "kernel" to compute tiles with the TPU kernel of `local_kernel` (interpreted
        on CPU, which is slow). "kernel" always computes the batch in tiles.

    Returns:
      f32[].

    Raises:
      InputError: unknown `tile`, or a combination of options that the kernel does not support.
    """
    check_tile(tile, implementation, temperatures)
    _check(words, word_mask, regions)
    words, word_mask, regions = map(jnp.asarray, (words, word_mask, regions))
    size, count, length = words.shape[0], regions.shape[1], words.shape[1]
    require(regions.shape[0] == size, f"{size} captions must have as many images")
    group, present = check_group(group, size), check_present(present, size)
    words, regions = zero_absent(present, words), zero_absent(present, regions)
    dtype = matmul_dtype(words, regions)
    compute: Any = functools.partial(_tile, temperatures=temperatures, dtype=dtype)
    prepare: Any = functools.partial(_prepare, dtype=dtype)
    if tile == "kernel":
        compute = functools.partial(
            local_kernel.similarity, regions=count, temperatures=temperatures, dtype=dtype
        )
        prepare = functools.partial(local_kernel.prepare, dtype=dtype)
    form, ring = all_pairs.choose(implementation, size, count * length, regions)
    if form == "dense" and tile == "xla":
        images = prepare(regions.astype(jnp.float32))
        similarity = compute((), images, words.astype(jnp.float32), word_mask)
        return two_way_cross_entropy(similarity, group, present)
    local_size = size // ring.size
    if tile == "kernel":
        _check_kernel_devices(ring, regions)
        shape = local_kernel.tile_shape(local_size, length, words.shape[2], chunk_size)
    else:
        shape = tiles.tile_shape(local_size, local_size, count * length, chunk_size)
    tiled = tiles.TiledLoss(compute, tiles.TwoWayCrossEntropy(), shape, prepare, _widths(length))
    return all_pairs.pair_loss(
        tiled, (), regions, words, group=group, present=present, mask=word_mask, ring=ring
    )


def check_tile(tile: str, implementation: str, temperatures: Temperatures) -> None:
    """Checks the `tile` option against the other options of the loss.

    Raises:
      InputError: unknown `tile`, or options that the kernel does not support.
    """
    if tile not in TILES:
        raise InputError(f"unknown tile {tile!r} of a loss; choices: {', '.join(TILES)}")
    if tile == "kernel" and implementation == "dense":
        raise InputError(
            "tile='kernel' needs an implementation that computes tiles, which 'dense' does not; "
            "choose auto, chunked or ring"
        )
    if tile == "kernel" and abs(temperatures[0]) > local_kernel.MAX_TEMPERATURE:
        raise InputError(
            f"tile='kernel' supports temperatures[0] up to {local_kernel.MAX_TEMPERATURE:g}, "
            f"got {temperatures[0]:g}; choose tile='xla'"
        )


def _check_kernel_devices(ring: all_pairs.Ring, example: jax.Array) -> None:
    """XLA cannot partition a kernel, so on several devices the kernel needs the ring."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        mesh = jax.typeof(example).sharding.mesh
    if ring.size == 1 and not mesh.empty and mesh.size > 1:
        raise InputError(
            f"tile='kernel' on {mesh.size} devices needs implementation='ring' and a batch that "
            f"they can share evenly (got {example.shape[0]} pairs)"
        )


class LocalContrastive(Objective):
    """`local_contrastive_loss` on the encoders' local features.

    Args:
      temperatures: inverse temperatures of the attention over regions, of the pooling over words,
        and of the final similarity.
      implementation: how the loss over all pairs is computed, with equal results: dense, chunked,
        ring, or auto, which chooses by the size of the batch; see `local_contrastive_loss`.
      chunk_size: maximum number of images and of captions in a tile; 0 means about 16 MiB of
        attention weights.
      tile: how a tile is computed: xla, or kernel (on TPU, see `local_kernel`).

    Raises:
      InputError: unknown implementation or tile, or negative chunk size.
    """

    reads: ClassVar[Mapping[str, str]] = {
        "words": "text.words",
        "word_mask": "text.word_mask",
        "regions": "image.regions",
    }
    batch: ClassVar[Mapping[str, str]] = {"group": "group"}

    def __init__(
        self,
        *,
        temperatures: Temperatures = (4.0, 5.0, 10.0),
        implementation: str = "auto",
        chunk_size: int = 0,
        tile: str = "xla",
    ) -> None:
        all_pairs.check_implementation(implementation, chunk_size)
        check_tile(tile, implementation, temperatures)
        self.implementation, self.chunk_size, self.tile = implementation, chunk_size, tile
        first, second, third = temperatures
        self.temperatures = (float(first), float(second), float(third))

    def __call__(
        self,
        *,
        context: Context,
        words: jax.Array,
        word_mask: jax.Array,
        regions: jax.Array,
        group: jax.Array,
    ) -> Loss:
        """Contrasts words and regions across the global batch."""
        value = local_contrastive_loss(
            words,
            word_mask,
            regions,
            temperatures=self.temperatures,
            group=group,
            present=context.present,
            implementation=self.implementation,
            chunk_size=self.chunk_size,
            tile=self.tile,
        )
        return Loss(value, {"loss": batch_mean(value, words.shape[0], context.present)})
