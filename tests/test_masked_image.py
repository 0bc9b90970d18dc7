"""Reconstruction of removed patches against float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.objectives.masked_image import (
    fourier_loss,
    masked_image_loss,
    masked_region_loss,
    patchify,
    random_masking,
    unpatchify,
)
from tests import references
from tests.arrays import assert_close, on_mesh

# Images of 2 x 3 patches of 3 x 3 pixels with 2 channels.
B, P, C, D, PATCH = 3, 6, 2, 5, 3
GRID = (2, 3)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(size=B):
    return drawn(size, GRID[0] * PATCH, GRID[1] * PATCH, C, seed=1) + 0.5


def masks(size=B, seed=2):
    """Another number of removed patches in each image, and none in the last of several."""
    mask = np.random.default_rng(seed).random((size, P)) < 0.6
    mask[0] = np.arange(P) != 1
    if size > 1:
        mask[-1] = False
    return mask


def patch(image, place):
    """The pixels of one patch in the order row, column, channel."""
    row, column = divmod(place, GRID[1])
    values = [
        image[row * PATCH + i, column * PATCH + j, c]
        for i in range(PATCH)
        for j in range(PATCH)
        for c in range(C)
    ]
    return np.array(values)


def target(image, place, normalise):
    values = patch(image, place)
    if not normalise:
        return values
    variance = ((values - values.mean()) ** 2).sum() / (len(values) - 1)
    return (values - values.mean()) / np.sqrt(variance + 1e-6)


def reconstruction(prediction, image, mask, normalise=True):
    errors = [
        np.mean((prediction[b, p] - target(image[b], p, normalise)) ** 2)
        for b, p in zip(*np.nonzero(mask), strict=True)
    ]
    return np.mean(errors)


def spectrum(prediction, image, mask, normalise, radius, low, high):
    """The discrete Fourier transform of the error of each image, written out as a sum."""
    height, width = image.shape[1:3]
    error = np.zeros(image.shape)
    for b, p in zip(*np.nonzero(mask), strict=True):
        row, column = divmod(p, GRID[1])
        block = (prediction[b, p] - target(image[b], p, normalise)).reshape(PATCH, PATCH, C)
        rows, columns = (slice(at * PATCH, (at + 1) * PATCH) for at in (row, column))
        error[b, rows, columns] = block
    waves = [np.exp(-2j * np.pi * np.outer(range(n), range(n)) / n) for n in (height, width)]
    found = np.einsum("ui,vj,bijc->buvc", *waves, error) / np.sqrt(height * width)
    places = [np.minimum(np.arange(n), n - np.arange(n)) / n for n in (height, width)]
    far = np.sqrt(places[0][:, None] ** 2 + places[1] ** 2)
    weight = np.where(far <= radius, low, high)[..., None]
    return (weight * np.abs(found) ** 2).sum() / (mask.sum() * PATCH * PATCH * C)


def regions(prediction, encoded, mask, scale):
    one, two = (references.unit(x).reshape(-1, D) for x in (prediction, encoded))
    logits = scale * one @ two.T
    rows = np.flatnonzero(mask.reshape(-1))
    return np.mean([references.logsumexp(logits[i]) - logits[i, i] for i in rows])


LOSSES = {
    "pixels": functools.partial(masked_image_loss, patch_size=PATCH),
    "raw pixels": functools.partial(masked_image_loss, patch_size=PATCH, normalise=False),
    "spectrum": functools.partial(fourier_loss, patch_size=PATCH, radius=0.2, low=0.5, high=3.0),
    "regions": functools.partial(masked_region_loss, scale=4.0),
}
REFERENCES = {
    "pixels": reconstruction,
    "raw pixels": functools.partial(reconstruction, normalise=False),
    "spectrum": functools.partial(spectrum, normalise=True, radius=0.2, low=0.5, high=3.0),
    "regions": functools.partial(regions, scale=4.0),
}


def arguments(name, size=B):
    """(prediction, what it is compared with)."""
    if name == "regions":
        return drawn(size, P, D), drawn(size, P, D, seed=3)
    return drawn(size, P, PATCH * PATCH * C), images(size)


def test_patches_are_in_the_order_of_the_reference():
    image = images()
    patches = patchify(image, PATCH)
    for b in range(B):
        for place in range(P):
            np.testing.assert_array_equal(patches[b, place], patch(image[b], place))
    np.testing.assert_array_equal(unpatchify(patches, PATCH, GRID), image)


@pytest.mark.parametrize(("count", "ratio"), [(7, 0.75), (16, 0.75), (1, 0.0), (5, 0.99)])
def test_patches_with_the_least_noise_are_kept(count, ratio):
    noise = np.random.default_rng(0).random((B, count)).astype(np.float32)
    kept, mask, restore = map(np.asarray, random_masking(noise, ratio))
    number = int(count * (1 - ratio))
    order = np.argsort(noise, axis=1)
    np.testing.assert_array_equal(kept, order[:, :number])
    np.testing.assert_array_equal(restore, np.argsort(order, axis=1))
    expected = np.ones((B, count))
    np.put_along_axis(expected, order[:, :number], 0, axis=1)
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1, B])
def test_losses_equal_the_reference(name, size):
    prediction, other = arguments(name, size)
    mask, wide = masks(size), other.astype(np.float64)

    def reference(x):
        return REFERENCES[name](x, wide, mask)

    value, slope = jax.jit(jax.value_and_grad(LOSSES[name]))(prediction, other, mask)
    assert value.dtype == jnp.float32
    assert_close(value, reference(prediction.astype(np.float64)))
    assert_close(slope, references.gradient(reference, prediction))


def test_a_mask_of_numbers_is_one_of_truths():
    prediction, image = arguments("pixels")
    loss = jax.jit(LOSSES["pixels"])
    expected = loss(prediction, image, masks())
    assert_close(loss(prediction, image, masks().astype(np.float32)), expected, 0.0)


def test_all_frequencies_together_are_all_pixels_together():
    prediction, image = arguments("pixels")
    equal = jax.jit(functools.partial(fourier_loss, patch_size=PATCH, low=2.0, high=2.0))
    expected = 2 * jax.jit(LOSSES["pixels"])(prediction, image, masks())
    assert_close(equal(prediction, image, masks()), expected)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", LOSSES)
def test_patches_that_are_kept_and_absent_rows_may_hold_anything(name):
    size = 24
    prediction, other = arguments(name, size)
    mask, present = masks(size), np.arange(size) < 17
    both = jax.jit(jax.value_and_grad(LOSSES[name], argnums=(0, 1)))
    expected, (slope, of_other) = both(prediction[present], other[present], mask[present])
    np.testing.assert_array_equal(of_other, 0)
    used = mask & present[:, None]
    dirty = np.where(used[..., None], prediction, np.float32(np.nan))
    other[~present] = np.nan
    given = (dirty, other, mask, present)
    for arrays in (given, on_mesh((8, 1, 1), *given)):
        *arrays, marks = arrays
        value, (found, _) = jax.device_get(both(*arrays, present=marks))
        assert_close((value, found[present]), jax.device_get((expected, slope)))
        np.testing.assert_array_equal(found[~used], 0)
    nothing, (found, _) = both(dirty, other, mask & False, present=present)
    np.testing.assert_array_equal(nothing, 0)
    np.testing.assert_array_equal(found, 0)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", LOSSES)
def test_narrow_arrays_are_computed_in_float32(name):
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in arguments(name)]
    loss = jax.jit(LOSSES[name])
    got = loss(*narrow, masks())
    assert got.dtype == jnp.float32
    assert_close(got, loss(*(x.astype(jnp.float32) for x in narrow), masks()), 1e-6)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: patchify(drawn(1, 4, 6, 1), 3), "multiples of 3, got (1, 4, 6, 1)"),
        (lambda: unpatchify(drawn(1, 5, 9), 3, GRID), "patches must be [B, 6, N]"),
        (lambda: random_masking(drawn(2, 3), 1.0), "ratio from 0 to below 1"),
        (
            lambda: masked_image_loss(drawn(B, P, 9), images(), masks(), patch_size=PATCH),
            "prediction must be (3, 6, 18)",
        ),
        (
            lambda: masked_image_loss(
                drawn(1, 4, 1), drawn(1, 2, 2, 1), np.ones((1, 4)), patch_size=1
            ),
            "normalise=False",
        ),
        (
            lambda: masked_region_loss(drawn(B, P, D), drawn(B, P, 2), masks(), 1.0),
            "must be [B, P, D]",
        ),
    ],
)
def test_wrong_shapes_are_refused_at_the_door(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)
