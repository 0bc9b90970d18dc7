"""Phrase grounding: its metrics, the space of pixels, planted encoders and what it refuses."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mmrl import build
from mmrl.data.image.images import Geometry, Preprocess
from mmrl.evaluators import metrics, statistics
from mmrl.evaluators.grounding import (
    Frame,
    Grounding,
    Phrase,
    box_mask,
    cells,
    frame,
    heat_map,
    judged,
)
from mmrl.types import Box, ImageRef, InputError, Record
from tests.places import GRID, SIZE, Places, Regions, blank, place_of

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
EAST = np.array([1.0, 0.0, 0.0], np.float32)
OTHER = np.array([0.0, 1.0, 0.0], np.float32)


# --- metrics


def test_contrast_is_signed_and_leaves_nan_out():
    heat = np.array([[3.0, 5.0, np.nan], [0.0, 2.0, 1.0]])
    mask = np.array([[1, 1, 1], [0, 0, 0]], bool)
    # Inside 3, 5: mean 4, variance 1. Outside 0, 2, 1: mean 1, variance 2 / 3.
    assert metrics.contrast_to_noise(heat, mask) == pytest.approx(3 / np.sqrt(5 / 3))
    assert metrics.contrast_to_noise(-heat, mask) == pytest.approx(-3 / np.sqrt(5 / 3))
    assert metrics.contrast_to_noise(7 * heat + 2, mask) == pytest.approx(3 / np.sqrt(5 / 3))
    assert metrics.contrast_to_noise(np.full((2, 3), 0.1), mask) == 0
    assert metrics.contrast_to_noise(mask * 0.1, mask) == np.inf
    for wrong in (np.zeros_like(mask), np.ones_like(mask)):
        with pytest.raises(ValueError, match="inside the mask"):
            metrics.contrast_to_noise(heat, wrong)
    with pytest.raises(ValueError, match="must be alike"):
        metrics.contrast_to_noise(heat, mask[:, :2])


def test_mean_iou_by_hand():
    heat = np.array([[0.45, 0.2, np.nan], [0.25, -1.0, 0.6]])
    mask = np.array([[1, 1, 1], [0, 0, 0]], bool)
    # Above .1: 4 of which 2 inside; .2: 3 and 1; .3: 2 and 1; .4: 2 and 1; .5: 1 and 0.
    expected = np.mean([2 / 4, 1 / 4, 1 / 3, 1 / 3, 0 / 3])
    assert metrics.mean_iou(heat, mask) == pytest.approx(expected)
    assert metrics.mean_iou(np.maximum(heat, 0), mask) == pytest.approx(expected)
    assert metrics.mean_iou(heat, mask, thresholds=(0.5,)) == 0
    assert metrics.mean_iou(mask.astype(float), mask) == 1
    assert metrics.mean_iou(np.ones((2, 3)), mask) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="inside the mask"):
        metrics.mean_iou(heat, np.zeros_like(mask))


# --- the space of pixels


GEOMETRIES = {
    "pad": Preprocess(SIZE).geometry(23, 37),
    "stretch": Preprocess(SIZE, resize="stretch").geometry(23, 37),
    "crop": Preprocess(SIZE, resize="crop").geometry(23, 37),
    # The short side becomes 20, of which the centre 16 are kept.
    "crop of both sides": Geometry(20 / 23, 20 / 23, -2.0, (16 - 37 * 20 / 23) / 2),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_counts_of_cells_equal_the_pixels_of_the_whole_map(name):
    geometry, rng = GEOMETRIES[name], np.random.default_rng(0)
    boxes = [(3.2, 2.0, 15.0, 9.7), (11.0, 6.0, 30.0, 20.0)]
    regions = rng.normal(size=(4, 2)).astype(np.float32)
    heat, mask = heat_map(regions, 23, 37, geometry, SIZE), box_mask(boxes, 23, 37)
    for y, x in [(0, 0), (11, 18), (22, 36), (5, 30)]:
        row = ((y + 0.5) * geometry.scale_y + geometry.offset_y) * 4 / SIZE
        column = ((x + 0.5) * geometry.scale_x + geometry.offset_x) * 2 / SIZE
        if 0 <= row < 4 and 0 <= column < 2:
            assert heat[y, x] == regions[int(row), int(column)]
        else:
            assert np.isnan(heat[y, x])
        assert mask[y, x] == any(a <= x + 0.5 < c and b <= y + 0.5 < d for a, b, c, d in boxes)
    assert np.isnan(heat).any() == ("crop" in name)
    one = frame(boxes, 23, 37, geometry, SIZE, (4, 2))
    assert (one.inside + one.outside).sum() == np.isfinite(heat).sum()
    assert one.inside.sum() == (mask & np.isfinite(heat)).sum()
    found = judged(regions[None], type(one)(*(part[None] for part in one)), THRESHOLDS)
    assert found["cnr"][0] == pytest.approx(metrics.contrast_to_noise(heat, mask))
    assert found["miou"][0] == pytest.approx(metrics.mean_iou(heat, mask))


def test_the_padding_of_the_square_holds_no_pixel():
    rows, columns = cells(8, 16, Preprocess(SIZE).geometry(8, 16), SIZE, GRID)
    assert sorted(set(rows)) == [1, 2] and sorted(set(columns)) == [0, 1, 2, 3]
    one = frame([(0, 0, 4, 4)], 8, 16, Preprocess(SIZE).geometry(8, 16), SIZE, GRID)
    assert one.inside[1, 0] == 16 and one.outside[1, 0] == 0 and one.centre[1, 0]
    assert one.inside.sum() == 16 and (one.inside + one.outside)[[0, 3]].sum() == 0
    # A peak in the padding is not of the image: the greatest region of the image counts.
    maps = np.zeros((1, *GRID))
    maps[0, 0, 0], maps[0, 1, 0] = 9, 1
    found = judged(maps, type(one)(*(part[None] for part in one)), THRESHOLDS)
    assert found["pointing"][0] == 1


# --- planted encoders


def at_box(number):
    """Regions that show the phrase in its box alone."""
    found = np.tile(OTHER, (*GRID, 1))
    found[place_of(number)] = EAST
    return found.reshape(16, 3)


def evaluate(data, regions_of, phrase_of=lambda text: EAST, **options):
    evaluator = Grounding(Regions(regions_of, phrase_of), data, **options)
    return evaluator, evaluator.run(None)


def test_an_encoder_that_knows_every_place():
    data = Places(60)
    evaluator, results = evaluate(data, at_box, sigma=0.7)
    values = results.values
    assert results.protocol == "grounding@1" and results.n == 60 and not results.excluded
    assert list(values)[:3] == ["cnr", "miou", "pointing"]
    assert (values["pointing"].value, values["pointing"].low) == (1, 1)
    assert values["pointing"].chance == pytest.approx(1 / 16)
    assert values["cnr"].low > 2 and values["cnr"].n == 60
    sharp = evaluate(data, at_box, sigma=0.0)[1]
    assert sharp.values["miou"].value == 1
    # The map is constant on both sides, so that its contrast is infinite: stated, not averaged.
    assert "cnr" not in sharp.values and sharp.details["infinite_contrast"] == 60
    for row in ("images_permuted", "boxes_permuted"):
        blind = values[f"pointing_{row}"]
        assert blind.low <= 1 / 16 + 0.03 and blind.high < 0.2
        assert values[f"cnr_{row}"].value == pytest.approx(0, abs=0.5)
    assert values["pointing_gain"].low > 0.7 and values["cnr_gain_over_prior"].low > 1.5
    assert values["pointing_gain"].chance == 0
    assert results.details["classes"]["nodule"]["box_area_share"] == pytest.approx(1 / 16)
    assert results.details["classes"]["nodule"]["phrases"] == 30
    assert values["class/nodule/pointing"].n == 30
    json.dumps(results.to_dict(), allow_nan=False)
    assert list(evaluator.headline) == list(values)[:3]
    assert build.find("evaluator", "grounding") is Grounding


def test_an_inverted_encoder_never_points_into_a_box():
    _, results = evaluate(Places(30), lambda n: -at_box(n), sigma=0.7)
    assert results.values["pointing"].value == 0 and results.values["cnr"].high < -2
    assert results.values["miou"].value == 0


@pytest.mark.parametrize("scale", [0.0, 3e-8])
def test_a_constant_encoder_gives_the_row_of_the_constant_map(scale):
    def regions_of(number):
        rng = np.random.default_rng(number)
        return (np.tile(EAST, (16, 1)) + scale * rng.normal(size=(16, 3))).astype(np.float32)

    values = evaluate(Places(20), regions_of)[1].values
    for metric in ("cnr", "miou", "pointing"):
        for row in ("", "_images_permuted", "_boxes_permuted"):
            assert values[metric + row].value == values[f"{metric}_constant_map"].value
        assert values[f"{metric}_gain"].value == 0
    assert values["cnr"].value == 0 and values["pointing"].value == 0
    assert values["miou"].value == pytest.approx(1 / 16)


def test_a_random_encoder_is_at_chance():
    def regions_of(number):
        return np.random.default_rng(number).normal(size=(16, 3)).astype(np.float32)

    values = evaluate(Places(300), regions_of, sigma=0.0)[1].values
    assert values["pointing"].low <= 1 / 16 <= values["pointing"].high
    assert values["cnr"].low <= 0 <= values["cnr"].high
    for metric in ("cnr", "miou", "pointing"):
        assert values[f"{metric}_gain"].low <= 0 <= values[f"{metric}_gain"].high


def test_a_habit_of_the_class_is_the_prior_and_no_gain():
    """All nodules lie in one cell and all effusions in another; the encoder knows these alone."""

    class Habit(Places):
        def boxes(self, number):
            x = 8.0 * (number % 2)
            return (Box((x, 0.0, x + 8, 8.0), self.labels[number % 2]),)

    def regions_of(number):
        return np.eye(16, 3, dtype=np.float32)

    phrases = {"nodule": EAST, "effusion": OTHER}
    values = evaluate(Habit(20), regions_of, phrases.get, sigma=0.0)[1].values
    assert values["pointing"].value == values["pointing_prior_map"].value == 1
    for row in ("gain", "gain_over_prior"):
        assert values[f"pointing_{row}"].value == values[f"miou_{row}"].value == 0
    assert values["pointing_boxes_permuted"].value == 1


def test_the_prior_leaves_the_own_patient_out():
    """Two patients with a box each: the prior of one is the box of the other."""

    class Two(Places):
        def boxes(self, number):
            return (Box((8.0 * number, 0.0, 8.0 * number + 8, 8.0), "nodule"),)

    values = evaluate(Two(2), at_box)[1].values
    assert values["pointing_prior_map"].value == values["miou_prior_map"].value == 0
    alone = evaluate(Two(1), at_box)[1].values
    assert not [name for name in alone if "prior" in name or "permuted" in name]
    assert alone["pointing"].low is None


def test_the_prior_is_that_of_all_pairs_of_phrases():
    """Phrases of several classes, and patients with several phrases, against a table of pairs."""
    rng = np.random.default_rng(0)
    members = rng.random((40, 3)) < 0.5
    members[~members.any(axis=1), 0] = True
    patients = [f"p{n}" for n in rng.integers(0, 12, 40)]
    inside = rng.integers(0, 9, (40, *GRID))
    frames = Frame(inside, 9 - inside, rng.random((40, *GRID)) < 0.3)
    evaluator = Grounding(Regions(at_box, lambda text: EAST), Places(2))
    found = evaluator._prior(frames, members, patients)
    owner = np.asarray(patients)
    related = (members[:, None] & members).any(axis=2) & (owner[:, None] != owner)
    maps = np.round([(inside[row] / 9).mean(axis=0) for row in related], 9)
    for name, expected in judged(maps, frames, evaluator.thresholds).items():
        np.testing.assert_allclose(found[name], expected, err_msg=name)


def test_a_part_of_the_images_can_be_judged():
    data = Places(12)
    values = Grounding(
        Regions(at_box, lambda text: EAST), statistics.Subset(data, range(3, 9)), sigma=0.0
    ).run(None)
    assert values.n == 6 and values.values["pointing"].value == 1


# --- phrases and classes


def test_a_value_is_the_mean_over_classes_of_their_means():
    class Uneven(Places):
        def boxes(self, number):
            (box,) = super().boxes(number)
            return (dataclasses.replace(box, label="rare" if number == 0 else "frequent"),)

    def regions_of(number):
        return at_box(number) if number == 0 else -at_box(number)

    values = evaluate(Uneven(9), regions_of, sigma=0.7)[1].values
    assert values["pointing"].value == 0.5  # not 1 / 9
    assert values["class/rare/pointing"].value == 1
    assert values["class/frequent/pointing"].value == 0


def test_boxes_of_one_image_and_phrase_are_merged():
    class Several(Places):
        def record(self, index):
            image = ImageRef("shared", functools.partial(blank, 32, 32))
            boxes = {
                0: [("nodule", 0, 0), ("effusion", 8, 0)],
                1: [("nodule", 24, 0)],
                2: [("nodule", 16, 0)],
            }[index]
            made = super().record(index)
            return dataclasses.replace(
                made,
                images=(image,) if index < 2 else made.images,
                boxes=tuple(
                    Box((x, y, x + 8.0, y + 8.0), label, sentence=0) for label, x, y in boxes
                )
                + (Box((0, 0, 8, 8), "nodule", sentence=0, image=1),),
                sentences=(("findings", "Nodules."),),
            )

    data = Several(3)
    data.patients = ["p", "p", "q"]
    evaluator = Grounding(Regions(at_box, lambda text: EAST), data)
    assert [(len(p.boxes), p.labels, p.text, p.stated) for p in evaluator.phrases] == [
        (3, ("effusion", "nodule"), "Nodules.", True),
        (1, ("nodule",), "Nodules.", True),
    ]
    results = evaluator.run(None)
    assert results.excluded == {"boxes on an image that is not evaluated": 3}
    assert results.values["class/nodule/miou"].n == 2
    assert results.values["class/effusion/miou"].n == 1


def test_phrases_are_sentences_prompts_or_labels():
    data = Places(4, labels=("Pleural_Effusion", "nodule"))
    predict = Regions(at_box, lambda text: EAST)
    texts = [p.text for p in Grounding(predict, data).phrases]
    assert texts == [f"phrase {n}" for n in range(4)]
    chosen = Grounding(
        predict, data, sentences=False, prompts={"nodule": "A nodule is seen."}
    ).phrases
    assert [p.text for p in chosen] == ["pleural effusion", "A nodule is seen."] * 2
    assert not any(p.stated for p in chosen)


def test_maps_are_smoothed_cosines_and_regions_are_streamed():
    data, rng = Places(7), np.random.default_rng(0)
    vectors = {n: rng.normal(size=(16, 3)).astype(np.float32) for n in range(7)}
    phrase = rng.normal(size=3).astype(np.float32)
    predict = Regions(vectors.get, lambda text: phrase, block=2)
    evaluator = Grounding(predict, data)
    asked = [Phrase(n, f"phrase {n}", ("nodule",), (), True) for n in (4, 0)]
    maps = evaluator.maps(None, asked, [[4, 0], [6, 0]])
    for m, row in enumerate([[4, 0], [6, 0]]):
        for n, number in enumerate(row):
            regions = vectors[number] / np.linalg.norm(vectors[number], axis=1, keepdims=True)
            cosines = (regions @ (phrase / np.linalg.norm(phrase))).reshape(GRID)
            expected = ndimage.gaussian_filter(cosines, 1.5, mode="reflect")
            np.testing.assert_allclose(maps[m, n], expected, atol=1e-6)
    whole = dataclasses.replace(predict, block=100)
    same = Grounding(whole, data).run(None)
    assert same.to_dict() == evaluator.run(None).to_dict()


def test_subgroups_have_rows_of_their_own():
    class Sexes(Places):
        def record(self, index) -> Record:
            attributes = {"sex": "F" if index < 20 else "M"}
            return dataclasses.replace(super().record(index), attributes=attributes)

    def regions_of(number):
        return at_box(number) if number < 20 else -at_box(number)

    values = evaluate(Sexes(40), regions_of, sigma=0.7)[1].values
    assert values["subgroup/sex=F/pointing"].value == 1
    assert values["subgroup/sex=M/pointing"].value == 0
    assert values["subgroup/sex=M/pointing"].n == 20


def test_the_figure_shows_phrases_of_all_classes(tmp_path):
    data = Places(12)
    evaluator, results = evaluate(data, at_box, sigma=0.7)
    (figure,) = evaluator.figures(None, results, [])
    (examples,) = figure.draw.args
    assert [one.boxes[0][0] for one in examples] == ["effusion", "nodule"] * 3
    for one in examples:
        index = int(one.id.removeprefix("fake:"))
        row, column = place_of(index)
        assert one.words[0][0] in {
            phrase.text for phrase in evaluator.phrases if phrase.index == index
        }
        assert one.text == data.texts[index]
        assert np.unravel_index(one.words[0][1].argmax(), GRID) == (row, column)
        assert one.boxes[0][1] == (4 * column, 4 * row, 4 * column + 4, 4 * row + 4)
    figure.draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size[0] > 500


# --- what is refused


def test_boxes_that_cannot_be_judged_are_excluded_and_counted():
    class Odd(Places):
        def boxes(self, number):
            corners = {0: (0, 0, 32, 32), 1: (40, 40, 50, 50)}.get(number, (0, 0, 8, 8))
            return (Box(tuple(map(float, corners)), "nodule", sentence=0),)

    results = evaluate(Odd(5), at_box)[1]
    assert results.n == 3
    assert results.excluded == {
        "no pixel of the boxes is in the image that the encoder sees": 1,
        "the boxes fill the image": 1,
    }
    with pytest.raises(InputError, match="can be judged: 1 times the boxes fill the image"):
        evaluate(Odd(1), at_box)


def test_what_is_refused():
    predict, data = Regions(at_box, lambda text: EAST), Places(4)

    class Boxless(Places):
        def boxes(self, number):
            return ()

    for options, message in (
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"thresholds": (1.5,)}, "thresholds are"),
        ({"count": 0}, "count is 0"),
        ({"reads": {"phrases": "text.words"}}, "needs text.words, the encoders provide"),
    ):
        with pytest.raises(InputError, match=message):
            Grounding(predict, data, **options)
    with pytest.raises(InputError, match=r"no record of fake/test has a box \(4 examples\)"):
        Grounding(predict, Boxless(4))
    with pytest.raises(InputError, match=r"expected 16 of the width of text\.sentence, 2"):
        evaluate(data, at_box, lambda text: np.ones(2, np.float32))
    with pytest.raises(InputError, match="expected a vector per phrase"):
        evaluate(data, at_box, lambda text: np.ones((2, 3), np.float32))
    with pytest.raises(FloatingPointError, match=r"first fake:2"):
        evaluate(data, lambda n: at_box(n) * (np.nan if n == 2 else 1))


# --- means over classes


def test_intervals_of_class_means_equal_drawing_patients_one_by_one():
    rng = np.random.default_rng(3)
    patients = [f"p{n}" for n in rng.integers(0, 6, 20)]
    members = rng.random((20, 3)) < 0.4
    members[~members.any(axis=1), 0] = True
    values = rng.normal(size=20)
    values[4] = np.nan
    found = statistics.class_means({"a": (values, 0.5)}, members, patients, samples=200, seed=1)[
        "a"
    ]

    def mean(rows):
        means = [
            np.nanmean(values[rows][members[rows, c]])
            for c in range(3)
            if np.isfinite(values[rows][members[rows, c]]).any()
        ]
        return np.mean(means)

    names, draws = sorted(set(patients)), np.random.default_rng(1)
    rows_of = {name: [i for i, one in enumerate(patients) if one == name] for name in names}
    drawn = [
        mean(np.array([i for pick in picks for i in rows_of[names[pick]]]))
        for picks in draws.integers(len(names), size=(200, len(names)))
    ]
    assert found.value == pytest.approx(mean(np.arange(20)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert found.n == 19 and found.chance == 0.5
