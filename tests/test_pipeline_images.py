"""How pixels come to training: the fast path, sizes, views, memory."""

import dataclasses
import functools
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from mmrl import config as configs
from mmrl import wiring
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import Corpus, read_corpus, records
from mmrl.data.image.images import Preprocess
from mmrl.data.image.jitter import Jitter
from mmrl.data.image.load import Load
from mmrl.data.inputs import base as inputs
from mmrl.data.sources import prepared
from mmrl.data.sources.mixture import Mixture
from mmrl.data.sources.prepared import Prepared
from mmrl.types import Box, ImageRef, InputError, Record
from tests import toys

CORPUS = toys.corpus()


def config(size=32, **changes):
    """`changes` are keys of config.data."""
    changed = {f"data__{key}": value for key, value in changes.items()}
    return toys.without_copies(toys.config(towers__image__size=size, **changed))


def batches(corpus, count, **changes):
    return toys.batches(config(**changes), count, corpus)


def the_input(**changes):
    chosen = config(**changes)
    return inputs.make(chosen, wiring.wire(chosen)[0])["image"]


def test_a_prepared_corpus_is_trained_on_without_building_records(tmp_path, monkeypatch):
    made = [toys.ToySource(20)[index] for index in range(20)]
    source = Prepared(split="train", path=str(toys.prepare(tmp_path / "toy", made)))
    corpus = read_corpus("prepared/train", source, sections=("findings",))
    expected = batches(corpus, 5)
    for batch in expected:
        for row, index in enumerate(batch["index"]):
            image = Preprocess(32)(corpus.record(index).images[0].load())
            np.testing.assert_array_equal(batch["image.pixels"][row, :, :, 0], image)

    def refuse(*_):
        raise AssertionError("a record was built")

    monkeypatch.setattr(Prepared, "__getitem__", refuse)
    again = batches(corpus, 5)
    for one, two in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one["image.pixels"], two["image.pixels"])


def test_what_a_worker_needs_of_a_prepared_corpus_is_small(tmp_path):
    """Not the index with its texts, which the corpus holds already."""
    made = [toys.ToySource(200)[index] for index in range(200)]
    source = Prepared(split="train", path=str(toys.prepare(tmp_path / "toy", made)))
    image = pickle.loads(pickle.dumps(source.image))
    np.testing.assert_array_equal(image(17, 0), source[17].images[0].load())
    assert len(pickle.dumps(source.image)) < len(pickle.dumps(source)) / 10


def test_records_read_in_blocks_are_those_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "_ROWS", 3)
    made = [toys.ToySource(8)[index] for index in range(8)]
    source = Prepared(split="train", path=str(toys.prepare(tmp_path / "toy", made)))
    assert [repr(record) for record in source] == [repr(source[index]) for index in range(8)]
    assert [repr(record) for record in records(source)] == list(map(repr, source))
    path = str(tmp_path / "toy")
    parts = ({"source": "prepared", "path": path}, {"source": "phantom", "length": 9})
    mixture = Mixture(split="train", parts=parts)
    ids = [mixture[index].id for index in range(len(mixture))]
    assert [record.id for record in mixture] == ids


def test_a_split_without_records_has_no_images(tmp_path):
    made = [toys.ToySource(3)[index] for index in range(3)]
    source = Prepared(split="val", path=str(toys.prepare(tmp_path / "toy", made)))
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
                    batch["image.pixels"][row, :, :, 0], whole[top : top + 32, left : left + 32]
                )
            ]
            assert found
            offsets.update(found)
    assert len(offsets) > 8


def test_crops_from_the_loaded_size_are_warped_once():
    image = the_input(load_size=48, crop_scale=(0.5, 0.9), rotate=5.0, gamma=0.2)
    assert image.loaded == Preprocess(48)
    assert image.jitter == Jitter(32, (0.5, 0.9), rotate=5.0, gamma=0.2)
    (batch,) = batches(CORPUS, 1, load_size=48, crop_scale=(0.5, 0.9), rotate=5.0, gamma=0.2)
    assert batch["image.pixels"].shape == (8, 32, 32, 1)


def test_evaluation_resizes_straight_to_the_size_of_the_model():
    data = Examples(config(load_size=40), CORPUS, {"text": toys.tokenizer()})
    assert data.preprocess == Preprocess(32)


def test_jitters_out_of_range_are_refused_before_training():
    with pytest.raises(InputError, match=r"augment gamma 2\.0; expected 0 to 1"):
        the_input(gamma=2.0)
    chosen = toys.config(data__load_size=31)
    with pytest.raises(InputError, match="load_size=31 of input 'image' must be 0 or at least"):
        configs.validate(chosen)


class Studies:
    """Studies of several views, whose images tell the view they are."""

    VIEWS = (("PA", "LATERAL"), ("LATERAL", "AP", "PA"), ("LATERAL",), ("UNKNOWN", "LATERAL"))

    def __init__(self, count: int) -> None:
        self.rejects: list = []
        self.total = count

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Record:
        images = tuple(
            ImageRef(f"{index}-{number}", functools.partial(level, index, number), view)
            for number, view in enumerate(self.VIEWS[index % 4])
        )
        boxes = tuple(Box((0, 0, 1 + n, 1), "mass", image=n) for n in range(len(images)))
        return dataclasses.replace(
            toys.ToySource(99)[index], images=images, boxes=boxes, masks=dict, study_id=f"s{index}"
        )


def level(index: int, number: int) -> np.ndarray:
    return np.full((32, 32), 10 * index + number, np.uint8)


def studies(views: str, count: int = 8) -> Corpus:
    return read_corpus("toy/train", Studies(count), sections=("findings",), views=views)


def seen(corpus: Corpus) -> dict[str, int]:
    return {i: int(corpus.image(n).max()) for n, i in enumerate(corpus.ids)}


