"""How pixels come to training: the fast path, sizes, views, memory."""

import pickle

import numpy as np

from mmrl.data.corpus import read_corpus
from mmrl.data.pipeline import Options, training_batches
from mmrl.data.sources.prepared import Prepared
from mmrl.data.tokenizer import Tokenizer
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
