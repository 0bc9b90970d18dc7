"""Random place and photometry: each option does what it says, and nothing is ever mirrored."""

from typing import Any

import numpy as np
import pytest

from mmrl.data.image.jitter import Jitter
from mmrl.types import InputError


def smooth(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).normal(0, 6, (height, width))
    return (120 + 50 * np.sin(x / 9) + 40 * np.cos(y / 7) + noise).clip(0, 255).astype(np.uint8)


JITTERS: dict[str, Any] = {
    "crop_scale": (0.4, 0.9),
    "translate": 0.1,
    "rotate": 12.0,
    "brightness": 0.3,
    "contrast": 0.3,
}


def test_augment_is_the_identity_by_default_and_deterministic() -> None:
    image = smooth(48, 48)
    before = image.copy()
    out = Jitter()(image, np.random.default_rng(0))
    np.testing.assert_array_equal(out, image)
    assert not np.shares_memory(out, image)
    first = Jitter(**JITTERS)(image, np.random.default_rng(5))
    np.testing.assert_array_equal(first, Jitter(**JITTERS)(image, np.random.default_rng(5)))
    assert not np.array_equal(first, Jitter(**JITTERS)(image, np.random.default_rng(6)))
    assert first.shape == (48, 48) and first.dtype == np.uint8 and first.flags.c_contiguous
    np.testing.assert_array_equal(image, before)


def test_augment_never_mirrors() -> None:
    ramp = np.tile(np.linspace(40, 220, 64).astype(np.uint8), (64, 1))
    for seed in range(60):
        for image, axis in ((ramp, 1), (np.ascontiguousarray(ramp.T), 0)):
            out = Jitter(**JITTERS)(image, np.random.default_rng(seed)).astype(int)
            middle = out[16:48, 16:48]
            assert np.take(middle, -1, axis).mean() > np.take(middle, 0, axis).mean() + 5


def test_augment_does_what_each_option_says() -> None:
    image = smooth(64, 64)
    rng = np.random.default_rng
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    # A quarter of the area is half of each side: the ramp's slope halves.
    zoomed = Jitter(crop_scale=(0.25, 0.25), aspect=(1, 1))(ramp, rng(1)).astype(int)
    assert np.diff(zoomed[32]).mean() == pytest.approx(2, abs=0.1)
    spot = np.zeros((64, 64), np.uint8)
    spot[30:34, 30:34] = 200
    centres = np.array(
        [np.argwhere(Jitter(translate=0.2)(spot, rng(seed)) > 100).mean(0) for seed in range(50)]
    )
    assert np.abs(centres - 31.5).max() <= 0.2 * 64 + 0.5
    assert centres.std(0).min() > 4
    factors = [Jitter(brightness=0.2)(image, rng(s)).mean() / image.mean() for s in range(50)]
    assert min(factors) >= 0.79 and max(factors) <= 1.21 and np.std(factors) > 0.05
    spreads = [Jitter(contrast=0.2)(image, rng(s)).std() / image.std() for s in range(50)]
    assert min(spreads) >= 0.78 and max(spreads) <= 1.22 and np.std(spreads) > 0.05
    # Switching one jitter on leaves the draws of the others as they were.
    only_crop = Jitter(crop_scale=(0.5, 1.0))(image, rng(3))
    both = Jitter(crop_scale=(0.5, 1.0), brightness=0.1)(image, rng(3))
    assert np.corrcoef(only_crop.ravel(), both.ravel())[0, 1] > 0.99
    flat = np.full((32, 32), 100, np.uint8)
    for seed in range(20):  # a crop alone lets no black in, not even at the rim
        assert Jitter(crop_scale=(0.3, 1.0))(flat, rng(seed)).min() == 100


