"""The prior of a study: never of the future, another split, patient or part; its arrays."""

import dataclasses
import functools

import numpy as np
import pytest

from mmrl.data import priors, views
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import read_corpus
from mmrl.data.priors import Seen
from mmrl.data.sources.mixture import Mixture
from mmrl.data.sources.phantom import Phantom
from mmrl.types import ImageRef, Record
from tests import toys
from tests.test_inputs import arrays_of, config, level, made_of, read

SPLITS = ("train", "val", "test")


def seen(id_, *, patient="p", time=None, prior="", study=None, projection="PA", part=0):
    return Seen(part, id_, patient, study or id_, prior, time, projection)


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        # The latest before; equal times are no prior of each other.
        ([seen("a", time=5), seen("b", time=9), seen("c", time=9), seen("d", time=0)],
         [3, 0, 0, -1]),
        # Without a time there is none, and it is none.
        ([seen("a"), seen("b", time=3), seen("c", time=4)], [-1, -1, 1]),
        # Of another patient, a blank patient, another part.
        ([seen("a", time=1, patient="q"), seen("b", time=3)], [-1, -1]),
        ([seen("a", time=1, patient=""), seen("b", time=3, patient="")], [-1, -1]),
        ([seen("a", time=1, part=1), seen("b", time=3)], [-1, -1]),
        ([seen("a", part=1), seen("b", prior="a")], [-1, -1]),
        # The stated one, though a later one is known; without times as well.
        ([seen("a", time=1), seen("b", time=2), seen("c", time=3, prior="a")], [-1, 0, 0]),
        ([seen("a"), seen("b", prior="a")], [-1, 0]),
        # A stated one that is not in the split gives way to the latest known one.
        ([seen("a", time=1), seen("b", time=3, prior="x")], [-1, 0]),
        # A stated one of the future, of the same time, of another patient, or itself is none.
        ([seen("a", time=1, prior="b"), seen("b", time=3)], [-1, 0]),
        ([seen("a", time=3), seen("b", time=3, prior="a")], [-1, -1]),
        ([seen("a", patient="q"), seen("b", prior="a")], [-1, -1]),
        ([seen("a", prior="a")], [-1]),
        # Other images of the study itself are no prior.
        ([seen("a", time=1, study="s"), seen("b", time=2, study="s"), seen("c", time=0)],
         [2, 2, -1]),
        # Several examples of the prior: of the same projection, else the first.
        ([seen("a", time=1), seen("a", time=1, projection="LATERAL"), seen("b", time=2),
          seen("b", time=2, projection="LATERAL"), seen("c", time=3, projection="AP")],
         [-1, -1, 0, 1, 2]),
        ([], []),
    ],
)  # fmt: skip
def test_priors_are_found_by_statement_and_time(examples, expected):
    assert priors.find(examples).tolist() == expected


def test_priors_equal_a_search_of_all_pairs():
    rng = np.random.default_rng(5)
    examples = [
        seen(
            str(n),
            patient=str(rng.integers(12)),
            time=None if rng.random() < 0.2 else int(rng.integers(30)),
            part=int(rng.integers(2)),
        )
        for n in range(300)
    ]
    found = priors.find(examples)
    assert 100 < (found >= 0).sum() < 260
    for one, prior in zip(examples, found.tolist(), strict=True):
        before = [
            (other.time, -index)
            for index, other in enumerate(examples)
            if (other.patient, other.part) == (one.patient, one.part)
            and None not in (other.time, one.time)
            and other.time < one.time
        ]
        assert prior == (-max(before)[1] if before else -1)


@pytest.fixture(scope="module")
def phantoms():
    """split -> phantoms with priors."""
    return {
        split: read_corpus(
            f"phantom/{split}",
            Phantom(split=split, length=300, priors=True, fractions=(0.6, 0.2, 0.2)),
            sections=("findings",),
        )
        for split in SPLITS
    }


@pytest.mark.parametrize("split", SPLITS)
def test_no_prior_leaks_from_the_future_or_another_split(phantoms, split):
    corpus = phantoms[split]
    others = {i for other in SPLITS if other != split for i in phantoms[other].ids}
    assert (corpus.priors >= 0).sum() > 8
    for index, prior in enumerate(corpus.priors.tolist()):
        later = [n for n in range(len(corpus)) if corpus.patients[n] == corpus.patients[index]]
        one = corpus.record(index)
        if prior < 0:
            assert all(corpus.record(n).time >= one.time for n in later)
            continue
        before = corpus.record(prior)
        assert before.id not in others
        assert before.patient_id == one.patient_id and before.time < one.time


