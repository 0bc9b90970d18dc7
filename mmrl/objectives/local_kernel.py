"""Word-region similarities of a tile of pairs as one fused TPU kernel, forward and backward.

The attention weights of a pair live in on-chip memory only: a program takes one image and a block
of captions, and what leaves it is one number per pair. The backward kernel computes the weights
again (Dao et al. 2022, "FlashAttention", section 3.1), but unlike there no running maximum is
needed: all words and all regions of a pair are at hand, and what the second softmax acts on lies
in [0, temperature].

Off unless a config says tile="kernel", because it never ran on a TPU. Known is what the compiler
says (libtpu 0.0.42 for v5e, bfloat16, R = 196, B = 1024 on one device, value and gradients):

| W, D | cycles, XLA | cycles, kernel | temporaries, XLA | temporaries, kernel |
|---|---|---|---|---|
| 64, 256 | 4.98e9 | 1.17e9 | 325 MiB | 384 MiB |
| 128, 768 | 8.17e9 | 3.83e9 | 2,054 MiB | 2,041 MiB |

Temporaries are from `benchmarks.local_loss` (command there). Cycles of XLA's operations are the
`estimated_cycles` in the compiled text, times the turns of the loops, for captions of W words.
Those of the kernel are the instruction bundles of its schedule, which libtpu writes down with
LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true", times its programs (forward
1,827 and backward 4,496 for 8 pairs of the first line, 5,449 and 13,290 of the second; the forward
kernel runs twice), plus XLA's around it. The two yardsticks are not the same, and neither counts
waiting for memory or starting a program. So 4.3 and 2.1 times fewer cycles make a gain likely;
times, and the numbers that a real matrix unit gives, are open.

There is no GPU form: programs there run in no order, and the gradients of words and of regions,
which add up from program to program here, exceed the registers of a multiprocessor.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmrl.objectives.base import contract
from mmrl.types import InputError

# Lanes of a TPU vector register: regions and channels are filled up with zeros to multiples.
_LANES = 128
# Words are filled up to the sublanes of a register of bfloat16, captions to those of float32.
_WORDS, _CAPTIONS = 16, 8

# Words of a block of captions, about: enough to keep the matrix unit busy between blocks.
_ROWS = 512

# A tile's gradient of the words stays in on-chip memory: at most this many float32 numbers, unless
# _CAPTIONS captions alone have more. Its gradients of images lie in device memory, for so many.
_RESIDENT = 2**22
_IMAGES = 32

# Of on-chip memory, at most: more than the compiler grants by default; v5e, v5p and v6e have it.
_MEMORY = 64 * 2**20

# exp of more than this, summed over regions, is not safe from overflow without a maximum.
MAX_TEMPERATURE = 40.0

_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What a kernel is compiled for: `regions` before padding, `words` after, `block` captions."""

    temperatures: tuple[float, float, float]
    dtype: Any
    regions: int
    words: int
    block: int


