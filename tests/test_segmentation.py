"""Segmentation: masks follow the image, the rule of empty masks, planted features, baselines."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import build
from mmrl.data.image.images import RESIZES, Geometry, Preprocess
from mmrl.evaluators import segmentation
from mmrl.evaluators.segmentation import Segmentation, image_losses, judged, resampled
from mmrl.masks import dice_loss, focal_loss
from mmrl.types import ImageRef, InputError
from tests.places import GRID, SIZE, Places, Regions, blank, place_of

pytestmark = pytest.mark.optax


def splits(train=24, own=12, name="fake/test", **options):
    """An evaluated split whose other splits are `train` and `val`."""
    training = Places(train, name="fake/train", first=1000, **options)
    validation = Places(8, name="fake/val", first=2000, **options)
    return Places(own, name=name, splits={"train": training, "val": validation}, **options)


def planted(number):
    """Regions that show where the mask is, and of which label; -: where none is."""
    found = np.zeros((*GRID, 3), np.float32)
    found[..., 2] = 1
    found[place_of(number)] = 0
    found[(*place_of(number), number % 2)] = 1
    return found.reshape(16, 3)


def run(data, regions_of, **options):
    given = {"epochs": 40, "learning_rate": 0.05, "decoder": "linear", "bootstrap": 100}
    return Segmentation(Regions(regions_of), data, **given | options).run(None)


# --- masks


@pytest.mark.parametrize("resize", RESIZES)
def test_masks_follow_the_image(resize):
    """A mask is where the same shape, drawn into the image, is after preprocessing."""
    mask = np.zeros((24, 40), bool)
    mask[4:20, 10:30] = True
    preprocess = Preprocess(16, resize=resize)
    found = resampled(mask, preprocess.geometry(24, 40), 16, 16)
    image = preprocess(mask.astype(np.uint8) * 255)
    sure = (image < 64) | (image > 191)  # pixels that the edge of the mask does not cross
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(found[sure], image[sure] > 127)
    seen = segmentation.visible(24, 40, preprocess.geometry(24, 40), 16, 16)
    white = preprocess(np.full((24, 40), 255, np.uint8))
    np.testing.assert_array_equal(seen, white > 127)
    assert seen.all() == (resize != "pad")
    geometry = preprocess.geometry(24, 40)
    twice = resampled(mask, geometry, 16, 32)
    for row, column in np.ndindex(32, 32):
        y = ((row + 0.5) / 2 - geometry.offset_y) / geometry.scale_y
        x = ((column + 0.5) / 2 - geometry.offset_x) / geometry.scale_x
        within = 0 <= y < 24 and 0 <= x < 40
        assert twice[row, column] == (within and mask[int(y), int(x)])


def test_a_crop_keeps_the_pixels_under_it():
    rng = np.random.default_rng(0)
    mask = rng.random((20, 20)) < 0.5
    crop = Geometry(1.0, 1.0, -2.0, -3.0)
    np.testing.assert_array_equal(resampled(mask, crop, 8, 8), mask[2:10, 3:11])


def test_dice_by_hand_and_the_rule_of_empty_masks():
    truth, predicted = np.zeros((4, 2, 2, 1), bool), np.zeros((4, 2, 2, 1), bool)
    valid = np.ones((4, 2, 2), bool)
    truth[0, 0, :, 0] = predicted[0, :, 0, 0] = True  # 2 and 2 pixels, one shared
    predicted[2, 0, 0, 0] = True  # empty mask, prediction that is not
    truth[3, 0, 0, 0] = True  # mask that is missed
    found = judged(predicted, truth, valid)
    np.testing.assert_allclose(found["dice"][:, 0], [0.5, 1, 0, 0])
    np.testing.assert_allclose(found["dice_not_empty"][:, 0], [0.5, np.nan, np.nan, 0])
    np.testing.assert_allclose(found["iou"][:, 0], [1 / 3, 1, 0, 0])
    valid[2, 0, 0] = False  # what lies in the padding does not count
    assert judged(predicted, truth, valid)["dice"][2, 0] == 1


def test_losses_leave_padding_out():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 4, 4, 3)).astype(np.float32)
    masks = rng.random((2, 4, 4, 3)) < 0.4
    valid = np.ones((2, 4, 4), bool)
    valid[1, 2:] = False
    found = image_losses(jnp.asarray(logits), jnp.asarray(masks), jnp.asarray(valid), 10.0)
    for row, height in enumerate((4, 2)):
        x, y = (
            jnp.asarray(logits[row : row + 1, :height]),
            jnp.asarray(masks[row : row + 1, :height]),
        )
        expected = dice_loss(x, y) + 10 * focal_loss(x, y, alpha=-1.0)
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-5)
    changed = np.where(valid[..., None], logits, 99.0).astype(np.float32)
    same = image_losses(jnp.asarray(changed), jnp.asarray(masks), jnp.asarray(valid), 10.0)
    np.testing.assert_array_equal(found, same)


# --- planted features


def test_features_that_show_the_masks():
    data = splits()
    options = {"epochs": 80, "learning_rate": 0.1, "decoder": "linear", "patience": 20}
    evaluator = Segmentation(Regions(planted), data, **options)
    results = evaluator.run(None)
    values = results.values
    assert results.protocol == "segmentation@1" and results.n == 12 and not results.excluded
    assert list(values)[:3] == ["dice", "dice_not_empty", "iou"]
    # Interpolation between regions rounds the corners of a region.
    assert values["dice"].value > 0.9 and values["dice_not_empty"].value > 0.85
    assert values["dice_images_permuted"].value < 0.6 < values["dice"].low
    assert values["dice_gain"].low > 0.2 and values["dice_gain"].chance == 0
    assert values["label/nodule/dice"].n == 12 and values["dice_not_empty"].n == 12
    # Black images tell nothing: the decoder of pixels is a constant.
    assert values["dice_gain_over_raw_pixels"].low > 0.2
    assert results.details["labels"]["nodule"]["empty_masks"] == 0.5
    assert results.details["labels"]["nodule"]["pixels"] == pytest.approx(1 / 32)
    assert results.details["training"]["chosen_on"] == "the loss on fake/val"
    json.dumps(results.to_dict(), allow_nan=False)
    assert set(evaluator.headline) <= set(values)
    assert build.find("evaluator", "segmentation") is Segmentation


def test_the_same_seed_gives_the_same_values():
    first, again, other = (
        run(splits(), planted, epochs=2, seed=seed).to_dict() for seed in (0, 0, 1)
    )
    assert first == again and first["values"]["dice"] != other["values"]["dice"]


@pytest.mark.exhaustive
def test_a_convolutional_decoder_learns_them_too():
    values = run(splits(), planted, decoder="convolutional", width=8, epochs=60, learning_rate=0.01)
    assert values.values["dice"].value > 0.9


def test_constant_predictors_by_hand():
    """Half of the masks of each label are empty, the others are a sixteenth of the image."""
    values = run(splits(), planted, epochs=1).values
    assert values["dice_background"].value == values["iou_background"].value == 0.5
    assert values["dice_foreground"].value == pytest.approx(0.5 * 2 / 17)
    assert values["iou_foreground"].value == pytest.approx(0.5 / 16)
    assert values["dice_not_empty_background"].value == 0
    assert values["dice_not_empty_foreground"].value == pytest.approx(2 / 17)


def test_masks_of_one_place_are_found_by_the_mean_mask():
    class Same(Places):
        def masks(self, number):
            mask = np.zeros((32, 32), bool)
            mask[:8, :16] = True
            return {"lung": mask}

    data = Same(6, splits={"train": Same(6, name="fake/train", first=50)})
    data.splits["val"] = Same(4, name="fake/val", first=90)
    results = run(data, planted, epochs=1)
    assert results.values["dice_mean_mask"].value == results.values["iou_mean_mask"].value == 1
    assert results.details["labels"]["lung"]["empty_masks"] == 0


def test_constant_features_give_one_mask_for_all_images():
    values = run(splits(), lambda number: np.ones((16, 3), np.float32)).values
    assert values["dice"].value == values["dice_images_permuted"].value
    assert values["dice_gain"].value == 0
    # Nothing that ignores the image beats the best constant by much.
    assert values["dice"].value <= values["dice_background"].value + 0.05


def test_random_features_gain_nothing():
    def noise(number):
        return np.random.default_rng(number).normal(size=(16, 3)).astype(np.float32)

    values = run(splits(own=60), noise).values
    assert values["dice_gain"].low <= 0.02 and values["dice_gain"].high >= -0.02


def test_features_of_the_inverted_place_miss_every_mask():
    """The decoder is trained where features are right and judged where they are wrong."""

    def regions_of(number):
        return planted(number) if number >= 1000 else np.roll(planted(number), 10, axis=0)

    values = run(splits(), regions_of, epochs=60).values
    assert values["dice_not_empty"].value == 0


# --- training


def test_nothing_is_chosen_on_the_evaluated_split():
    data = splits(name="fake/val")
    results = run(data, planted, epochs=3, patience=1)
    details = results.details["training"]
    assert details["chosen_on"].startswith("nothing")
    assert details["epochs_run"] == details["epoch_used"] == {"regions": 3, "raw_pixels": 3}
    # On the test split training stops early, here because the loss cannot fall further.
    stopped = run(splits(), planted, epochs=50, patience=2, learning_rate=10.0)
    found = stopped.details["training"]
    assert found["epochs_run"]["regions"] == found["epoch_used"]["regions"] + 2 < 50


def test_the_last_block_is_filled_up_and_changes_nothing():
    def of(*arrays):
        return sum(arrays)

    x = np.arange(7.0)
    np.testing.assert_array_equal(segmentation._in_blocks(of, (x, x), 3), 2 * x)


def test_raw_pixels_are_the_patches_of_the_regions():
    class Pictures(Places):
        def image(self, index):
            return np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE, 1)

    data = splits()
    evaluator = Segmentation(Regions(planted), data)
    truth = evaluator._truths["own"]
    found = evaluator._pixels(Pictures(12), truth)
    image = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) / np.float32(255)
    assert found.shape == (12, 16, 16)
    np.testing.assert_array_equal(found[0, 6].reshape(4, 4), image[4:8, 8:12])


# --- what is left out and refused


def test_labels_and_examples_that_are_left_out():
    class Partly(Places):
        def record(self, index):
            made = super().record(index)
            return dataclasses.replace(made, masks=made.masks if index % 4 else None)

    data = Partly(8, splits={"train": Partly(12, first=1000, name="fake/train")})
    data.splits["val"] = Partly(8, first=2000, name="fake/val")
    results = run(data, planted, epochs=1, labels=("nodule",), max_train=5)
    assert results.n == 6 and list(results.details["labels"]) == ["nodule"]
    assert results.excluded == {
        "no masks": 2,
        "training images without masks": 3,
        "training images above max_train": 4,
        "masks of other labels": 4,
    }
    assert results.details["training"]["images"] == 5


def test_what_is_refused():
    predict, data = Regions(planted), splits()

    class Maskless(Places):
        def record(self, index):
            return dataclasses.replace(super().record(index), masks=None)

    for options, message in (
        ({"decoder": "unet"}, "decoder is 'unet'; choices: convolutional, linear"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"reads": {"regions": "image.pooled"}}, "needs image.pooled of an image tower"),
    ):
        with pytest.raises(InputError, match=message):
            Segmentation(predict, data, **options)
    data.splits["train"].splits = data.splits
    with pytest.raises(InputError, match="cannot evaluate fake/train; choose val or test"):
        Segmentation(predict, data.splits["train"])
    with pytest.raises(InputError, match="no other splits"):
        Segmentation(predict, Places(4))
    with pytest.raises(InputError, match="no record of fake/test has masks"):
        Segmentation(predict, Maskless(4, splits=data.splits))
    with pytest.raises(InputError, match=r"no training mask of lung .*: effusion, nodule"):
        Segmentation(predict, data, labels=("lung",)).run(None)
    with pytest.raises(InputError, match="expected 16 regions"):
        run(data, lambda number: np.zeros((4, 3), np.float32))
    with pytest.raises(FloatingPointError, match="first fake:3"):
        run(data, lambda number: planted(number) * (np.nan if number == 3 else 1), epochs=1)

    class Other(Places):
        def record(self, index):
            image = ImageRef("k", functools.partial(blank, 30, 32))
            return dataclasses.replace(super().record(index), images=(image,))

    with pytest.raises(InputError, match=r"fake:0: the mask of 'nodule' has 32 x 32 .* 32 x 30"):
        run(Other(4, splits=data.splits), planted)
