"""Word-region similarities of a tile of pairs as one fused TPU kernel, forward and backward.

Attention weights exist in on-chip memory only: a program of the kernel takes one image and a block
of captions, and returns one number per pair. The backward kernel computes the weights again (Dao
et al. 2022, "FlashAttention", section 3.1). Unlike FlashAttention it needs no running maximum: a
program has all words and regions of its pairs, and the logits of the second softmax lie in
[0, temperature].

The kernel is off unless a config sets tile="kernel", because it has never run on a TPU. These
figures are the compiler's (libtpu 0.0.42 for v5e, bfloat16, R = 196, B = 1024 on one device, value
and gradients):

| W, D | cycles, XLA | cycles, kernel | temporaries, XLA | temporaries, kernel |
|---|---|---|---|---|
| 64, 256 | 4.98e9 | 1.17e9 | 325 MiB | 384 MiB |
| 128, 768 | 8.17e9 | 3.83e9 | 2,054 MiB | 2,041 MiB |

Temporaries come from `benchmarks.local_loss`, with the command in its docstring. Cycles are counted
in two ways:

  XLA: `estimated_cycles` in the compiled text times loop iterations, for captions of W words.
  Kernel: instruction bundles of its schedule times the number of programs, plus XLA's operations
    around it. libtpu writes the schedule with
    LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true". For 8 pairs, the forward
    program has 1,827 bundles in the first row and 5,449 in the second, the backward program 4,496
    and 13,290. The forward kernel runs twice.

The two counts are not fully comparable, and neither includes memory stalls or the start of a
program. 4.3 and 2.1 times fewer cycles make a gain likely, but neither the time nor the numerical
result has been measured on a TPU.

There is no GPU version. GPU programs run in no fixed order, and the gradients of words and regions,
which accumulate over consecutive programs here, exceed the registers of a multiprocessor.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmrl.types import InputError
from mmrl.vectors import contract

# A TPU vector register has 128 lanes: regions and channels are zero-padded to a multiple of it.
_LANES = 128
# It has 16 sublanes for bfloat16 and 8 for float32: words are padded to a multiple of the former,
# captions to a multiple of the latter.
_WORDS, _CAPTIONS = 16, 8

# Approximate number of words in a block of captions; enough to keep the matrix unit busy.
_BLOCK_WORDS = 512

# The gradient of a tile's words stays in on-chip memory and has at most this many float32 elements,
# unless _CAPTIONS captions alone have more.
_MAX_WORD_ELEMENTS = 2**22
# Images in a tile; their gradients are in device memory.
_IMAGES = 32

# Limit of on-chip memory in bytes. It is above the compiler's default; v5e, v5p and v6e have it.
_VMEM_LIMIT_BYTES = 64 * 2**20

# The second softmax subtracts no maximum; larger temperatures could overflow its sum over regions.
MAX_TEMPERATURE = 40.0

_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class _Setting:
    """Static parameters of a kernel.

    Attributes:
      temperatures: as in `local_contrastive.local_similarity`.
      dtype: of the matrix products.
      regions: R, before padding.
      words: W, after padding.
      block: captions per program.
    """

    temperatures: tuple[float, float, float]
    dtype: Any
    regions: int
    words: int
    block: int


def tile_shape(size: int, words: int, width: int, chunk_size: int) -> tuple[int, int]:
    """Images and captions of a tile.

    Args:
      size: number of images, and of captions, on one device.
      words, width: W and D.
      chunk_size: maximum of both numbers; 0 derives them from the memory.
    """
    per_caption = _round_up(words, _WORDS) * _round_up(width, _LANES)
    captions = max(1, _MAX_WORD_ELEMENTS // (per_caption * _CAPTIONS)) * _CAPTIONS
    return _even_chunk(size, chunk_size or _IMAGES), _even_chunk(
        size, min(captions, chunk_size or captions)
    )


def prepare(regions: jax.Array, *, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Regions f32[b, R, D] and their Gram matrices f32[b, R, R], both padded to whole lanes."""
    images, count, width = regions.shape
    regions = _pad(regions, (images, _round_up(count, _LANES), _round_up(width, _LANES)))
    return regions, contract("brd,bsd->brs", regions, regions, dtype)