def test_the_first_image_is_the_one_unless_asked_otherwise():
    assert list(seen(studies("first")).values()) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert [image.key for image in studies("first").record(1).images] == ["1-0", "1-1", "1-2"]


def test_frontal_views_are_found_and_studies_without_one_rejected():
    corpus = studies("frontal")
    assert seen(corpus) == {"toy:0": 0, "toy:1": 11, "toy:4": 40, "toy:5": 51}
    assert [(r.id, r.reason) for r in corpus.rejects] == [
        (f"toy:{n}", "no_frontal_projection") for n in (2, 3, 6, 7)
    ]
    record = corpus.record(1)
    assert [image.projection for image in record.images] == ["AP"]
    assert [box.xyxy for box in record.boxes] == [(0, 0, 2, 1)] and record.boxes[0].image == 0
    assert record.masks is None and corpus.record(0).masks is dict
    assert corpus.sha256() != studies("first", 6).sha256()


def test_each_image_is_an_example_of_its_study():
    corpus = studies("each", 3)
    assert seen(corpus) == {
        "toy:0": 0,
        "toy:0#2": 1,
        "toy:1": 10,
        "toy:1#2": 11,
        "toy:1#3": 12,
        "toy:2": 20,
    }
    np.testing.assert_array_equal(corpus.groups, [0, 0, 2, 2, 2, 5])
    assert [corpus.record(n).id for n in range(6)] == list(corpus.ids)
    assert [len(corpus.record(n).images) for n in range(6)] == [1] * 6
    assert corpus.total == 3 and not corpus.rejects


@pytest.mark.exhaustive
def test_random_views_are_drawn_anew_in_every_epoch_and_not_in_evaluation():
    corpus = studies("random")
    held_out = {"toy:0": 0, "toy:1": 11, "toy:2": 20, "toy:3": 30}
    assert {i: v for i, v in seen(corpus).items() if i in held_out} == held_out
    drawn: dict[int, list[int]] = {index: [] for index in range(8)}
    made = batches(corpus, 120)
    for batch in made:
        for image, index in zip(batch["image.pixels"], batch["index"], strict=True):
            number = int(image.max()) - 10 * int(index)
            drawn[int(index)].append(number)
    for index, numbers in drawn.items():
        shares = np.bincount(numbers) / 120
        expected = len(Studies.VIEWS[index % 4])
        assert len(shares) == expected and np.abs(shares - 1 / expected).max() < 0.15
    for one, two in zip(made, batches(corpus, 120, num_threads=3), strict=True):
        np.testing.assert_array_equal(one["image.pixels"], two["image.pixels"])


def test_an_unknown_choice_of_views_is_refused():
    with pytest.raises(InputError, match=r"unknown config.data.views 'fist'.*did you mean 'first'"):
        configs.validate(toys.config(data__views="fist"))


def test_texts_without_images_are_read_where_no_image_is_needed():
    class Blind(toys.ToySource):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return dataclasses.replace(record, images=record.images if index % 2 else ())

    rejected = read_corpus("toy/train", Blind(4), sections=("findings",))
    assert [r.reason for r in rejected.rejects] == ["missing_image"] * 2
    corpus = read_corpus("toy/train", Blind(4), sections=("findings",), need_images=False)
    assert corpus.ids == ("toy:0", "toy:1", "toy:2", "toy:3") and not corpus.rejects
    np.testing.assert_array_equal(corpus.image(1), rejected.image(0))
    with pytest.raises(InputError, match="record toy:0: the record has 0 images, no number 0"):
        corpus.image(0)


def test_the_image_cache_keeps_to_its_budget():
    """1 MiB holds four images of 512 x 512; a long pass keeps the first four, others read anew."""
    reads = []

    class Counted(toys.ToySource):
        def image(self, index, number=0):
            reads.append(index)
            return toys.noise(index)

    corpus = read_corpus("toy/train", Counted(12), sections=("findings",))
    load = Load(corpus, Preprocess(512), 1)
    for _ in range(20):
        for index in range(12):
            np.testing.assert_array_equal(load(index, 0), Preprocess(512)(toys.noise(index)))
            assert sum(image.nbytes for image in load.cache.values()) <= 2**20
    assert len(load.cache) == 4
    assert [reads.count(index) for index in range(12)] == [1] * 4 + [20] * 8
    assert not Load(corpus, Preprocess(512), 0).cache


def test_what_workers_hand_over_is_what_threads_make_and_leaves_nothing_behind():
    """Images of 96 px make arrays that go through files of shared memory."""
    sizes = {"size": 96, "load_size": 100}
    expected = batches(CORPUS, 6, num_workers=0, **sizes)
    assert expected[0]["image.pixels"].nbytes >= 2**16
    made = batches(CORPUS, 6, num_workers=2, **sizes)
    for one, two in zip(expected, made, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    files = [Path("/dev/shm") / batch["image.pixels"].shm.name for batch in made]
    assert not any(
        hasattr(batch[name], "shm") for batch in made for name in ("text.tokens", "index")
    )
    del made, two
    deadline = time.monotonic() + 10
    while any(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(file.exists() for file in files)


def test_threads_hold_a_few_batches_whatever_their_size():
    """They ran ahead by four times batch_size batches once, which was gigabytes."""
    made = []

    class Counted(toys.ToySource):
        def image(self, index, number=0):
            made.append(index)
            return toys.noise(index)

    corpus = read_corpus("toy/train", Counted(64), sections=("findings",))
    iterator = toys.feed(config(num_threads=2), corpus)
    next(iterator)
    time.sleep(1)
    iterator.close()
    assert len(made) <= 8 * 5  # one taken, three waiting or in the making, and one more begun
