"""Convolutions before transformers: over the pixels of an image, and over the tokens of a text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl.models.image.stem import ConvolutionStem
from mmrl.models.image.vit import Vit
from mmrl.models.text.transformer import TokenConvolution, Transformer
from mmrl.types import InputError
from tests import test_packing as packing
from tests.arrays import assert_close, randomized

PRECISION = {"dtype": jnp.float32, "param_dtype": jnp.float32}


@pytest.fixture(autouse=True)
def strict_shapes():
    with jax.numpy_rank_promotion("raise"):
        yield


def wide(module: nnx.Module) -> Any:
    """Parameters in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(module)))


# --- pixels

STEM = {"channels": 2, "width": 8, "patch_size": 4}


def stem(**changes: Any) -> ConvolutionStem:
    given = {**STEM, **changes}
    channels, width, patch = (given[key] for key in STEM)
    return randomized(functools.partial(ConvolutionStem, channels, width, patch, **PRECISION))


def pixels(size: int = 3, side: int = 8, channels: int = 2) -> np.ndarray:
    shape = (size, side, side, channels)
    return np.random.default_rng(1).normal(0.5, 1.0, shape).astype(np.float32)


def stem_by_hand(module: ConvolutionStem, image: np.ndarray) -> np.ndarray:
    """One output pixel after another, in float64: [H, W, channels] -> [H / p, W / p, width]."""
    params, x = wide(module), image.astype(np.float64)
    for index in range(module.count):
        kernel, norm = params[f"conv_{index}"]["kernel"], params[f"norm_{index}"]
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))  # 4x4 windows are centred on two pixels
        height, width = x.shape[0] // 2, x.shape[1] // 2
        y = np.zeros((height, width, kernel.shape[3]))
        for row in range(height):
            for column in range(width):
                window = padded[2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
                y[row, column] = np.einsum("hwi,hwio->o", window, kernel)
        y = (y - y.mean(axis=2, keepdims=True)) / np.sqrt(y.var(axis=2, keepdims=True) + 1e-6)
        y = y * norm["scale"] + norm["bias"]
        x = np.maximum(y, 0)
    return x @ params["out"]["kernel"] + params["out"]["bias"]


@pytest.mark.parametrize(("patch_size", "width"), [(2, 8), (4, 8), (8, 12)])
def test_the_stem_equals_the_formulas(patch_size, width):
    module, images = stem(patch_size=patch_size, width=width), pixels(2)
    widths = [getattr(module, f"conv_{n}").kernel.shape[3] for n in range(module.count)]
    assert widths == [width >> n for n in reversed(range(module.count))]
    found = jax.jit(module)(images)
    assert found.shape == (2, 8 // patch_size, 8 // patch_size, width)
    assert_close(found, np.stack([stem_by_hand(module, image) for image in images]))


def test_images_do_not_depend_on_each_other():
    call, images = jax.jit(stem()), pixels()
    changed = images.copy()
    changed[1] = 9 * changed[1] + 5
    before, after = np.asarray(call(images)), np.asarray(call(changed))
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert np.abs(before[1] - after[1]).max() > 1e-3
    assert_close(call(images[:1]), before[:1], 1e-6)


def test_patches_are_where_their_features_are():
    """A mirrored image under mirrored kernels has mirrored patches: windows are centred on them."""
    module, images = stem(patch_size=8, width=48), pixels(2, 16)
    plain = jax.jit(lambda x: module(x))(images)
    for index in range(module.count):
        kernel = getattr(module, f"conv_{index}").kernel
        kernel[...] = kernel[...][::-1, ::-1]
    mirrored = jax.jit(lambda x: module(x))(images[:, ::-1, ::-1])
    assert_close(mirrored[:, ::-1, ::-1], plain, 1e-3)  # norms of nearly equal features amplify


def test_places_do_not_depend_on_places_far_away():
    """A patch of 4 x 4 sees 10 x 10 pixels, so one that is not beside a change is as before."""
    call, images = jax.jit(stem()), pixels(2, 32)
    changed = images.copy()
    changed[:, :4, :4] += 5
    different = np.abs(np.asarray(call(changed)) - np.asarray(call(images))).max(axis=(0, 3)) > 0
    assert different[:2, :2].all() and not different[2:].any() and not different[:, 2:].any()


@pytest.mark.parametrize(
    "changes", [{"patch_size": 1}, {"patch_size": 6}, {"patch_size": 0}, {"width": 7}]
)
def test_a_stem_that_does_not_fit_says_what_does(changes):
    given = {**STEM, **changes}
    message = f"patch_size {given['patch_size']}, width {given['width']}; expected a power of two"
    with pytest.raises(InputError, match=message):
        stem(**changes)


@pytest.mark.exhaustive
def test_a_vit_with_a_stem_has_the_patches_of_the_stem():
    options = {"image_size": 16, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2}
    model = randomized(functools.partial(Vit, **options, channels=2, stem="convolution"))
    assert not hasattr(model, "patch") and model.grid == (4, 4)
    images = pixels(2, 16)
    x = model.stem(images).reshape(2, 16, 8) + model.position[...][None]
    x = model.norm(model.stack(x)[0])
    assert_close(jax.jit(model)(images).local, x)
    with pytest.raises(InputError, match="Vit: unknown stem 'conv'; choices: patch, convolution"):
        Vit(**options, stem="conv", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="patch_size 12, width 8; expected a power of two"):
        Vit(**{**options, "image_size": 24, "patch_size": 12}, stem="convolution", rngs=nnx.Rngs(0))


# --- tokens

L, WIDTH = 9, 4


def convolution(size: int) -> TokenConvolution:
    return randomized(functools.partial(TokenConvolution, WIDTH, size, **PRECISION))


def tokens_by_hand(module: TokenConvolution, x: np.ndarray, text: np.ndarray) -> np.ndarray:
    """One feature of one token after another, in float64.

    Args:
      x: f[N, L, width]. text: i[N, L], the number of the text of each token, -1: none.
    """
    kernel, reach = wide(module)["kernel"], module.size // 2
    found = np.zeros(x.shape)
    for n, i, d in np.ndindex(x.shape):
        for j in range(max(0, i - reach), min(x.shape[1], i + reach + 1)):
            if text[n, j] == text[n, i] >= 0:
                found[n, i, d] += kernel[j - i + reach, d] * float(x[n, j, d])
    return found


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, L, WIDTH)).astype(np.float32)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("size", [1, 3, 5, 21])
def test_the_convolution_of_single_texts_equals_the_loop(size):
    module, x = convolution(size), features()
    mask = np.arange(L) < np.array([[L], [5], [1]])
    found = np.asarray(jax.jit(module)(x, mask))
    expected = tokens_by_hand(module, x, np.where(mask, 0, -1))
    assert_close(np.where(mask[..., None], found, 0), expected)


