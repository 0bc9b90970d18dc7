"""Rows of a batch are what the steps give one after the other, however they are put together."""

import functools

import numpy as np
import pytest

from mmrl import wiring
from mmrl.data import counter
from mmrl.data.batches import sequence
from mmrl.data.corpus import Corpus, read_corpus
from mmrl.data.image.images import RESIZES, Preprocess
from mmrl.data.image.jitter import DRAWS, Jitter
from mmrl.data.image.load import Load
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.base import Rows
from mmrl.types import ImageRef, InputError, Record
from tests import toys

SHAPES = ((40, 40), (40, 31), (23, 40), (9, 40), (64, 50), (17, 90), (20, 20), (1, 5))


def image(index: int) -> np.ndarray:
    """Of every shape, each second one of 16 bits."""
    kind = (np.uint8, np.uint16)[index // len(SHAPES) % 2]
    rng = np.random.default_rng(index)
    return rng.integers(1, np.iinfo(kind).max, SHAPES[index % len(SHAPES)], kind)


class Shapes(toys.ToySource):
    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        shown = ImageRef(str(index), functools.partial(image, index))
        return Record(**{**vars(record), "images": (shown,)})


@functools.cache
def corpus() -> Corpus:
    return read_corpus("shapes/train", Shapes(32), sections=("findings",))


def rows_at(seed: int, positions) -> Rows:
    """The random streams at positions of the endless sequence."""
    return Rows([], 0, counter.bits(np.uint64(seed), np.asarray(positions)))


JITTERS = [
    {},
    {"load_size": 40},
    {"load_size": 40, "gamma": 0.3, "brightness": 0.2, "contrast": 0.2},
    {"load_size": 40, "brightness": 0.2},
    {"load_size": 33, "crop_scale": (0.3, 0.9)},
    {"load_size": 80, "crop_scale": (0.9, 1.0), "contrast": 0.3},
    {"load_size": 40, "rotate": 9.0},
    {"translate": 0.1},
    {"contrast": 0.3},
]


@pytest.mark.default_cases(6)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("jitter", JITTERS)
def test_rows_are_the_jitter_of_the_preprocessed_image(jitter, resize):
    changes = {"resize": resize, "cache_images": False, "aspect": (0.9, 1.1), **jitter}
    chosen = toys.without_copies(toys.config(**{f"data__{k}": v for k, v in changes.items()}))
    own, seed = inputs.make(chosen, wiring.wire(chosen)[0])["image"], sequence.example_seed(3)
    whole = {}
    for kept in (False, True):
        chosen.data.update({"cache_images": kept, "cache_mib": 1})
        made = toys.batches(chosen, 6, corpus(), seed=3)  # more than an epoch: caches are read
        for step, batch in enumerate(made):
            drawn = rows_at(seed, range(8 * step, 8 * step + 8)).stream("image/jitter")
            numbers = counter.uniforms(drawn[:, None], np.arange(DRAWS)).tolist()
            for row, index in enumerate(batch["index"].tolist()):
                square = whole.setdefault(index, own.loaded(image(index)))
                expected = np.empty(batch["image.pixels"].shape[1:3], np.uint8)
                own.jitter.apply(square, numbers[row], expected)
                np.testing.assert_array_equal(batch["image.pixels"][row, :, :, 0], expected)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("resize", RESIZES)
def test_a_part_of_the_square_is_written_as_it_lies_in_the_whole(resize):
    rng = np.random.default_rng(0)
    for size in (1, 8, 40):
        preprocess = Preprocess(size, resize)
        for index in range(2 * len(SHAPES)):
            whole = preprocess(image(index))
            assert whole.shape == (size, size) and whole.flags.c_contiguous
            for _ in range(20):
                height, width = rng.integers(1, size + 1, 2).tolist()
                top = int(rng.integers(size - height + 1))
                left = int(rng.integers(size - width + 1))
                out = rng.integers(1, 255, (height, width), np.uint8)
                assert preprocess(image(index), out, (top, left)) is out
                np.testing.assert_array_equal(out, whole[top : top + height, left : left + width])


def test_padding_is_black_and_the_content_is_where_geometry_says():
    for index in range(2 * len(SHAPES)):
        given = image(index)
        whole, place = Preprocess(40)(given), Preprocess(40).geometry(*given.shape)
        content = np.zeros((40, 40), bool)
        top, left = round(place.offset_y), round(place.offset_x)
        height = round(given.shape[0] * place.scale_y)
        width = round(given.shape[1] * place.scale_x)
        content[top : top + height, left : left + width] = True
        assert not whole[~content].any() and whole[content].any()


def test_what_is_preprocessed_is_never_the_image_that_was_given():
    square = image(0)
    for made in (Preprocess(40, resize)(square) for resize in RESIZES):
        np.testing.assert_array_equal(made, square)
        assert not np.shares_memory(made, square)


def test_a_part_of_a_cached_image_leaves_the_cache_as_it_was():
    load = Load(corpus(), Preprocess(40), 1)
    whole = load(2, 0).copy()
    out = np.empty((32, 32), np.uint8)
    assert load(2, 0, out, (3, 8)) is out and len(load.cache) == 1
    np.testing.assert_array_equal(out, whole[3:35, 8:40])
    out[:] = 7
    np.testing.assert_array_equal(load(2, 0), whole)


def test_seeds_depend_on_seed_and_position_alone_and_never_agree():
    names = ("image/jitter", "perturbed/copies", "image/view", "second/jitter", "text_2/copies")

    def streams(seed, positions):
        return [rows_at(seed, positions).stream(name) for name in names]

    whole, part = streams(5, range(1000)), streams(5, [3, 999, 10**15])
    for one, two in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[[3, 999]], two[:2])
    seen = np.concatenate([*whole, *streams(6, range(1000)), [draw[2] for draw in part]])
    assert len(np.unique(seen)) == len(seen) == 10_005


def test_a_jitter_from_numbers_is_that_from_their_generator():
    given = np.random.default_rng(0).integers(0, 255, (48, 48), np.uint8)
    for options in (
        {},
        {"size": 32},
        {"size": 32, "gamma": 0.4, "contrast": 0.2},
        {"size": 40, "crop_scale": (0.3, 1.0)},
        {"translate": 0.1, "rotate": 5.0, "brightness": 0.1},
    ):
        jitter = Jitter(**options)
        for seed in range(20):
            numbers = np.random.default_rng(seed).random(DRAWS).tolist()
            expected = jitter(given, np.random.default_rng(seed))
            out = np.empty_like(expected)
            assert jitter.apply(given, numbers, out) is out
            np.testing.assert_array_equal(out, expected)
            corner = jitter.window(48, numbers)
            assert (corner is None) == bool({"crop_scale", "rotate"} & set(options))
            if corner is not None:
                (top, left), (height, width) = corner, out.shape
                part = given[top : top + height, left : left + width].copy()
                np.testing.assert_array_equal(jitter.relight(part, numbers, part), expected)
    with pytest.raises(InputError, match="image of side 48; expected at least size 49"):
        Jitter(size=49).window(48, [0.0] * DRAWS)