def tile_shape(share: int, words: int, width: int, chunk_size: int) -> tuple[int, int]:
    """Images and captions of a tile.

    Args:
      share: of each, on a device.
      words, width: of a caption and of a word, W and D.
      chunk_size: at most so many of both; 0: what memory allows.
    """
    per_caption = _up(words, _WORDS) * _up(width, _LANES)
    captions = max(1, _RESIDENT // (per_caption * _CAPTIONS)) * _CAPTIONS
    return _evenly(share, chunk_size or _IMAGES), _evenly(
        share, min(captions, chunk_size or captions)
    )


def prepare(regions: jax.Array, *, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Regions f32[b, R, D] and their Gram matrices f32[b, R, R], both filled up to whole lanes."""
    images, count, width = regions.shape
    regions = _fill(regions, (images, _up(count, _LANES), _up(width, _LANES)))
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
    """As `local_contrastive._tile`: f32[b, c] of b images with c captions.

    Args:
      params: none.
      images: from `prepare`.
      words: f32[c, W, D]. word_mask: bool[c, W].
      regions: of an image, R, before `prepare` filled them up.

    Raises:
      InputError: on a GPU.
    """
    if (backend := jax.default_backend()) not in ("cpu", "tpu"):
        raise InputError(f"tile='kernel' is for TPU, not for {backend}: choose tile='xla'")
    captions, length = word_mask.shape
    long = _up(length, _WORDS)
    block = _up(_evenly(captions, _up(_ROWS // long, _CAPTIONS)), _CAPTIONS)
    many, wide = _up(captions, block), images[0].shape[2]
    result = _pairs(
        _Setting(temperatures, dtype, regions, long, block),
        *images,
        _fill(words, (many, long, wide)).reshape(many * long, wide),
        _fill(word_mask.astype(jnp.float32), (many, long)),
    )
    return result[:, :captions]


def _up(size: int, multiple: int) -> int:
    return max(1, -(-size // multiple)) * multiple


def _evenly(size: int, chunk: int) -> int:
    """The length of as many equal pieces as chunks at most so long take."""
    return -(-size // -(-size // chunk))


def _fill(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, shape, strict=True)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pairs(
    setting: _Setting, regions: jax.Array, gram: jax.Array, words: jax.Array, mask: jax.Array
) -> jax.Array:
    """f32[b, c] of padded regions [b, R, D], Gram [b, R, R], words [c * W, D], mask f32[c, W]."""
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


def _pairs_backward(setting: _Setting, inputs: Any, slope: jax.Array) -> tuple[Any, ...]:
    regions, gram, words, _ = inputs
    outputs = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (regions, gram, words)]
    whole = pl.BlockSpec(words.shape, lambda i, j: (0, 0))
    gradients = _call(
        functools.partial(_backward_kernel, setting),
        setting,
        (*inputs, slope[..., None]),
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
    """Runs the programs of all images (outer) and blocks of captions (inner), in this order."""
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
                dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=_MEMORY
            ),
            interpret=interpret,
        )(*inputs)

    # Chosen when the program is lowered: it may be compiled for a device that is not here.
    return jax.lax.platform_dependent(
        *inputs,
        tpu=functools.partial(call, interpret=False),
        cpu=functools.partial(call, interpret=True),
    )


class _Attended(NamedTuple):
    """Of the n = c * W words of a block with R regions; [n, R] or [n, 1] unless said."""

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
    """The steps of `local_contrastive._tile`, for one image."""
    first, second, _ = setting.temperatures
    usable = _stand_up(mask)
    scores = _multiply(words, regions, 1, 1)
    kept = jnp.where(usable > 0, _apart(setting, scores), _MASKED)
    powers = jnp.exp(kept - jnp.max(kept, axis=1, keepdims=True))
    over_words = powers * (1.0 / jnp.sum(powers, axis=1, keepdims=True))
    over_words = over_words.reshape(scores.shape)
    powers = jnp.exp(first * over_words)
    if setting.regions < scores.shape[1]:
        region = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        powers = jnp.where(region < setting.regions, powers, 0.0)
    attention = powers * (1.0 / jnp.sum(powers, axis=1, keepdims=True))
    dot = jnp.sum(attention * scores, axis=1, keepdims=True)
    product = _multiply(attention.astype(gram.dtype), gram, 1, 0)
    context_square = jnp.sum(attention * product, axis=1, keepdims=True)
    wide = words.astype(jnp.float32)
    word_square = jnp.sum(wide * wide, axis=1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(context_square * word_square, 1e-12))
    cosine = jnp.where(usable > 0, second * _apart(setting, dot * scale), _MASKED)
    top = jnp.max(cosine, axis=1, keepdims=True)
    pooled = top + jnp.log(jnp.sum(jnp.exp(cosine - top), axis=1, keepdims=True))
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
    there = _attend(setting, regions[0], gram[0], words[...], mask[...])
    any_word = jnp.max(there.usable, axis=1, keepdims=True) > 0
    value = jnp.where(any_word, setting.temperatures[2] * there.pooled, 0.0)
    result[0] = value[:, 0]


def _backward_kernel(
    setting: _Setting,
    regions: Any,
    gram: Any,
    words: Any,
    mask: Any,
    slope: Any,
    by_regions: Any,
    by_gram: Any,
    by_words: Any,
) -> None:
    image, block = pl.program_id(0), pl.program_id(1)
    first, second, third = setting.temperatures
    dtype = setting.dtype
    there = _attend(setting, regions[0], gram[0], words[...], mask[...])
    attention, over_words = there.attention, there.over_words
    cosine = _apart(setting, there.dot * there.scale)
    # The slope of the logit by each cosine: a softmax over the words, 0 where there are none.
    share = jnp.where(there.usable > 0, jnp.exp(second * cosine - there.pooled), 0.0)
    by_cosine = (share * (third * second * slope[0][:, :, None])).reshape(there.dot.shape)
    by_dot = by_cosine * there.scale
    positive = there.context_square * there.word_square > 1e-12
    by_square = jnp.where(positive, -0.5 * by_dot * there.dot * there.scale * there.scale, 0.0)
    by_context = by_square * there.word_square
    by_attention = by_dot * there.scores + 2.0 * by_context * there.product
    # sum over regions of attention * by_attention
    mean = by_dot * there.dot + 2.0 * by_context * there.context_square
    by_over = _apart(setting, first * attention * (by_attention - mean))
    over = _apart(setting, over_words)
    by_kept = over * (by_over - jnp.sum(over * by_over, axis=1, keepdims=True))
    by_scores = (by_dot * attention + by_kept.reshape(attention.shape)).astype(dtype)

    here = pl.ds(block * words.shape[0], words.shape[0])
    to_words = _multiply(by_scores, regions[0], 1, 0)
    to_words += 2.0 * by_square * there.context_square * words[...].astype(jnp.float32)
    to_regions = _multiply(by_scores, words[...], 0, 0)
    to_gram = _multiply((by_context * attention).astype(dtype), attention.astype(dtype), 0, 0)
    _add(by_words.at[here], to_words, image == 0)
    _add(by_regions.at[0], to_regions, block == 0)
    _add(by_gram.at[0], to_gram, block == 0)


def _add(total: Any, part: jax.Array, start: jax.Array) -> None:
    @pl.when(start)
    def _() -> None:
        total[...] = part

    @pl.when(~start)
    def _() -> None:
        total[...] += part


def _multiply(one: jax.Array, two: jax.Array, over: int, and_over: int) -> jax.Array:
    """Matrix product summed over these axes, in float32."""
    numbers = (((over,), (and_over,)), ((), ()))
    return jax.lax.dot_general(one, two, numbers, preferred_element_type=jnp.float32)


def _apart(setting: _Setting, rows: jax.Array) -> jax.Array:
    """[c * W, n] -> [c, W, n]."""
    return rows.reshape(setting.block, setting.words, rows.shape[1])


def _stand_up(mask: jax.Array) -> jax.Array:
    """f32[c, W] -> f32[c, W, 1]: what lay along lanes now lies along sublanes."""
    return mask[:, :, None]
