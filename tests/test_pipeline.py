"""Batches depend on (corpus, config, seed, position) alone, and hold what types.Batch says."""

import hashlib
import pickle

import numpy as np
import pytest

from mmrl import wiring
from mmrl.data import perturb
from mmrl.data.batches.pipeline import Examples, batch_shapes
from mmrl.data.corpus import group_ids, read_corpus
from mmrl.data.image.images import Preprocess
from mmrl.data.image.load import Load
from mmrl.data.inputs import base as inputs
from mmrl.training import learner
from mmrl.training.predict import Predict
from mmrl.types import InputError
from tests import toys

CORPUS = toys.corpus()
TOKENIZER = toys.tokenizer()


def config(**changes):
    """`changes` are keys of config.data."""
    return toys.config(**{f"data__{key}": value for key, value in changes.items()})


def batches(count, start=0, rows=None, seed=0, **changes):
    return toys.batches(config(**changes), count, start=start, rows=rows, seed=seed)


# The arrays by the names that they had when the digests below were recorded.
RECORDED = {
    "image.pixels": "image",
    "text.tokens": "tokens",
    "text.mask": "token_mask",
    "perturbed.tokens": "perturbed_tokens",
    "perturbed.mask": "perturbed_mask",
    "perturbed.valid": "perturbed_valid",
    "perturbed.kind": "perturbation",
    "group": "group",
    "index": "index",
}


def assert_equal(one, two):
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def digest(made, *, copies):
    state = hashlib.sha256()
    for batch in ({RECORDED[name]: array for name, array in one.items()} for one in made):
        for name in sorted(batch):
            if name.startswith("perturb") == copies:
                array = batch[name]
                state.update(f"{name}{array.dtype}{array.shape}".encode())
                state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "c6f48d7cb89f765995471083e0dce48fec0b4663ec1e6e9058eabdff13ea9a9e"),
        (
            {"crop_scale": (0.6, 1.0), "brightness": 0.3, "contrast": 0.2},
            "0b79ca74c0eb95e409636aa330b050a67ade870f4bed1069b38d0406feb6f4e4",
        ),
    ],
)
def test_batches_are_those_of_the_versions_before(changes, expected):
    """Recorded, so that a change that makes runs started before it go on differently is seen."""
    made = batches(10, **changes)
    assert digest(made, copies=False) == expected
    assert (
        digest(made, copies=True)
        == "73d95e4c36f08c989c79aa2f679dac16842b97917044a1b0e7ff993d06bff159"
    )


def test_a_batch_has_the_shapes_and_dtypes_of_the_contract():
    (batch,) = batches(1)
    shapes = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert shapes == {
        "image.pixels": ("uint8", (8, 32, 32, 1)),
        "text.tokens": ("int32", (8, 24)),
        "text.mask": ("bool", (8, 24)),
        "perturbed.tokens": ("int32", (8, 2, 24)),
        "perturbed.mask": ("bool", (8, 2, 24)),
        "perturbed.valid": ("bool", (8, 2)),
        "perturbed.kind": ("int8", (8, 2)),
        "group": ("int32", (8,)),
        "index": ("int32", (8,)),
    }
    made = inputs.make(config(), wiring.wire(config())[0])
    told = {n: (one.dtype.name, one.shape) for n, one in batch_shapes(made, 8).items()}
    assert told == shapes


def test_same_seed_same_batches_whatever_the_threads_and_caches():
    first = batches(12, brightness=0.3)
    assert_equal(first, batches(12, brightness=0.3, num_threads=4, cache_images=True))
    other = batches(12, brightness=0.3, seed=1)
    assert any((a["index"] != b["index"]).any() for a, b in zip(first, other, strict=True))


def test_worker_processes_give_the_same_batches():
    assert_equal(batches(3), batches(3, num_workers=1))


def test_resume_continues_with_the_exact_next_sample():
    assert_equal(batches(10)[6:], batches(4, start=6))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("shares", [[(0, 1, 2, 3), (4, 5, 6, 7)], [(0, 1, 6, 7)], [(5,), (2,)]])
def test_every_process_loads_its_own_rows_of_the_same_global_batch(shares):
    """In their order, over the end of an epoch, and after a resume."""
    whole = batches(10)
    for share in shares:
        own = batches(10, rows=np.array(share))
        expected = [{name: array[list(share)] for name, array in b.items()} for b in whole]
        assert_equal(own, expected)
        assert_equal(own[6:], batches(4, start=6, rows=np.array(share)))


def test_every_epoch_is_complete_and_freshly_shuffled_and_perturbed():
    two = batches(16)
    order = np.concatenate([batch["index"] for batch in two])
    assert sorted(order[:64]) == sorted(order[64:]) == list(range(64))
    assert (order[:64] != order[64:]).any()
    by_index = [
        {
            int(i): p
            for b in two[h : h + 8]
            for i, p in zip(b["index"], b["perturbed.tokens"], strict=True)
        }
        for h in (0, 8)
    ]
    changed = sum((by_index[0][i] != by_index[1][i]).any() for i in range(64))
    assert changed > 40


