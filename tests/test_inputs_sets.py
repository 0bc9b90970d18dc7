"""Crops, sets of images and bags of features: what they hold, and that it is reproducible."""

import dataclasses
import functools
import pickle
import re

import numpy as np
import pytest

from mmrl.data.batches.pipeline import Examples, training_batches
from mmrl.data.corpus import read_corpus
from mmrl.data.image.load import Load
from mmrl.data.inputs import base as inputs
from mmrl.data.inputs.crops import Recent
from mmrl.types import ImageRef, InputError, Record
from tests import toys
from tests.test_inputs import Studies, arrays_of, config, features, made_of, read, rows

NAMES = (
    "image.embedding",
    "image@wide.embedding",
    "image@local.embedding",
    "image@images.embedding",
    "vector@bag.embedding",
    "image@prior.embedding",
    "text@prior_text.embedding",
)


def ramp(index: int) -> np.ndarray:
    """Brighter to the right and, by index, as a whole."""
    return np.tile(np.arange(0, 200, 5, dtype=np.uint8) + np.uint8(index), (40, 1))


class Ramps(Studies):
    """Studies with one image each, whose columns can be told apart."""

    def __getitem__(self, index: int) -> Record:
        image = ImageRef(str(index), functools.partial(ramp, index), "PA")
        return dataclasses.replace(super().__getitem__(index), images=(image,))


def several(**changes):
    """A config with wide and local crops."""
    chosen = config(**changes)
    chosen.inputs.wide = {"name": "crops", "num_crops": 2, "crop_scale": (0.4, 1.0)}
    chosen.inputs.local = {
        **{"name": "crops", "num_crops": 5, "crop_size": 8, "crop_scale": (0.05, 0.3)},
        **{"brightness": 0.2, "rotate": 5.0},
    }
    return chosen


def opened(chosen, rows=None, **data):
    chosen.data.update(data)
    made = made_of(chosen, *NAMES)
    corpus = read(made, Studies(24))
    tokenizers = {"text": toys.tokenizer()}
    return training_batches(corpus, made, tokenizers, chosen.data, seed=3, batch_size=8, rows=rows)


def batches(chosen, count=4, start=0, **options):
    iterator = opened(chosen, **options)
    iterator.set_state({"global_next_index": 8 * start})
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_do_not_depend_on_threads_rows_or_where_they_resume():
    whole = batches(several())
    assert_equal(whole, batches(several(), num_threads=1))
    copied = pickle.loads(pickle.dumps(opened(several())._dataset))  # as workers get it
    assert_equal(whole, [copied[number] for number in range(4)])
    assert_equal(whole[2:], batches(several(), 2, start=2))
    for mine in (np.arange(0, 8, 2), np.arange(1, 8, 2)):
        part = batches(several(), rows=mine)
        assert_equal([{name: a[mine] for name, a in one.items()} for one in whole], part)


@pytest.mark.exhaustive
def test_worker_processes_make_the_same_batches():
    assert_equal(batches(several()), batches(several(), num_workers=2))