def similarity(
    params: tuple[()],
    images: tuple[jax.Array, jax.Array],
    words: jax.Array,
    word_mask: jax.Array,
    *,
    regions: int,
    temperatures: tuple[float, float, float],
    dtype: Any,
) -> jax.Array:
    """Similarity of b images with c captions, f32[b, c], as `local_contrastive._tile`.

    Args:
      params: none; the argument is that of `tiles.TiledLoss.logits`.
      images: from `prepare`.
      words: f32[c, W, D]. word_mask: bool[c, W].
      regions: R, before padding.

    Raises:
      InputError: on a GPU.
    """
    if (backend := jax.default_backend()) not in ("cpu", "tpu"):
        raise InputError(f"tile='kernel' needs a TPU, got {backend}; choose tile='xla'")
    captions, length = word_mask.shape
    padded_words = _round_up(length, _WORDS)
    block = _even_chunk(captions, _round_up(_BLOCK_WORDS // padded_words, _CAPTIONS))
    block = _round_up(block, _CAPTIONS)
    padded_captions, width = _round_up(captions, block), images[0].shape[2]
    result = _pairs(
        _Setting(temperatures, dtype, regions, padded_words, block),
        *images,
        _pad(words, (padded_captions, padded_words, width)).reshape(-1, width),
        _pad(word_mask.astype(jnp.float32), (padded_captions, padded_words)),
    )
    return result[:, :captions]


def _round_up(size: int, multiple: int) -> int:
    """The smallest positive multiple that is at least `size`."""
    return max(1, -(-size // multiple)) * multiple


def _even_chunk(size: int, most: int) -> int:
    """Length of equal chunks, as many as chunks of length `most` would be."""
    return -(-size // -(-size // most))


def _pad(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Pads each axis with zeros at its end."""
    return jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, shape, strict=True)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pairs(
    setting: _Setting, regions: jax.Array, gram: jax.Array, words: jax.Array, mask: jax.Array
) -> jax.Array:
    """Similarities f32[b, c] from padded arrays.

    Args:
      regions: f32[b, R, D]. gram: f32[b, R, R]. words: f32[c * W, D]. mask: f32[c, W].
    """
    return _pairs_forward(setting, regions, gram, words, mask)[0]


def _pairs_forward(
    setting: _Setting, regions: jax.Array, gram: jax.Array, words: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Any]:
    inputs = (*(x.astype(setting.dtype) for x in (regions, gram, words)), mask)
    images, captions = regions.shape[0], mask.shape[0]
    result = _call(
        functools.partial(_forward_kernel, setting),
        setting,
        inputs,
        outputs=[jax.ShapeDtypeStruct((images, captions, 1), jnp.float32)],
        specs=[_per_pair(setting)],
    )[0]
    return result[..., 0], inputs


def _pairs_backward(setting: _Setting, inputs: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    regions, gram, words, _ = inputs
    outputs = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (regions, gram, words)]
    whole = pl.BlockSpec(words.shape, lambda i, j: (0, 0))
    gradients = _call(
        functools.partial(_backward_kernel, setting),
        setting,
        (*inputs, cotangent[..., None]),
        outputs=outputs,
        specs=[_per_image(regions), _per_image(gram), whole],
    )
    return *gradients, None


_pairs.defvjp(_pairs_forward, _pairs_backward)


def _per_image(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, *x.shape[1:]), lambda i, j: (i, 0, 0))


def _per_pair(setting: _Setting) -> pl.BlockSpec:
    return pl.BlockSpec((1, setting.block, 1), lambda i, j: (i, j, 0))


def _call(
    kernel: Any, setting: _Setting, inputs: tuple[jax.Array, ...], *, outputs: Any, specs: Any
) -> list[jax.Array]:
    """Runs one program per image and block of captions; the blocks are the inner loop."""
    regions, gram, words, mask = inputs[:4]
    block = setting.block
    in_specs = [
        _per_image(regions),
        _per_image(gram),
        pl.BlockSpec((block * setting.words, words.shape[1]), lambda i, j: (j, 0)),
        pl.BlockSpec((block, setting.words), lambda i, j: (j, 0)),
        _per_pair(setting),
    ][: len(inputs)]

    def call(*inputs: jax.Array, interpret: bool) -> list[jax.Array]:
        return pl.pallas_call(
            kernel,
            grid=(regions.shape[0], mask.shape[0] // block),
            in_specs=in_specs,
            out_specs=specs,
            out_shape=outputs,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary", "arbitrary"),
                vmem_limit_bytes=_VMEM_LIMIT_BYTES,
            ),
            interpret=interpret,
        )(*inputs)

    # Decided at lowering, because the program may be compiled for a TPU on a host without one.
    return jax.lax.platform_dependent(
        *inputs,
        tpu=functools.partial(call, interpret=False),
        cpu=functools.partial(call, interpret=True),
    )


class _Attended(NamedTuple):
    """Intermediate values for n = c * W words and R regions.

    Shapes are [n, R] up to `attention` and for `product`, and [n, 1] otherwise, unless noted.
    """

    usable: jax.Array  # [c, W, 1]
    scores: jax.Array
    over_words: jax.Array
    attention: jax.Array
    dot: jax.Array
    product: jax.Array  # attention @ gram
    context_square: jax.Array
    word_square: jax.Array
    scale: jax.Array  # 1 / (|context| |word|)
    pooled: jax.Array  # [c, 1, 1], the logsumexp


def _attend(
    setting: _Setting, regions: jax.Array, gram: jax.Array, words: jax.Array, mask: jax.Array
) -> _Attended:
    """The computation of `local_contrastive._tile` for one image, up to the log-sum-exp."""
    first, second, _ = setting.temperatures
    usable = mask[:, :, None]  # from the lanes of a register to its sublanes
    scores = _matmul(words, regions, 1, 1)
    masked = jnp.where(usable > 0, _by_caption(setting, scores), _MASKED)
    exp = jnp.exp(masked - jnp.max(masked, axis=1, keepdims=True))
    over_words = exp * (1.0 / jnp.sum(exp, axis=1, keepdims=True))
    over_words = over_words.reshape(scores.shape)
    exp = jnp.exp(first * over_words)
    if setting.regions < scores.shape[1]:
        region = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        exp = jnp.where(region < setting.regions, exp, 0.0)
    attention = exp * (1.0 / jnp.sum(exp, axis=1, keepdims=True))
    dot = jnp.sum(attention * scores, axis=1, keepdims=True)
    product = _matmul(attention.astype(gram.dtype), gram, 1, 0)
    context_square = jnp.sum(attention * product, axis=1, keepdims=True)
    words_f32 = words.astype(jnp.float32)
    word_square = jnp.sum(words_f32 * words_f32, axis=1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(context_square * word_square, 1e-12))
    logits = jnp.where(usable > 0, second * _by_caption(setting, dot * scale), _MASKED)
    maximum = jnp.max(logits, axis=1, keepdims=True)
    pooled = maximum + jnp.log(jnp.sum(jnp.exp(logits - maximum), axis=1, keepdims=True))
    return _Attended(
        usable,
        scores,
        over_words,
        attention,
        dot,
        product,
        context_square,
        word_square,
        scale,
        pooled,
    )


def _forward_kernel(
    setting: _Setting, regions: Any, gram: Any, words: Any, mask: Any, result: Any
) -> None:
    attended = _attend(setting, regions[0], gram[0], words[...], mask[...])
    any_word = jnp.max(attended.usable, axis=1, keepdims=True) > 0
    value = jnp.where(any_word, setting.temperatures[2] * attended.pooled, 0.0)
    result[0] = value[:, 0]


def _backward_kernel(
    setting: _Setting,
    regions: Any,
    gram: Any,
    words: Any,
    mask: Any,
    cotangent: Any,
    d_regions: Any,
    d_gram: Any,
    d_words: Any,
) -> None:
    # d_x is the gradient of the result with respect to x.
    image, block = pl.program_id(0), pl.program_id(1)
    first, second, third = setting.temperatures
    dtype = setting.dtype
    attended = _attend(setting, regions[0], gram[0], words[...], mask[...])
    attention, dot, scale = attended.attention, attended.dot, attended.scale
    context_square, word_square = attended.context_square, attended.word_square

    # Log-sum-exp over words: its gradient is a softmax, 0 for captions without words.
    cosine = _by_caption(setting, dot * scale)
    softmax = jnp.where(attended.usable > 0, jnp.exp(second * cosine - attended.pooled), 0.0)
    d_cosine = (softmax * (third * second * cotangent[0][:, :, None])).reshape(dot.shape)

    # Cosine.
    d_dot = d_cosine * scale
    positive = context_square * word_square > 1e-12
    d_squares = jnp.where(positive, -0.5 * d_dot * dot * scale * scale, 0.0)
    d_context_square = d_squares * word_square
    d_attention = d_dot * attended.scores + 2.0 * d_context_square * attended.product

    # Softmax over regions; `mean` is the sum over regions of attention * d_attention.
    mean = d_dot * dot + 2.0 * d_context_square * context_square
    d_over_words = _by_caption(setting, first * attention * (d_attention - mean))

    # Softmax over words.
    over_words = _by_caption(setting, attended.over_words)
    d_masked = over_words * (
        d_over_words - jnp.sum(over_words * d_over_words, axis=1, keepdims=True)
    )
    d_scores = (d_dot * attention + d_masked.reshape(attention.shape)).astype(dtype)

    rows = pl.ds(block * words.shape[0], words.shape[0])
    of_words = _matmul(d_scores, regions[0], 1, 0)
    of_words += 2.0 * d_squares * context_square * words[...].astype(jnp.float32)
    of_regions = _matmul(d_scores, words[...], 0, 0)
    of_gram = _matmul((d_context_square * attention).astype(dtype), attention.astype(dtype), 0, 0)
    _accumulate(d_words.at[rows], of_words, image == 0)
    _accumulate(d_regions.at[0], of_regions, block == 0)
    _accumulate(d_gram.at[0], of_gram, block == 0)


def _accumulate(total: Any, value: jax.Array, first: jax.Array) -> None:
    """Adds to `total`, or writes it in the first program that does."""

    @pl.when(first)
    def _() -> None:
        total[...] = value

    @pl.when(~first)
    def _() -> None:
        total[...] += value


def _matmul(one: jax.Array, two: jax.Array, one_axis: int, two_axis: int) -> jax.Array:
    """Matrix product over one axis of each argument, accumulated in float32."""
    numbers = (((one_axis,), (two_axis,)), ((), ()))
    return jax.lax.dot_general(one, two, numbers, preferred_element_type=jnp.float32)


def _by_caption(setting: _Setting, x: jax.Array) -> jax.Array:
    """[c * W, n] -> [c, W, n]."""
    return x.reshape(setting.block, setting.words, x.shape[1])