def test_parts_of_a_mixture_have_priors_of_their_own():
    options = {"source": "phantom", "length": 60, "priors": True}
    parts = [{**options, "seed": seed} for seed in (0, 1)]
    corpus = read_corpus(
        "mixture/train", Mixture(split="train", parts=parts), sections=("findings",)
    )
    alone = [
        read_corpus(
            "phantom/train",
            Phantom(split="train", **{k: v for k, v in one.items() if k != "source"}),
            sections=("findings",),
        )
        for one in parts
    ]
    shifted = np.where(alone[1].priors < 0, -1, alone[1].priors + len(alone[0]))
    np.testing.assert_array_equal(corpus.priors, np.concatenate([alone[0].priors, shifted]))


class Followed(toys.ToySource):
    """Three studies of each patient at times 0, 1 and 2; the second has a lateral image first."""

    def __getitem__(self, index: int) -> Record:
        projections = ("LATERAL", "PA") if index % 3 == 1 else ("PA",)
        images = tuple(
            ImageRef(f"{index}-{n}", functools.partial(level, index, n), projection)
            for n, projection in enumerate(projections)
        )
        return dataclasses.replace(
            super().__getitem__(index),
            patient_id=f"p{index // 3}",
            images=images,
            time=index % 3,
            sections={"findings": f"Nodule {index}.", "impression": f"Stable {index}."},
        )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("choice", views.CHOICES)
def test_arrays_of_the_prior_are_those_of_its_example(choice, train):
    chosen = config(data__views=choice)
    names = ("image.embedding", "text.embedding", "image@prior.embedding")
    corpus = read(made_of(chosen, *names), Followed(12), choice=choice)
    every = range(len(corpus))
    data = Examples(chosen, corpus, {"text": toys.tokenizer()})
    image = data.arrays(["image"], every, "image")["image.pixels"]
    text = data.arrays(["text"], every, "text")
    empty = toys.tokenizer().encode("", text["text.tokens"].shape[1])
    _, prior = arrays_of(chosen, "prior", corpus, every, train=train, tower="image")
    _, report = arrays_of(chosen, "prior_text", corpus, every, train=train, tower="text")
    assert prior["present"].tolist() == (corpus.priors >= 0).tolist()
    assert prior["present"].sum() == len(corpus) - 4
    for index, before in enumerate(corpus.priors.tolist()):
        assert report["present"][index] == (before >= 0)
        if before < 0:
            assert not prior["pixels"][index].any()
            np.testing.assert_array_equal(report["tokens"][index], empty.tokens)
            assert report["mask"][index].any()
        else:
            study = int(corpus.positions[index])
            assert corpus.positions[before] == study - 1
            np.testing.assert_array_equal(prior["pixels"][index], image[before])
            np.testing.assert_array_equal(report["tokens"][index], text["text.tokens"][before])
            if choice == "each" and study % 3 == 2:  # the PA image of the study before
                assert corpus.numbers[before] == 1


def test_a_prior_may_have_no_image_and_no_text_of_the_kind():
    class Gaps(Followed):
        def __getitem__(self, index: int) -> Record:
            record = super().__getitem__(index)
            if index == 0:
                record = dataclasses.replace(record, images=())
            return dataclasses.replace(
                record, sections={"findings": "Nodule."} if index == 1 else {}
            )

    chosen = config()
    chosen.inputs.prior_text = {"sections": ("findings",)}
    names = ("image@prior.embedding", "text@prior_text.embedding")
    corpus = read(made_of(chosen, *names), Gaps(3))
    assert len(corpus) == 3 and corpus.priors.tolist() == [-1, 0, 1]
    _, prior = arrays_of(chosen, "prior", corpus, range(3), tower="image")
    _, report = arrays_of(chosen, "prior_text", corpus, range(3), tower="text")
    assert prior["present"].tolist() == [False, False, True]
    assert report["present"].tolist() == [False, False, True]
    _, none = arrays_of(chosen, "prior", corpus, [0, 0], tower="image")
    assert not none["present"].any() and not none["pixels"].any()


def test_priors_of_a_prepared_corpus_are_those_of_its_source(tmp_path):
    from mmrl.data.sources.prepared import Prepared
    from mmrl.preparation import job
    from mmrl.preparation.storage import Storage

    options = {"length": 30, "priors": True, "fractions": (0.8, 0.1, 0.1)}
    settings = job.Settings(Storage(size=64, format="png"))
    job.prepare("phantom", options, tmp_path / "out", settings, say=lambda line: None)
    prepared = Prepared(split="train", path=str(tmp_path / "out"))
    source = Phantom(split="train", **options)
    one, two = (
        read_corpus("a/train", given, sections=("findings",)) for given in (source, prepared)
    )
    assert one.ids == two.ids and (one.priors >= 0).any()
    np.testing.assert_array_equal(one.priors, two.priors)
