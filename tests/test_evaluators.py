"""Evaluators with encoders of known results, and their statistics in closed form."""

import itertools
import json

import numpy as np
import pytest

from mmrl.evaluators import metrics, retrieval, statistics
from mmrl.evaluators.composed_retrieval import ComposedRetrieval
from mmrl.evaluators.retrieval import Retrieval, best_match_ranks, rank_chance, recall_chance
from mmrl.types import InputError
from tests.fakes import FakeData, FakePredict, code, constant, informed, reports

# --- statistics


def bootstrap_by_hand(values, patients, statistic, samples, seed):
    names = sorted(set(patients))
    picks = np.random.default_rng(seed).integers(len(names), size=(samples, len(names)))
    of = [values[np.asarray(patients) == name] for name in names]
    return [statistic(np.concatenate([of[p] for p in row])) for row in picks]


@pytest.mark.parametrize("name", ["mean", "median"])
def test_bootstrap_equals_drawing_patients_one_by_one(name):
    rng = np.random.default_rng(1)
    patients = [f"p{i}" for i in rng.integers(7, size=30)]
    values = rng.integers(5, size=30).astype(float)
    low, high = statistics.patient_bootstrap(
        values, patients, statistic=name, samples=200, seed=3, level=0.8
    )
    drawn = bootstrap_by_hand(values, patients, getattr(np, name), 200, 3)
    np.testing.assert_allclose([low, high], np.quantile(drawn, [0.1, 0.9]), rtol=1e-12)


def test_bootstrap_of_two_patients_is_exact():
    # Draws are AA, AB, BA, BB: three of A's items against one of B's gives 1, 3/4, 3/4, 0.
    values = np.array([1.0, 1, 1, 0])
    for level, expected in ((0.95, (0, 1)), (0.3, (0.75, 0.75))):
        interval = statistics.patient_bootstrap(values, list("AAAB"), samples=4000, level=level)
        assert interval == expected


def test_bootstrap_counts_patients_not_items():
    values = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    patients = [f"p{i:03}" for i in range(400)]
    single = statistics.patient_bootstrap(values, patients, samples=4000)
    copied = statistics.patient_bootstrap(
        np.repeat(values, 5), np.repeat(patients, 5), samples=4000
    )
    np.testing.assert_allclose(single, copied, rtol=1e-12)
    expected = 2 * 1.96 * values.std() / 20  # the normal interval of 400 independent items
    assert single[1] - single[0] == pytest.approx(expected, rel=0.08)


def test_bootstrap_columns_share_draws_and_pieces_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=(40, 3))
    patients = [f"p{i // 2}" for i in range(40)]
    low, high = statistics.patient_bootstrap(values, patients, samples=50)
    for m in range(3):
        one = statistics.patient_bootstrap(values[:, m], patients, samples=50)
        np.testing.assert_allclose((low[m], high[m]), one, rtol=1e-12)
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 45)
    in_pieces = statistics.patient_bootstrap(values, patients, samples=50)
    np.testing.assert_allclose(in_pieces, (low, high), rtol=1e-12)


def test_no_interval_from_one_patient_and_none_of_a_certain_difference():
    assert np.isnan(statistics.patient_bootstrap(np.arange(3.0), ["a"] * 3)).all()
    alone = statistics.estimate(np.array([0.0, 1.0]), ["a", "a"], chance=0.5)
    assert (alone.value, alone.low, alone.high, alone.n, alone.chance) == (0.5, None, None, 2, 0.5)
    assert statistics.estimate(np.ones(2), ["a", "b"], samples=0).low is None
    scores = np.random.default_rng(0).random(10)
    assert statistics.patient_bootstrap(scores - scores, list("abcdefghij")) == (0, 0)
    with pytest.raises(ValueError, match="3 values for 2 patients"):
        statistics.patient_bootstrap(np.ones(3), ["a", "b"])


def test_permutation_leaves_no_patient_its_own_image_unless_one_has_most():
    rng = np.random.default_rng(0)
    for _ in range(300):
        patients = rng.integers(rng.integers(1, 9), size=rng.integers(1, 20)).astype(str)
        size, largest = len(patients), np.unique(patients, return_counts=True)[1].max()
        permutation = statistics.permutation_between_patients(patients, rng)
        assert sorted(permutation) == list(range(size))
        same = int((patients[permutation] == patients).sum())
        assert same == max(0, 2 * largest - size)
        assert size == 1 or (permutation != np.arange(size)).all()