def test_every_crop_has_draws_of_its_own():
    chosen = several()
    corpus = read(made_of(chosen, "image.embedding"), Ramps(8))
    for name, count, side in (("wide", 2, 32), ("local", 5, 8)):
        one, found = arrays_of(chosen, name, corpus, range(8), train=True, tower="image")
        pixels = found["pixels"][..., 0].astype(int)
        assert pixels.shape == (8, count, side, side)
        spans = pixels.max(axis=(2, 3)) - pixels.min(axis=(2, 3))
        shares = (spans / 195) ** 2  # of the area; the aspect is near 1
        low, high = one.jitter.crop_scale
        assert low * 0.5 < shares.min() < shares.max() < 1.7 * high
        places = pixels[:, :, side // 2, side // 2] - np.arange(8)[:, None]
        assert len(set(places.ravel().tolist())) > 0.7 * places.size
        assert (np.diff(pixels.mean(axis=2), axis=2) >= 0).mean() > 0.9  # no flips


def test_a_further_crop_changes_no_other_one():
    chosen = several()
    corpus = read(made_of(chosen, "image.embedding"), Ramps(8))
    _, few = arrays_of(chosen, "local", corpus, range(8), train=True, tower="image")
    chosen.inputs.local.num_crops = 9
    _, many = arrays_of(chosen, "local", corpus, range(8), train=True, tower="image")
    np.testing.assert_array_equal(few["pixels"], many["pixels"][:, :5])


def test_an_example_has_the_same_crops_at_every_evaluation():
    chosen = several()
    corpus = read(made_of(chosen, "image.embedding"), Ramps(8))
    data = Examples(chosen, corpus, {})
    whole = data.arrays(["local"], range(8), "image")["local.pixels"]
    for index in (5, 2):
        alone = Examples(chosen, corpus, {}).arrays(["local"], [index], "image")["local.pixels"]
        np.testing.assert_array_equal(alone[0], whole[index])
    assert len({crop.tobytes() for crop in whole.reshape(-1, 64)}) == 40
    plain = several()
    for option in ("brightness", "rotate"):  # of training alone
        del plain.inputs.local[option]
    same = Examples(plain, corpus, {}).arrays(["local"], range(8), "image")["local.pixels"]
    np.testing.assert_array_equal(same, whole)


def test_wide_and_local_crops_decode_an_image_once(monkeypatch):
    seen = []
    call = Load.__call__

    def counted(self, index, number, *window):
        seen.append((index, number))
        return call(self, index, number, *window)

    monkeypatch.setattr(Load, "__call__", counted)
    for load_size, times in ((0, 1), (40, 2)):  # at another size it is loaded again
        chosen = several()
        chosen.inputs.local.load_size = load_size
        made = made_of(chosen, "image@wide.embedding", "image@local.embedding")
        corpus = read(made, Studies(24))
        seen.clear()
        place = inputs.Place(corpus, None, True)
        for one in pickle.loads(pickle.dumps([one.open(place) for one in made.values()])):
            one(rows(range(6)), {})
        assert len(seen) == 6 * times


def test_recent_images_are_those_of_the_key():
    recent = Recent()
    assert recent((1,), lambda: ["a"]) == ["a"] == recent((1,), lambda: ["b"])
    assert recent((2,), lambda: ["c"]) == ["c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"crop_size": 20},
            "config.inputs.local.crop_size=20; expected a multiple of 8, the patch size of its "
            "tower",
        ),
        (
            {"crop_size": 48, "load_size": 40},
            "config.inputs.local.crop_size=48; expected at most load_size=40",
        ),
    ],
)
def test_crops_that_a_tower_cannot_read_are_refused(options, message):
    chosen = several()
    chosen.inputs.local.update(options)
    with pytest.raises(InputError, match=re.escape(message)):
        made_of(chosen, "image@local.embedding")


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("most", [1, 2, 4])
def test_images_are_a_set_in_the_order_of_the_record(most):
    chosen = config()
    chosen.inputs.images.max_images = most
    made = made_of(chosen, "image@images.embedding")
    corpus = read(made, Studies(16))
    met = set()
    for train in (False, True):
        for step in range(20 if train else 1):
            place = inputs.Place(corpus, None, train)
            drawn = rows(range(16))
            drawn = drawn._replace(seeds=drawn.seeds + np.uint64(step))
            found = made["images"].open(place)(drawn, {})
            for index, (pixels, mask) in enumerate(zip(*found.values(), strict=True)):
                count = min(most, corpus.counts[index])
                assert mask.tolist() == [True] * count + [False] * (most - count)
                assert not pixels[count:].any()
                numbers = pixels[:count].max(axis=(1, 2, 3)) - 10 * index
                assert sorted(set(numbers.tolist())) == numbers.tolist()
                if train:
                    met.add((index, tuple(numbers.tolist())))
                else:
                    assert numbers.tolist() == list(range(count))
    ways = {1: [1, 2, 3], 2: [1, 1, 3], 4: [1, 1, 1]}[most]
    counts = corpus.counts.tolist()
    assert len(met) == sum(ways[count - 1] for count in counts)


def test_images_of_a_record_are_jittered_alike():
    class Twins(Studies):
        def __getitem__(self, index: int) -> Record:
            image = ImageRef("a", functools.partial(ramp, index), "PA")
            return dataclasses.replace(super().__getitem__(index), images=(image, image))

    chosen = config(data__crop_scale=(0.2, 0.6), data__brightness=0.3)
    corpus = read(made_of(chosen, "image.embedding"), Twins(6))
    _, found = arrays_of(chosen, "images", corpus, range(6), train=True, tower="image")
    np.testing.assert_array_equal(found["pixels"][:, 0], found["pixels"][:, 1])
    assert (np.diff(found["pixels"][:, 0].astype(int).mean(axis=(1, 2, 3))) != 1).all()


