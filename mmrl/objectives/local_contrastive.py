"""Local word-region contrast (GLoRIA, Huang et al. 2021, section 3.2; systems.md O2)."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmrl.objectives import all_pairs, local_kernel, tiles
from mmrl.objectives.base import (
    Objective,
    batch_mean,
    check_group,
    contract,
    matmul_dtype,
    require,
    two_way_cross_entropy,
)
from mmrl.types import Batch, Encoded, InputError, Loss

# `local_similarity` scans captions in chunks so that at most this many of the B x B x W x R
# attention weights exist at once (2**24 float32 are 64 MiB); the backward pass recomputes them.
_WEIGHTS_AT_ONCE = 2**24

# Short captions are cut to multiples of this many words.
_WORD_BLOCK = 8

TILES = ("xla", "kernel")

Temperatures = tuple[float, float, float]


def _prepare(regions: jax.Array, *, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Regions f32[b, R, D] and their Gram matrices f32[b, R, R] where those save work.

    The context c_w = C^T a of a word, the sum of the regions C weighted by its attention a, is
    needed only for cos(c_w, w), which c_w . w = sum_r a_r s_r and |c_w|^2 = a^T C C^T a give as
    well. Counting backward passes too, that multiplies 3 R^2 W + 4 R W D numbers per pair instead
    of 8 R W D, and never holds b x c x W x D.
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
    """Similarity f32[b, c] of b prepared images with c captions.

    Args:
      images: from `_prepare`. words: f32[c, W, D]. word_mask: bool[c, W].
    """
    regions, gram = images
    first, second, third = temperatures
    # With the image's axes in front and the word's last, no product needs a transposed copy.
    scores = contract("brd,cwd->brcw", regions, words, dtype)
    any_word = word_mask.any(axis=1)  # c
    # A caption without words would make the first softmax 0/0; its result is discarded below.
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
    # The floor keeps all-zero vectors at cosine 0 with a finite gradient.
    cosine = dot * jax.lax.rsqrt(jnp.maximum(context_square * word_square, 1e-12))
    pooled = jax.nn.logsumexp(jnp.where(usable, second * cosine, -jnp.inf), axis=2)
    return jnp.where(any_word, third * pooled, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _quadratic(gram: jax.Array, attention: jax.Array, dtype: Any) -> jax.Array:
    """a^T G a of each word, f32[b, c, W]; its gradient uses that G is symmetric.

    Args:
      gram: f32[b, R, R]. attention: f32[b, R, c, W].
    """
    return _quadratic_forward(gram, attention, dtype)[0]


def _quadratic_forward(gram: jax.Array, attention: jax.Array, dtype: Any) -> tuple[jax.Array, Any]:
    product = contract("brs,bscw->brcw", gram, attention, dtype)
    return jnp.sum(attention * product, axis=1), (attention, product)


def _quadratic_backward(dtype: Any, saved: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    attention, product = saved
    by_gram = contract("brcw,bscw->brs", slope[:, None] * attention, attention, dtype)
    return by_gram, 2.0 * slope[:, None] * product


_quadratic.defvjp(_quadratic_forward, _quadratic_backward)


def _widths(words: int) -> tuple[int, ...]:
    """Quarters of the word axis in whole _WORD_BLOCKs: what tiles of short captions are cut to."""
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

    Beyond a size of 64 MiB, captions are processed in chunks, each recomputed in the backward
    pass, so the B x B x W x R attention never exists as a whole.

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
    if chunk >= words.shape[0]:  # all fits at once: nothing to scan, nothing to recompute
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
    implementation: str = "auto",
    chunk_size: int = 0,
    tile: str = "xla",
) -> jax.Array:
    """Mean of both cross-entropies over `local_similarity` (GLoRIA, equations 8-9).

    Args:
      words, word_mask, regions, temperatures: as in `local_similarity`, for B pairs.
      group: i32[B]; pairs off the diagonal with equal group leave the denominators.
      implementation: "dense" holds all B x B x W x R weights; "chunked" a tile of them, computed
        again in the backward pass; "ring" the same on every device that shares the batch, with
        the words passed round; "auto" as `pairs.choose` says. All give the same numbers.
      chunk_size: images and captions of a tile, at most; 0: about 16 MiB per array of weights.
      tile: "kernel" computes tiles with `local_kernel`, on TPU (and, slowly, interpreted on CPU);
        the batch is then always in tiles.

    Returns:
      f32[].

    Raises:
      InputError: `tile` unknown, or a kernel asked to do what it cannot.
    """
    check_tile(tile, implementation, temperatures)
    _check(words, word_mask, regions)
    words, word_mask, regions = map(jnp.asarray, (words, word_mask, regions))
    size, count, length = words.shape[0], regions.shape[1], words.shape[1]
    require(regions.shape[0] == size, f"{size} captions must have as many images")
    group = check_group(group, size)
    dtype = matmul_dtype(words, regions)
    compute: Any = functools.partial(_tile, temperatures=temperatures, dtype=dtype)
    prepare: Any = functools.partial(_prepare, dtype=dtype)
    if tile == "kernel":
        compute = functools.partial(
            local_kernel.similarity, regions=count, temperatures=temperatures, dtype=dtype
        )
        prepare = functools.partial(local_kernel.prepare, dtype=dtype)
    form, shares = all_pairs.choose(implementation, size, count * length, regions)
    if form == "dense" and tile == "xla":
        images = prepare(regions.astype(jnp.float32))
        similarity = compute((), images, words.astype(jnp.float32), word_mask)
        return two_way_cross_entropy(similarity, group)
    share = size // shares.size
    if tile == "kernel":
        _check_alone(shares, regions)
        shape = local_kernel.tile_shape(share, length, words.shape[2], chunk_size)
    else:
        shape = tiles.tile_shape(share, share, count * length, chunk_size)
    table = tiles.Table(compute, tiles.TwoWay(), shape, prepare, _widths(length))
    return all_pairs.pair_loss(
        table, (), regions, words, group=group, mask=word_mask, shares=shares
    )


def check_tile(tile: str, implementation: str, temperatures: Temperatures) -> None:
    """Refuses ways to compute a tile that do not exist, or not for such a loss.

    Raises:
      InputError: see above.
    """
    if tile not in TILES:
        raise InputError(f"unknown tile {tile!r} of a loss; choices: {', '.join(TILES)}")
    if tile == "kernel" and implementation == "dense":
        raise InputError(
            "tile='kernel' computes tiles; implementation='dense' has none: "
            "choose auto, chunked or ring"
        )
    if tile == "kernel" and abs(temperatures[0]) > local_kernel.MAX_TEMPERATURE:
        raise InputError(
            f"tile='kernel' takes temperatures[0] up to {local_kernel.MAX_TEMPERATURE:g}, "
            f"got {temperatures[0]:g}: choose tile='xla'"
        )


def _check_alone(shares: all_pairs.Shares, example: jax.Array) -> None:
    """XLA cannot split a kernel: only the ring brings one to every device of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        mesh = jax.typeof(example).sharding.mesh
    if shares.size == 1 and not mesh.empty and mesh.size > 1:
        raise InputError(
            f"tile='kernel' on {mesh.size} devices needs implementation='ring', and a batch that "
            f"they can share evenly (got {example.shape[0]} pairs)"
        )


class LocalContrastive(Objective):
    """`local_contrastive_loss` on the encoders' local features.

    Args:
      temperatures: inverse temperatures of the attention over regions, of the pooling over words,
        and of the final contrast.
      implementation: how the loss over all pairs is computed, with equal results: dense, chunked,
        ring, or auto, which chooses by the size of the batch; see `local_contrastive_loss`.
      chunk_size: images and captions of a tile, at most; 0: about 16 MiB per array of weights.
      tile: how a tile is computed: xla, or kernel (on TPU, see `local_kernel`).

    Raises:
      InputError: unknown implementation or tile, or negative chunk size.
    """

    needs: ClassVar[tuple[str, ...]] = ("image.regions", "text.words", "text.word_mask")

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

    def __call__(self, encoded: Encoded, batch: Batch) -> Loss:
        """Contrasts words and regions across the global batch."""
        value = local_contrastive_loss(
            encoded["text.words"],
            encoded["text.word_mask"],
            encoded["image.regions"],
            temperatures=self.temperatures,
            group=batch["group"],
            implementation=self.implementation,
            chunk_size=self.chunk_size,
            tile=self.tile,
        )
        return Loss(value, {"loss": batch_mean(value, encoded["text.words"].shape[0])})