def test_permutation_gives_every_foreign_image_alike():
    rng = np.random.default_rng(0)
    seen = np.zeros((4, 4))
    for _ in range(3000):
        seen[np.arange(4), statistics.permutation_between_patients(list("abcd"), rng)] += 1 / 3000
    np.testing.assert_allclose(seen, (1 - np.eye(4)) / 3, atol=0.04)


# --- retrieval


def ranks_by_hand(scores, groups):
    match = groups[:, None] == groups
    best = np.where(match, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~match).sum(axis=1)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_ranks_equal_the_full_matrix_for_any_chunk(chunk):
    rng = np.random.default_rng(0)
    images, texts = rng.integers(-2, 3, size=(2, 23, 3)).astype(np.float32) / 4  # many ties
    groups = rng.integers(12, size=23)
    ranks = best_match_ranks(images, texts, groups, chunk=chunk)
    np.testing.assert_array_equal(ranks, ranks_by_hand(images @ texts.T, groups))


def test_chance_equals_all_orders():
    groups = np.array([4, 7, 4, 4, 7, 1])
    ranks = np.array(
        [
            [1 + [groups[c] for c in order].index(groups[q]) for q in range(6)]
            for order in itertools.permutations(range(6))
        ]
    )
    for k in (1, 2, 3, 6, 9):
        assert recall_chance(groups, k) == pytest.approx((ranks <= k).mean(), abs=1e-12)
    assert rank_chance(groups) == pytest.approx((ranks.mean(), np.median(ranks)))
    assert rank_chance(np.arange(10)) == pytest.approx((5.5, 5.5))
    assert rank_chance(np.arange(11)) == pytest.approx((6, 6))
    assert rank_chance(np.zeros(5, int)) == (1, 1)


def test_informed_encoder_finds_everything():
    data = FakeData(reports(30))
    results = Retrieval(informed(data), data).run(None)
    assert results.protocol == "retrieval@1" and results.n == 30 and not results.excluded
    assert list(results.values)[:3] == [f"image_to_text/R@{k}" for k in (1, 5, 10)]
    for direction in ("image_to_text", "text_to_image"):
        recall = results.values[f"{direction}/R@1"]
        assert (recall.value, recall.low, recall.high, recall.n) == (1, 1, 1, 30)
        assert recall.chance == pytest.approx(1 / 30)
        assert results.values[f"{direction}/median_rank"].value == 1
        assert results.values[f"{direction}/mean_rank"].chance == 15.5
    json.dumps(results.to_dict(), allow_nan=False)


def test_random_encoder_is_near_chance():
    data = FakeData(reports(400))
    values = Retrieval(FakePredict(code, code), data).run(None).values
    for name, estimate in values.items():
        spread = 12 if "rank" in name else 0.025
        assert abs(estimate.value - estimate.chance) < spread, name
        assert estimate.low <= estimate.value <= estimate.high


def test_constant_encoder_is_last_despite_rounding():
    data = FakeData(reports(40), groups=[0, 0, 0, *range(1, 38)])
    results = Retrieval(constant(), data).run(None)
    assert all(e.value == 0 for name, e in results.values.items() if "R@" in name)
    assert results.details["constant_predictor"] == {"R@1": 0, "R@5": 0, "R@10": 0}
    assert results.values["image_to_text/mean_rank"].value == (37 * 40 + 3 * 38) / 40
    few = Retrieval(constant(), FakeData(reports(5))).run(None)
    assert few.values["image_to_text/R@5"].value == few.details["constant_predictor"]["R@5"] == 1


def test_duplicates_match_each_other():
    texts = reports(6)
    texts[1] = texts[0]
    swapped = {"fake:0": "fake:1", "fake:1": "fake:0"}
    split, joined = FakeData(texts), FakeData(texts, groups=[0, 0, 2, 3, 4, 5])
    encoder = informed(split)
    encoder.image_of = lambda i, f=encoder.image_of: f(swapped.get(i, i))
    assert Retrieval(encoder, split).run(None).values["image_to_text/R@1"].value == 4 / 6
    results = Retrieval(encoder, joined).run(None)
    assert results.values["image_to_text/R@1"].value == 1
    assert results.values["text_to_image/R@1"].value == 1
    assert results.details["duplicates"] == 2 and results.details["groups"] == 5
    assert results.details["duplicate_share"] == pytest.approx(1 / 3)