@pytest.mark.parametrize("size", [3, 5])
def test_the_convolution_of_packed_texts_equals_the_loop(size):
    module, x = convolution(size), features()
    text = np.array([[0] * 4 + [1] * 2 + [2] * 3, [0] * 9, [0, 1, 2, 3, 4, 4, -1, -1, -1]])
    mask = text[:, :, None] == text[:, None]
    found = np.asarray(jax.jit(module)(x, mask))
    inside = text[..., None] >= 0
    assert_close(np.where(inside, found, 0), tokens_by_hand(module, x, text))


def test_no_neighbour_of_another_text_and_no_padding_counts():
    """NaN there would spoil what it is multiplied into, be it by 0; so would its gradient."""
    call = jax.jit(convolution(5))
    text = np.array([[0] * 4 + [1] * 5] * 3)
    own = text == 0
    x = features()
    poisoned = np.where(own[..., None], x, np.float32(np.nan))
    packed = call(poisoned, text[:, :, None] == text[:, None])
    padded = call(poisoned, own)
    alone = call(x[:, :4], np.ones((3, 4), bool))
    np.testing.assert_array_equal(packed[:, :4], alone)
    np.testing.assert_array_equal(padded[:, :4], alone)
    slope = jax.grad(lambda x: call(x, own)[:, :4].sum())(jnp.asarray(poisoned))
    assert np.isfinite(slope).all() and not np.asarray(slope)[:, 4:].any()


@pytest.mark.parametrize("size", [2, -1, -3])
def test_windows_have_an_odd_size(size):
    with pytest.raises(InputError, match=f"convolution {size}; expected 0 or an odd number"):
        convolution(size)


def test_the_kernel_starts_with_unit_gain():
    module = TokenConvolution(4096, 5, rngs=nnx.Rngs(0), **PRECISION)
    assert module.kernel[...].std() == pytest.approx(5**-0.5, rel=0.05)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("pool", ["cls", "eos", "mean"])
def test_padding_changes_nothing_for_a_text_encoder_with_a_convolution(pool):
    model = packing.build(pool=pool, convolution=5)
    tokens, mask = packing.texts()
    tokens, mask = tokens[:, 2], mask[:, 2]
    longest = int(mask.sum(axis=1).max())
    assert longest < packing.L or (~mask).any()
    call = jax.jit(lambda *x: model(*x))
    plain = call(tokens, mask)
    other = call(np.where(mask, tokens, np.int32(17)), mask)
    assert_close(other.pooled, plain.pooled, 0.0)
    for row, length in enumerate(mask.sum(axis=1)):
        short = model(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        assert_close(short.pooled[0], plain.pooled[row], floor=1.0)
        assert_close(short.local[0], plain.local[row, :length], floor=1.0)
    # The convolution is added to the embedded tokens and their positions.
    x = model.token(jnp.where(mask, tokens, 0)) + model.position[...][None]
    x = model.norm(model.stack(x + model.convolution(x, mask), mask)[0])
    assert_close(np.asarray(plain.local)[mask], np.asarray(x)[mask], floor=1.0)


def test_without_the_option_there_is_no_convolution():
    params = nnx.to_pure_dict(nnx.state(packing.build()))
    assert "convolution" not in params
    with pytest.raises(InputError, match="convolution 4; expected 0 or an odd number"):
        nnx.eval_shape(lambda: Transformer(**packing.SIZE, convolution=4, rngs=nnx.Rngs(0)))