def test_a_set_of_images_is_refused_where_each_is_an_example():
    with pytest.raises(InputError, match=r"config.data.views=each makes an example of every image"):
        made_of(config(data__views="each"), "image@images.embedding")


@pytest.mark.parametrize("train", [True, False])
def test_bags_hold_their_rows_in_order(train):
    chosen = config()
    corpus = read(made_of(chosen, "image.embedding"), Studies(20))
    _, found = arrays_of(chosen, "bag", corpus, range(20), train=train, tower="vector")
    for index in range(20):
        values, mask = found["values"][index], found["mask"][index]
        assert found["present"][index] == (index % 5 != 0) == mask.any()
        count = min(3, 1 + index % 7) if index % 5 else 0
        assert mask.tolist() == [True] * count + [False] * (3 - count)
        assert not values[count:].any() and (values[:count, 1:] == index).all()
        numbers = values[:count, 0].tolist()
        assert sorted(set(numbers)) == numbers
        if not train and count == 3:
            assert numbers == [0, round(index % 7 / 2), index % 7]


def test_training_draws_other_rows_of_a_bag_at_every_step():
    chosen = config()
    made = made_of(chosen, "vector@bag.embedding")
    corpus = read(made, Studies(20))
    reader = made["bag"].open(inputs.Place(corpus, None, True))
    met = set()
    for seed in range(200):
        seeds = np.array([seed], np.uint64)
        values = reader(inputs.Rows([13], 0, seeds), {})["values"]
        met.add(tuple(values[0, :, 0].tolist()))
    assert len(met) == 35  # of 7 rows 3 are drawn


def test_a_corpus_without_bags_or_of_another_width_is_refused():
    chosen = config()
    made = made_of(chosen, "vector@bag.embedding")
    with pytest.raises(InputError, match="no record of studies/train has a bag of features"):
        made["bag"].open(inputs.Place(read(made, toys.ToySource(4))))
    chosen.towers.vector.size = 6
    corpus = read(made, Studies(4))
    message = r"record toy:1: features \[2, 5\]; input 'bag' needs \[S, 6\], the size of its tower"
    with pytest.raises(InputError, match=message):
        arrays_of(chosen, "bag", corpus, [3], tower="vector")  # the first bag, before any batch


def test_a_bag_that_cannot_be_used_names_its_record():
    class Broken(Studies):
        def __getitem__(self, index: int) -> Record:
            return dataclasses.replace(super().__getitem__(index), bag=lambda: features(3)[0])

    corpus = read_corpus("toy/train", Broken(2), sections=("findings",))
    message = r"record toy:1: features float16\[5\]; expected float16 or float32 \[S, F\]"
    with pytest.raises(InputError, match=message):
        corpus.bag(1)


class Coloured(Studies):
    """Studies in colour."""

    channels = 3

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        images = tuple(
            dataclasses.replace(one, load=functools.partial(stained, one.load))
            for one in record.images
        )
        return dataclasses.replace(record, images=images)


def stained(load) -> np.ndarray:
    return np.stack([load(), 2 * load(), 0 * load()], axis=-1)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["local", "images", "prior"])
def test_images_have_the_channels_of_the_tower(name, train):
    for source, colour, channels in (
        (Coloured, "as_stored", 3),
        (Coloured, "grey", 1),
        (Studies, "rgb", 3),
    ):
        chosen = several(data__colour=colour, towers__image__channels=channels)
        corpus = read(made_of(chosen, "image.embedding"), source(8))
        one, found = arrays_of(chosen, name, corpus, range(8), train=train, tower="image")
        pixels = found["pixels"].astype(int)
        assert pixels.shape == (8, *one.shapes()["pixels"][0]) and pixels.shape[-1] == channels
        assert pixels.any()
        if source is Studies:
            assert (pixels == pixels[..., :1]).all()
        elif channels == 3 and name == "images":
            np.testing.assert_array_equal(pixels[..., 1], 2 * pixels[..., 0])
            assert not pixels[..., 2].any()


def test_pictures_of_a_set_show_its_first_image():
    chosen = config(towers__image__input="images")
    corpus = read(made_of(chosen, "image.embedding"), Studies(6))
    data = Examples(chosen, corpus, {})
    assert data.preprocessing["set_size"] == 2
    first = Examples(config(), corpus, {})
    assert "set_size" not in first.preprocessing
    np.testing.assert_array_equal(data.image(3), first.image(3))
    shown = data.pixels("image.embedding", [3, 1])
    np.testing.assert_array_equal(shown, first.pixels("image.embedding", [3, 1]))
