"""Mixtures: shares by weight, complete epochs of each part, the same for any division of work."""

import collections
import json

import grain
import ml_collections
import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data.batches import sequence
from mmrl.data.sources.mixture import Mixture
from mmrl.data.text.tokenizer import Tokenizer
from mmrl.training import run
from mmrl.types import InputError
from tests import toys


def phantom(seed, length=60, **more):
    return {"source": "phantom", "seed": seed, "length": length, "render_size": 32} | more


def config(*parts):
    chosen = toys.config()
    pipeline, _ = configs.split_data(chosen.data)
    chosen.data = ml_collections.ConfigDict({**pipeline, "source": "mixture", "parts": parts})
    return chosen


def one_corpus(seed):
    chosen = toys.config()
    chosen.data.update(phantom(seed))
    return chosen


def corpus(*parts, split="train"):
    return run.load_corpus(config(*parts), split)


WEIGHTED = (phantom(1, weight=3.0), phantom(2, length=20, weight=1.0))


def batches(made, count, start=0, rows=None, **changes):
    chosen = toys.without_copies(toys.config(**{f"data__{k}": v for k, v in changes.items()}))
    tokenizers = {"text": Tokenizer.train(made.texts, vocab_size=400)}
    return toys.batches(chosen, count, made, tokenizers, seed=3, start=start, rows=rows)


def test_records_of_all_parts_once_and_under_their_own_names():
    parts = [run.load_corpus(one_corpus(s), "train") for s in (1, 2)]
    made = corpus(phantom(1), phantom(2))
    assert made.ids == parts[0].ids + parts[1].ids
    assert made.total == parts[0].total + parts[1].total
    first = len(parts[0])
    np.testing.assert_array_equal(made.image(first + 3), parts[1].image(3))
    assert made.record(first + 3).id == parts[1].ids[3]
    np.testing.assert_array_equal(made.parts, [0] * first + [1] * len(parts[1]))
    assert made.weights is None


def test_each_batch_holds_the_shares_of_the_weights():
    """3 : 1 of eight is six and two, in every batch, whatever the sizes of the parts."""
    made = corpus(*WEIGHTED)
    for batch in batches(made, 30):
        assert collections.Counter(made.parts[batch["index"]].tolist()) == {0: 6, 1: 2}


def test_each_part_is_read_through_before_it_begins_anew():
    made = corpus(*WEIGHTED)
    drawn = np.concatenate([batch["index"] for batch in batches(made, 60)])
    for part in (0, 1):
        members = np.flatnonzero(made.parts == part).tolist()
        own = [int(index) for index in drawn if made.parts[index] == part]
        epochs = [own[k : k + len(members)] for k in range(0, len(own), len(members))]
        assert len(epochs) > 2
        assert all(sorted(epoch) == members for epoch in epochs[:-1])
        assert epochs[0] != epochs[1]


def test_batches_do_not_depend_on_who_makes_them():
    made = corpus(*WEIGHTED)
    whole = batches(made, 8)
    rows = np.array([1, 4, 5])
    for other, cut in (
        (batches(made, 3, start=5, num_threads=3), lambda array: array),
        (batches(made, 3, start=5, rows=rows), lambda array: array[rows]),
        (batches(made, 3, start=5, num_workers=1), lambda array: array),
    ):
        for one, two in zip(whole[5:], other, strict=True):
            for name, array in one.items():
                np.testing.assert_array_equal(cut(array), two[name])


def test_without_weights_every_record_comes_once_in_an_epoch():
    made = corpus(phantom(1), phantom(2, length=40))
    count = len(made)
    drawn = np.concatenate([batch["index"] for batch in batches(made, count // 8 + 1)])
    assert sorted(drawn[:count].tolist()) == list(range(count))


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 1.0, 1.0), (0.1, 5.0, 2.5), (1.0,)])
def test_shares_are_exact_at_every_length(weights):
    whole = sequence.proportions(weights)
    assert np.gcd.reduce(whole) == 1
    np.testing.assert_allclose(np.divide(whole, sum(whole)), np.divide(weights, sum(weights)))
    counts = [0] * len(weights)
    for position in range(3 * sum(whole)):
        part, place = sequence.part_at(position, whole)
        assert place == counts[part]
        counts[part] += 1
        exact = np.multiply(whole, (position + 1) / sum(whole))
        assert np.abs(counts - exact).max() < len(weights)
    assert counts == [3 * weight for weight in whole]


def test_parts_survive_the_config_and_json():
    chosen = config(*WEIGHTED)
    configs.validate(chosen)
    stored = json.loads(json.dumps(configs.plain(chosen)))
    read = configs.from_plain(stored)
    configs.validate(read)
    assert read.data.parts == WEIGHTED and configs.plain(read) == stored
    assert configs.check_resumable(stored, configs.plain(chosen)) == {}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), r"config.data.parts is \(\); expected mappings, one for each corpus"),
        (({"path": "x"},), r"parts\[0\] is .*; expected source and its options"),
        (({"source": "phantm"},), "unknown source 'phantm' .did you mean 'phantom'"),
        ((phantom(1, lenth=3),), r"unknown option in config.data.parts\[0\] 'lenth'"),
        (({"source": "prepared"},), r"config.data.parts\[0\] needs a value for: path"),
        (
            (phantom(1), phantom(2, weight=1.0)),
            r"parts\[0\] has no weight; expected one in all parts or in none",
        ),
        ((phantom(1, weight=0),), r"parts\[0\].weight is 0; expected a number above 0"),
        (
            ({"source": "mixture", "parts": ()},),
            r"parts\[0\] is a mixture; list its parts here instead",
        ),
        ((phantom(1, split="val"),), r"unknown option in config.data.parts\[0\] 'split'"),
    ],
)
def test_parts_that_could_not_be_built_are_refused_before_any_is(parts, message):
    with pytest.raises(InputError, match=message):
        configs.validate(config(*parts))
    with pytest.raises(InputError):
        Mixture(split="train", parts=parts)


def test_a_part_too_small_for_its_share_is_refused():
    made = corpus(phantom(1, weight=1.0), phantom(2, length=5, weight=3.0))
    with pytest.raises(InputError, match=r"part 1 of mixture/train has \d usable .* takes 6 of"):
        batches(made, 1)


def test_parts_that_overlap_are_refused():
    with pytest.raises(InputError, match=r"two records are 'phantom:1-.*'; expected parts"):
        corpus(phantom(1), phantom(1))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_shuffles_are_those_of_grain(size):
    """So that runs started when Grain's own data set was used go on in the same order."""
    own = sequence.Shuffled(size, 12345)
    theirs = grain.MapDataset.source(range(size)).shuffle(12345).repeat(None)
    positions = [*range(3 * size), 10**12 + 5]
    assert [own(position) for position in positions] == [theirs[p] for p in positions]
    members = np.arange(size) * 3
    assert sequence.Shuffled(size, 12345, members)(2) == 3 * own(2)
