"""How pixels come to training: the fast path, sizes, views, memory."""

import pickle

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data.corpus import read_corpus
from mmrl.data.images import Preprocess
from mmrl.data.jitter import Jitter
from mmrl.data.pipeline import Options, training_batches
from mmrl.data.sources.prepared import Prepared
from mmrl.data.tokenizer import Tokenizer
from mmrl.types import InputError
from tests import toys

CORPUS = toys.corpus()
TOKENIZER = Tokenizer.train(CORPUS.texts, vocab_size=300)


def options(**changes):
    return Options.from_config({**toys.config().data.to_dict(), **changes})


def batches(corpus, count, **changes):
    iterator = training_batches(
        corpus, TOKENIZER, options(**changes), seed=0, batch_size=8, with_perturbed=False
    )
    result = [next(iterator) for _ in range(count)]
    iterator.close()
    return result


def test_a_prepared_corpus_is_trained_on_without_building_records(tmp_path, monkeypatch):
    records = [toys.ToySource(20)[index] for index in range(20)]
    source = Prepared(split="train", path=str(toys.prepare(tmp_path / "toy", records)))
    corpus = read_corpus("prepared/train", source, sections=("findings",))
    expected = batches(corpus, 5)
    for batch in expected:
        for row, index in enumerate(batch["index"]):
            image = options().preprocess()(corpus.record(index).images[0].load())
            np.testing.assert_array_equal(batch["image"][row, :, :, 0], image)

    def refuse(*_):
        raise AssertionError("a record was built")

    monkeypatch.setattr(Prepared, "__getitem__", refuse)
    again = batches(corpus, 5)
    for one, two in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one["image"], two["image"])


def test_what_a_worker_needs_of_a_prepared_corpus_is_small(tmp_path):
    """Not the index with its texts, which the corpus holds already."""
    records = [toys.ToySource(200)[index] for index in range(200)]
    source = Prepared(split="train", path=str(toys.prepare(tmp_path / "toy", records)))
    image = pickle.loads(pickle.dumps(source.image))
    np.testing.assert_array_equal(image(17, 0), source[17].images[0].load())
    assert len(pickle.dumps(source.image)) < len(pickle.dumps(source)) / 10


def test_a_split_without_records_has_no_images(tmp_path):
    records = [toys.ToySource(3)[index] for index in range(3)]
    source = Prepared(split="val", path=str(toys.prepare(tmp_path / "toy", records)))
    assert len(source) == 0


def test_a_random_window_is_cut_from_the_loaded_size():
    """40 x 32 pixels padded to 40 x 40, of which 32 x 32 are seen, another part in each epoch."""
    (first, *_, last) = batches(CORPUS, 9, load_size=40, resize="pad")
    loaded = Preprocess(40)
    offsets = set()
    for batch in (first, last):
        for row, index in enumerate(batch["index"]):
            whole = loaded(CORPUS.image(int(index)))
            found = [
                (top, left)
                for top in range(9)
                for left in range(9)
                if np.array_equal(
                    batch["image"][row, :, :, 0], whole[top : top + 32, left : left + 32]
                )
            ]
            assert found
            offsets.update(found)
    assert len(offsets) > 8


def test_crops_from_the_loaded_size_are_warped_once():
    recipe = options(load_size=48, crop_scale=(0.5, 0.9), rotate=5.0, gamma=0.2).recipe()
    assert recipe.preprocess == Preprocess(48)
    assert recipe.jitter == Jitter(32, (0.5, 0.9), rotate=5.0, gamma=0.2)
    (batch,) = batches(CORPUS, 1, load_size=48, crop_scale=(0.5, 0.9), rotate=5.0, gamma=0.2)
    assert batch["image"].shape == (8, 32, 32, 1)


def test_evaluation_resizes_straight_to_the_size_of_the_model():
    assert options(load_size=40).preprocess() == Preprocess(32)


def test_jitters_out_of_range_are_refused_before_training():
    with pytest.raises(InputError, match="augment gamma 2; expected 0 to 1"):
        options(gamma=2)
    config = toys.config(data__load_size=31)
    with pytest.raises(InputError, match="load_size=31 must be 0 or at least"):
        configs.validate(config)
