"""Positions, patches and channels of pretrained encoders, fitted to other sizes."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrl.models.image.resnet import Resnet
from mmrl.models.image.vit import Vit
from mmrl.models.positions import (
    cut_positions,
    fold_channels,
    resampling,
    resize_grid,
    resize_patch,
)
from mmrl.models.towers.image import Image
from mmrl.types import InputError
from tests import golden_positions
from tests.arrays import randomized
from tests.golden_positions import GOLDEN, GRIDS, PATCHES, grid_name, patch_name

# The means and deviations that CLIP was trained with.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@functools.cache
def golden() -> dict[str, list[float]]:
    return json.loads(GOLDEN.read_text("utf-8"))


# --- positions


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_grids_are_resized_as_timm_and_dinov2_do(old, new, antialias):
    table = golden_positions.values(old * old, 1)
    found = resize_grid(table, (old, old), new, antialias=antialias)
    assert found.shape == (new[0] * new[1], 1) and found.dtype == np.float32
    expected = golden()[grid_name(old, new, antialias)]
    np.testing.assert_allclose(found.ravel(), expected, atol=5e-6)


def test_both_sides_of_a_grid_are_resized_alike():
    table = golden_positions.values(3 * 5, 4)
    wide = resize_grid(table, (3, 5), (7, 2)).reshape(7, 2, 4)
    turned = table.reshape(3, 5, 4).swapaxes(0, 1).reshape(15, 4)
    tall = resize_grid(turned, (5, 3), (2, 7)).reshape(2, 7, 4)
    np.testing.assert_allclose(wide, tall.swapaxes(0, 1), atol=1e-6)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("old", "new"), [(37, 16), (16, 37), (3, 5), (1, 4), (4, 1), (6, 6)])
def test_weights_keep_constants_and_slopes(old, new, antialias):
    weights = resampling(old, new, antialias=antialias)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    if old == new:
        np.testing.assert_allclose(weights, np.eye(old), atol=1e-12)
    # With a = -1/2, Keys' kernel reproduces linear functions where it is not stretched.
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    inner = (centre >= 1) & (centre <= old - 2)
    if antialias and new >= old:
        np.testing.assert_allclose((weights @ np.arange(old))[inner], centre[inner], atol=1e-12)


def test_equal_sizes_keep_every_bit():
    table, kernel = golden_positions.values(12, 4), golden_positions.values(27, 4)
    assert resize_grid(table, (3, 4), (3, 4)) is table
    assert resize_patch(kernel, 3, 3, 3) is kernel


def test_positions_of_tokens_are_cut_and_never_made_up():
    table = golden_positions.values(5, 3)
    np.testing.assert_array_equal(cut_positions(table, 3), table[:3])
    for length in (0, 6):
        with pytest.raises(InputError, match=f"length {length} with 5 positions; expected 1 to 5"):
            cut_positions(table, length)


def test_wrong_tables_and_kernels_are_refused():
    with pytest.raises(InputError, match=r"position table \(10, 2\) of 3 x 3 patches, for 4 x 4"):
        resize_grid(np.zeros((10, 2)), (3, 3), (4, 4))
    with pytest.raises(InputError, match="for 0 x 4; expected a row for each patch"):
        resize_grid(np.zeros((9, 2)), (3, 3), (0, 4))
    with pytest.raises(InputError, match=r"patch kernel \(12, 2\) of 2 x 2 pixels and 1 channels"):
        resize_patch(np.zeros((12, 2)), 2, 4, 1)


# --- patches


@pytest.mark.parametrize(("old", "new", "channels", "features"), PATCHES)
def test_kernels_are_resized_as_timm_does(old, new, channels, features):
    kernel = golden_positions.values(old * old * channels, features)
    found = resize_patch(kernel, old, new, channels)
    expected = np.reshape(golden()[patch_name(old, new, channels)], found.shape)
    np.testing.assert_allclose(found, expected, atol=5e-5)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (8, 14), (16, 32)])
def test_an_enlarged_patch_keeps_its_embedding(old, new):
    kernel = golden_positions.values(old * old * 3, 4).astype(np.float64)
    patches = np.random.default_rng(1).normal(size=(6, old, old, 3))
    weights = resampling(old, new)
    larger = np.einsum("yr,xc,nrck->nyxk", weights, weights, patches).reshape(6, -1)
    found = larger @ resize_patch(kernel, old, new, 3)
    np.testing.assert_allclose(found, patches.reshape(6, -1) @ kernel, atol=1e-9)


def test_a_reduced_patch_gets_the_nearest_embedding_of_all_kernels():
    """Of random kernels near it, none has a smaller mean squared error over white noise."""
    old, new = 5, 3
    kernel = golden_positions.values(old * old, 1).astype(np.float64)
    found = resize_patch(kernel, old, new, 1)
    weights = resampling(old, new)
    both = np.kron(weights, weights)

    def error(candidate: np.ndarray) -> float:
        return float(np.sum((kernel - both.T @ candidate) ** 2))

    rng = np.random.default_rng(2)
    others = (found + rng.normal(0, 0.01, found.shape) for _ in range(50))
    assert error(found) < min(map(error, others))
    np.testing.assert_allclose(both @ (kernel - both.T @ found), 0, atol=1e-12)


def test_a_vision_transformer_of_larger_patches_sees_enlarged_images_alike():
    make = functools.partial(Vit, width=8, depth=1, num_heads=2, channels=3)
    small = randomized(functools.partial(make, image_size=12, patch_size=4))
    params = nnx.to_pure_dict(nnx.state(small))
    kernel = np.asarray(params["patch"]["kernel"])
    params["patch"]["kernel"] = jnp.asarray(resize_patch(kernel, 4, 6, 3))
    shapes = nnx.eval_shape(lambda: make(image_size=18, patch_size=6, rngs=nnx.Rngs(0)))
    large = nnx.merge(nnx.graphdef(shapes), params)
    image = np.random.default_rng(3).normal(size=(2, 3, 4, 3, 4, 3)).astype(np.float32)
    weights = resampling(4, 6)  # within each patch
    larger = np.einsum("yr,xc,nircjk->niyxjk", *[weights] * 2, image.swapaxes(3, 4))
    larger = larger.swapaxes(3, 4).reshape(2, 18, 18, 3).astype(np.float32)
    found, expected = large(larger), small(image.reshape(2, 12, 12, 3))
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-4)
    np.testing.assert_allclose(found.local, expected.local, atol=1e-4)


# --- channels


def tower(encoder: Any, size: int, **options: Any) -> Image:
    heads = {"regions": {"kind": "identity", "width": encoder.local_width}}
    return Image(
        encoder=encoder, heads=heads, size=size, make_rngs=lambda name: nnx.Rngs(0), **options
    )


def encoded(found: Image, pixels: np.ndarray) -> dict[str, jax.Array]:
    return found({"image": {"pixels": pixels}}, {"image": ("pooled", "regions")})["image"]


def grey(size: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (2, size, size, 1)).astype(np.uint8)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("std", [STD, (0.2, 0.2, 0.2), (0.1, 0.9, 0.3)])
def test_a_folded_vision_transformer_sees_grey_images_as_with_three_channels(std):
    make = functools.partial(Vit, image_size=16, patch_size=4, width=8, depth=1, num_heads=2)
    three = randomized(functools.partial(make, channels=3))
    params = nnx.to_pure_dict(nnx.state(three))
    kernel, bias = (np.asarray(params["patch"][name]) for name in ("kernel", "bias"))
    folded = fold_channels(kernel, bias, "sum", MEAN, std)
    assert folded.kernel.shape == (16, 8) and folded.kernel.dtype == np.float32
    params["patch"] = {"kernel": jnp.asarray(folded.kernel), "bias": jnp.asarray(folded.bias)}
    shapes = nnx.eval_shape(lambda: make(channels=1, rngs=nnx.Rngs(0)))
    one = nnx.merge(nnx.graphdef(shapes), params)
    repeated = np.repeat(grey(16), 3, axis=-1)
    expected = encoded(tower(three, 16, pixel_mean=MEAN, pixel_std=std), repeated)
    found = encoded(tower(one, 16, pixel_mean=folded.mean, pixel_std=folded.std), grey(16))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        assert np.abs(expected[name]).max() > 0.1


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("mean", [MEAN, (0.4, 0.4, 0.4)])
def test_a_folded_convolution_is_exact_but_for_windows_over_the_border(mean):
    """The norm takes up the bias; with equal means there is none, and the border is exact, too."""
    size, make = 24, functools.partial(Resnet, image_size=24, depth=18, width=4, region_stage=1)
    three = randomized(functools.partial(make, channels=3))
    folded = fold_channels(np.asarray(three.stem.kernel[...]), None, "sum", mean, STD)
    assert folded.kernel.shape == (7, 7, 1, 4)
    pixels = grey(size) / np.float32(255)

    def stem(kernel: Any, given: np.ndarray) -> np.ndarray:
        return np.asarray(
            jax.lax.conv_general_dilated(
                jnp.asarray(given, jnp.float32),
                jnp.asarray(kernel, jnp.float32),
                (2, 2),
                ((3, 3), (3, 3)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        )

    normalised = (np.repeat(pixels, 3, axis=-1) - np.float32(mean)) / np.float32(STD)
    expected = stem(three.stem.kernel[...], normalised)
    found = stem(folded.kernel, (pixels - folded.mean) / folded.std) + folded.bias
    error = np.abs(found - expected)
    assert error[:, 2:-1, 2:-1].max() < 1e-5 < np.abs(expected).max()
    if len(set(mean)) == 1:
        assert error.max() < 1e-5 and np.abs(folded.bias).max() < 1e-6
    else:
        assert error.max() > 1e-3


def test_the_mean_of_channels_is_a_third_of_their_sum():
    kernel, bias = golden_positions.values(4 * 3, 5), golden_positions.values(5)
    total, mean = (fold_channels(kernel, bias, how, MEAN, STD) for how in ("sum", "mean"))
    np.testing.assert_allclose(mean.kernel, total.kernel / 3, rtol=1e-5)
    np.testing.assert_allclose(mean.bias - bias, (total.bias - bias) / 3, atol=1e-5)
    equal = fold_channels(kernel, None, "sum", (0.5,) * 3, (0.25,) * 3)
    np.testing.assert_allclose(equal.kernel, kernel.reshape(4, 3, 5).sum(axis=1), rtol=1e-5)
    assert not equal.bias.any() and (equal.mean, equal.std) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("shape", "how", "mean", "std", "message"),
    [
        ((12, 5), "max", MEAN, STD, "fold='max'; choices: sum, mean"),
        ((13, 5), "sum", MEAN, STD, r"kernel \(13, 5\) with mean"),
        ((7, 7, 1, 5), "sum", MEAN, STD, r"kernel \(7, 7, 1, 5\) with mean"),
        ((12, 5), "sum", MEAN, STD[:2], "and a deviation above 0 for each channel"),
        ((12, 5), "sum", MEAN, (0.2, 0.0, 0.2), "and a deviation above 0 for each channel"),
    ],
)
def test_wrong_folds_are_refused(shape, how, mean, std, message):
    with pytest.raises(InputError, match=message):
        fold_channels(np.zeros(shape, np.float32), None, how, mean, std)