def test_augment_turns_about_the_centre() -> None:
    image = np.zeros((65, 65), np.uint8)
    image[30:35, 50:55] = 200  # 20 pixels right of the centre
    angles = []
    for seed in range(40):
        out = Jitter(rotate=30.0)(image, np.random.default_rng(seed))
        y, x = np.argwhere(out > 100).mean(0) - 32
        assert np.hypot(x, y) == pytest.approx(20, abs=0.5)
        angles.append(np.rad2deg(np.arctan2(y, x)))
    assert -30.5 < min(angles) < -20 and 20 < max(angles) < 30.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale .* expected 0 < low <= high <= 1"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"aspect": (1.1, 1.2)}, "aspect .* expected 0 < low <= 1 <= high"),
        ({"rotate": 200}, "rotate 200; expected 0 to 180"),
        ({"contrast": -0.1}, "contrast -0.1; expected 0 to 1"),
    ],
)
def test_augment_refuses_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Jitter(**options)
    with pytest.raises(InputError, match=r"image uint8\[60, 80\]; expected uint8\[S, S\]"):
        Jitter()(smooth(), np.random.default_rng(0))
    with pytest.raises(InputError, match="image of side 8; expected at least size 9"):
        Jitter(size=9)(smooth(8, 8), np.random.default_rng(0))


def test_a_larger_image_gives_a_window_at_its_own_scale() -> None:
    """Without any interpolation, at every offset there is."""
    image = smooth(40, 40)
    ours = Jitter(size=32)
    found = set()
    for seed in range(300):
        out = ours(image, np.random.default_rng(seed))
        places = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(out, image[top : top + 32, left : left + 32])
        ]
        assert places
        found |= set(places)
    assert {top for top, _ in found} == {left for _, left in found} == set(range(9))


@pytest.mark.parametrize("rotate", [0.0, 1e-9])
def test_a_crop_of_a_larger_image_is_one_step_from_there(rotate):
    """The window of a ramp tells its place; by the warp, and by the quicker way without a turn."""
    side, size = 256, 224
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    jitter = Jitter(size=size, crop_scale=(0.5, 0.5), aspect=(1, 1), rotate=rotate)
    for seed in range(20):
        out = jitter(ramp, np.random.default_rng(seed))
        draw = np.random.default_rng(seed).random(10)
        width = side * np.sqrt(0.5)
        left = draw[2] * (side - width)
        expected = left + (np.arange(size) + 0.5) * width / size - 0.5
        # A level is a pixel. Whole pixels move the edges of the window by half of one.
        assert np.abs(out[100] - np.clip(expected, 0, 255))[1:-1].max() <= 1.6
        assert out[100].mean() == pytest.approx(expected.mean(), abs=1 if rotate == 0 else 0.1)


def test_an_image_far_larger_is_averaged():
    """A grid of single pixels turns grey instead of black or white."""
    grid = np.zeros((256, 256), np.uint8)
    grid[::2, ::2] = grid[1::2, 1::2] = 200
    for seed in range(5):
        out = Jitter(size=64, crop_scale=(0.4, 1.0))(grid, np.random.default_rng(seed))
        assert out.min() > 80 and out.max() < 120


def test_the_result_may_be_written_in_place() -> None:
    image, out = smooth(48, 48), np.zeros((48, 48), np.uint8)
    for jitter in (Jitter(), Jitter(**JITTERS), Jitter(crop_scale=(0.5, 0.6)), Jitter(gamma=0.5)):
        assert jitter(image, np.random.default_rng(3), out) is out
        np.testing.assert_array_equal(out, jitter(image, np.random.default_rng(3)))


def test_gamma_bends_the_levels_and_keeps_their_ends() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    powers = []
    for seed in range(60):
        out = Jitter(gamma=0.5)(ramp, np.random.default_rng(seed))[0]
        assert out[0] == 0 and out[255] == 255 and (np.diff(out.astype(int)) >= 0).all()
        powers.append(np.log(out[128] / 255) / np.log(128 / 255))
    assert 1 / 1.5 - 0.01 < min(powers) < 0.75 and 1.4 < max(powers) < 1.51
    assert np.mean(np.log(powers)) == pytest.approx(0, abs=0.1)
    # Contrast keeps the mean that the image has after the bend.
    image = smooth(64, 64)
    for seed in range(10):
        bent = Jitter(gamma=0.5)(image, np.random.default_rng(seed)).astype(float)
        both = Jitter(gamma=0.5, contrast=0.2)(image, np.random.default_rng(seed)).astype(float)
        if both.min() > 0 and both.max() < 255:
            assert both.mean() == pytest.approx(bent.mean(), abs=1)