def test_subset_is_fixed_and_the_rest_is_counted():
    data = FakeData(reports(30))
    first, again, other = (
        Retrieval(informed(data), data, max_pairs=8, seed=seed) for seed in (0, 0, 1)
    )
    assert list(first.data.ids) == list(again.data.ids) != list(other.data.ids)
    assert first.data.sha256 == again.data.sha256 != data.sha256
    results = first.run(None)
    assert results.n == 8 and results.excluded == {"not drawn (max_pairs)": 22}
    assert results.values["image_to_text/R@1"].chance == 1 / 8
    assert Retrieval(informed(data), data, max_pairs=30).data is data


def test_examples_that_lack_an_input_are_excluded_and_counted():
    data = FakeData(reports(12), groups=[0, 0, *range(1, 11)])
    encoder, absent = informed(data), ("fake:1", "fake:7", "fake:11")
    image_of = encoder.image_of
    # What the encoder gives for the others means nothing, and may be anything.
    encoder.image_of = lambda i: image_of(i) * (np.nan if i in absent else 1)
    encoder.absent = absent
    reads = {"text": "text@impression.embedding"}
    results = Retrieval(encoder, data, reads=reads).run(None)
    assert encoder.asked == ["image.embedding", "text@impression.embedding"]
    assert results.n == 9 and results.excluded == {"an input is missing": 3}
    assert results.details["groups"] == 9 and results.details["duplicates"] == 0
    rows = [i for i, name in enumerate(data.ids) if name not in absent]
    whole = FakeData([data.texts[i] for i in rows])
    whole.ids, whole.patients = [data.ids[i] for i in rows], [data.patients[i] for i in rows]
    assert results.values == Retrieval(informed(whole), whole).run(None).values
    drawn = Retrieval(encoder, data, max_pairs=10, reads=reads).run(None)
    assert drawn.n == 10 - drawn.excluded["an input is missing"]
    assert drawn.excluded["not drawn (max_pairs)"] == 2
    encoder.absent = tuple(data.ids)
    with pytest.raises(InputError, match=r"no example of fake/test has every input of image\.emb"):
        Retrieval(encoder, data, reads=reads).run(None)


class Parts(FakePredict):
    """Embeddings of three parts of each example, [3, N, D]."""

    def encode(self, state, data, names):
        return dict(zip(names, state, strict=True)) | {"present": np.ones(len(data), bool)}


def test_an_image_and_a_text_ask_together_for_a_target():
    rng = np.random.default_rng(0)
    known = np.eye(16)[rng.permutation(16)]
    target = known + np.roll(known, 1, axis=0)
    parts = np.stack([known, np.roll(known, 1, axis=0), target]).astype(np.float32)
    parts += 0.2 * rng.normal(size=parts.shape).astype(np.float32)
    data = FakeData(reports(16))
    values = ComposedRetrieval(Parts(None, None), data, ks=(1,), bootstrap=0).run(parts).values
    image, text, found = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts)

    def recall(queries):
        return (np.argmax(queries @ found.T, axis=1) == np.arange(16)).mean()

    shown = {name.removeprefix("query_to_target/R@1"): x.value for name, x in values.items()}
    assert shown[""] == recall(image + text) > 0.9
    assert (shown["_image_only"], shown["_text_only"]) == (recall(image), recall(text))
    assert max(shown["_image_only"], shown["_text_only"], shown["_images_permuted"]) < 0.8


def test_evaluators_redirect_what_they_read_and_refuse_other_arguments():
    data = FakeData(reports(4))
    evaluator = Retrieval(informed(data), data, reads={"image": "image@second.embedding"})
    assert evaluator.names == {"image": "image@second.embedding", "text": "text.embedding"}
    with pytest.raises(InputError, match="unknown argument in reads of Retrieval 'report'"):
        Retrieval(informed(data), data, reads={"report": "text.embedding"})


def test_retrieval_refuses_what_it_cannot_judge():
    data = FakeData(reports(4))
    with pytest.raises(InputError, match="max_pairs is 0, expected a whole number from 1 up"):
        Retrieval(informed(data), data, max_pairs=0)
    with pytest.raises(InputError, match="ks is 0"):
        Retrieval(informed(data), data, ks=())
    with pytest.raises(InputError, match="fake/test holds no examples"):
        Retrieval(informed(data), FakeData([]))
    broken = informed(data)
    broken.text_of = lambda text: code(text) * (np.nan if text == data.texts[2] else 1)
    with pytest.raises(FloatingPointError, match=r"text.embedding .* 1 of 4 .* first fake:2"):
        Retrieval(broken, data).run(None)
    assert retrieval.matches_per_item(np.array([3, 1, 3])).tolist() == [2, 1, 2]