def test_originals_are_the_tokenised_reports_and_copies_keep_their_words():
    (batch,) = batches(1)
    for row, index in enumerate(batch["index"]):
        expected = TOKENIZER.encode(CORPUS.texts[index], 24)
        np.testing.assert_array_equal(batch["text.tokens"][row], expected.tokens)
        for copy in range(2):
            same = (batch["perturbed.tokens"][row, copy] == expected.tokens).all()
            if batch["perturbed.valid"][row, copy]:
                assert not same


def test_the_curriculum_changes_the_kinds_at_its_step_across_epochs_and_resumes():
    changes = {
        "perturbations": ("reverse_words",),
        "perturbation_curriculum": (
            {"from_step": 10, "perturbations": ("shuffle_all_words", "swap_adjacent_words")},
        ),
    }
    seen = batches(12, **changes)  # an epoch has 8
    for step, batch in enumerate(seen):
        kinds = {perturb.KINDS[kind] for kind in batch["perturbed.kind"].ravel()}
        late = {"shuffle_all_words", "swap_adjacent_words"}
        assert kinds == (late if step >= 10 else {"reverse_words"})
    assert_equal(seen[9:], batches(3, start=9, **changes))


def test_kinds_are_named_by_their_place_in_the_registry():
    (batch,) = batches(1, perturbations=("reverse_words",), num_perturbed=1)
    assert (batch["perturbed.kind"] == perturb.KINDS.index("reverse_words")).all()


def test_groups_join_same_studies_and_same_texts():
    groups = group_ids(
        ["s1", "s1", "s2", "s3", "s4"],
        ["No effusion.", "Clear.", "no  effusion", "CLEAR", "Large effusion."],
    )
    np.testing.assert_array_equal(groups, [0, 0, 0, 0, 4])
    assert groups.dtype == np.int32


def examples(corpus=CORPUS, size=32, length=24):
    chosen = toys.config(towers__image__size=size, towers__text__length=length)
    return Examples(chosen, corpus, {"text": TOKENIZER})


def test_examples_are_padded_and_keep_their_order(monkeypatch):
    layout = learner.layout(config(), toys.one_device())
    predict, given = Predict(layout, toys.one_device(), batch_size=24), []

    def encode(_, arrays, wired):
        given.append(np.asarray(arrays["image.pixels"]))
        return {"image@image.embedding": np.zeros((24, 32), np.float32)}

    monkeypatch.setattr(predict, "_encode", encode)
    state = {"params": {}, "variables": {}}
    blocks = list(predict.stream(state, examples(), ["image.embedding"]))
    assert [len(block["image.embedding"]) for block in blocks] == [24, 24, 16]
    assert [len(pixels) for pixels in given] == [24, 24, 24]
    assert not given[-1][16:].any()
    np.testing.assert_array_equal(given[1][3], examples().image(27))
    tall = examples().image(0)[:, :, 0]  # 40 x 32 padded to a square: empty left and right
    assert not tall[:, :3].any()
    assert tall[:, 4:28].any()


def test_digest_tells_inputs_apart():
    digests = {
        examples(toys.corpus(n), s, length).sha256
        for n, s, length in ((64, 32, 24), (63, 32, 24), (64, 48, 24), (64, 32, 25))
    }
    assert len(digests) == 4


def test_caches_stay_at_home_when_work_is_sent_to_a_process():
    load = Load(CORPUS, Preprocess(32), 1)
    load(3, 0)
    copy = pickle.loads(pickle.dumps(load))
    assert load.cache and copy.cache == {}


def test_too_small_a_corpus_is_refused():
    with pytest.raises(InputError, match="toy/train has 6 usable records, fewer than"):
        toys.feed(config(), toys.corpus(6))


def test_unknown_kinds_are_refused():
    with pytest.raises(
        InputError, match=r"config.data.perturbations: unknown perturbation 'shuffle'"
    ):
        batches(1, perturbations=("shuffle",))


def test_empty_reports_are_rejected_with_their_reason():
    class Silent(toys.ToySource):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            if index < 3:
                record = type(record)(**{**record.__dict__, "sections": {"findings": " "}})
            return record

    corpus = read_corpus("toy/train", Silent(10), sections=("findings",))
    assert [reject.reason for reject in corpus.rejects] == ["empty_report"] * 3
    assert len(corpus) == 7 and corpus.record(0).id == "toy:3"
    with pytest.raises(InputError, match=r"no usable record .*3 empty_report"):
        read_corpus("toy/train", Silent(3), sections=("findings",))
