"""Evaluators against encoders whose answer is known, and their statistics against closed forms."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest

from mmrl.data import perturb
from mmrl.evaluators import retrieval, statistics
from mmrl.evaluators.retrieval import Retrieval, best_match_ranks, rank_chance, recall_chance
from mmrl.evaluators.structure import Structure
from mmrl.types import InputError


class FakeData:
    """Held-out texts without images; tokens are word numbers."""

    name, sha256, preprocessing = "fake/test", "0" * 64, {"size": 8}

    def __init__(self, texts, *, patients=None, groups=None, length=64):
        self.texts, self.length = list(texts), length
        self.ids = [f"fake:{i}" for i in range(len(self.texts))]
        self.patients = patients or [f"p{i}" for i in range(len(self.texts))]
        self.groups = np.arange(len(self.texts)) if groups is None else np.asarray(groups)

    def __len__(self):
        return len(self.texts)

    def tokenize(self, texts):
        tokens = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            words = [int(hashlib.md5(w.encode()).hexdigest()[:6], 16) + 1 for w in text.split()]
            row[: len(words)] = words[: self.length]
        return tokens, tokens > 0


@dataclasses.dataclass
class FakePredict:
    """Encodes by two functions: of an id and of a text."""

    image_of: object
    text_of: object
    provides = ("image.embedding", "text.embedding")

    def images(self, state, data, *, local=False):
        return {"image.embedding": np.stack([self.image_of(i) for i in data.ids])}

    def texts(self, state, data, texts, *, local=False):
        return {"text.embedding": np.stack([self.text_of(t) for t in texts])}


def code(text, width=32):
    """A random direction that depends on the text alone."""
    return statistics.generator(0, text).normal(size=width).astype(np.float32)


def informed(data):
    """Knows which report belongs to which image, and nothing else."""
    report = dict(zip(data.ids, data.texts, strict=True))
    return FakePredict(lambda i: code(report[i]), code)


def constant():
    """Encodes everything alike, up to rounding."""

    def noise(name):
        return np.float32(1) + np.float32(1e-7) * np.sign(code(name))

    return FakePredict(noise, noise)


def reports(count, words=12):
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i}" for i in range(40)])
    return [" ".join(rng.choice(vocabulary, words, replace=False)) + "." for _ in range(count)]


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
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 45)
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


# --- structure


def test_informed_encoder_chooses_right_and_foreign_images_choose_at_random():
    data = FakeData(reports(200), patients=[f"p{i // 2}" for i in range(200)])
    results = Structure(informed(data), data).run(None)
    assert results.protocol == "structure/choice-6way@1" and results.n == 200
    accuracy, blind, gain = (
        results.values[name] for name in ("accuracy", "accuracy_images_permuted", "grounded_gain")
    )
    assert accuracy.value == 1 and accuracy.chance == blind.chance == 1 / 6
    assert abs(blind.value - 1 / 6) < 0.04 and blind.low < 1 / 6 < blind.high
    assert gain.value == pytest.approx(1 - blind.value) and gain.chance == 0
    for kind in perturb.KINDS:
        assert results.values[f"kind/{kind}/accuracy"].value == 1
        assert abs(results.values[f"kind/{kind}/accuracy_images_permuted"].value - 0.5) < 0.06
    assert results.details["permuted_images_of_own_patient"] == 0
    assert sum(c["valid"] for c in results.details["copies"].values()) == 5 * 200
    json.dumps(results.to_dict(), allow_nan=False)


def test_encoder_that_ignores_the_image_gains_nothing():
    data = FakeData(reports(60))

    def grammar(text):
        return code(text) + 20 * (text in data.texts) * code("image")

    for text_of, expected in ((grammar, 1.0), (code, None)):
        blind = FakePredict(lambda i: code("image"), text_of)
        values = Structure(blind, data).run(None).values
        assert values["accuracy"].value == values["accuracy_images_permuted"].value
        assert expected is None or values["accuracy"].value == expected
        for name, estimate in values.items():
            if name.endswith("grounded_gain"):
                assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0), name


def test_ties_are_wrong_even_with_rounding():
    data = FakeData(reports(20))
    results = Structure(constant(), data).run(None)
    assert all(estimate.value == 0 for estimate in results.values.values())
    assert results.details["constant_predictor"] == {"accuracy": 0}
    # One kind alone ties: it fails, the others do not, and so no choice is right.
    encoder = informed(data)
    reverse = {perturb.perturb(t, "reverse_words", None).text: t for t in data.texts}
    encoder.text_of = lambda text: code(reverse.get(text, text))
    values = Structure(encoder, data).run(None).values
    assert values["kind/reverse_words/accuracy"].value == 0
    assert values["kind/shuffle_all_words/accuracy"].value == 1
    assert values["accuracy"].value == 0


def test_reports_without_enough_copies_are_excluded_and_counted():
    data = FakeData([*reports(10), "normal normal", "a b", ""])
    results = Structure(informed(data), data).run(None)
    assert results.n == 10 and results.excluded == {"fewer than 5 valid copies": 3}
    copies = results.details["copies"]
    assert copies["reverse_words"]["cannot change the report"] == 2
    assert copies["shuffle_trigrams"] == {"valid": 10, "cannot change the report": 3}
    # "a b" can only become "b a": four kinds agree, so three copies repeat the first.
    assert sum(c.get("equal to another copy", 0) for c in copies.values()) == 3


def test_copies_that_differ_only_after_truncation_are_invalid():
    # Swapping neighbours leaves the first two words of the first report, and all that is read.
    data = FakeData(["one one two three", "one two two two"], length=2)
    results = Structure(informed(data), data, kinds=["swap_adjacent_words"], num_perturbed=1).run(
        None
    )
    assert results.n == 1 and results.excluded == {"fewer than 1 valid copies": 1}
    assert results.details["copies"] == {
        "swap_adjacent_words": {"equal to the original": 1, "valid": 1}
    }


def test_copies_depend_on_seed_and_record_only():
    data = FakeData(reports(12))
    backwards = FakeData(data.texts[::-1])
    backwards.ids = data.ids[::-1]
    first = Structure(informed(data), data).choices
    again = Structure(constant(), backwards).choices

    def as_lists(choices):
        return np.array(choices.texts).reshape(-1, 5).tolist()

    assert as_lists(first) == as_lists(again)[::-1]
    assert first.sha256 == Structure(constant(), data).choices.sha256
    assert first.sha256 != Structure(constant(), data, seed=1).choices.sha256
    some = Structure(informed(data), data, max_reports=4)
    assert some.run(None).excluded == {"not drawn (max_reports)": 8}
    whole = dict(zip(data.ids, as_lists(first), strict=True))
    assert as_lists(some.choices) == [whole[i] for i in some.data.ids]


def test_structure_refuses_what_it_cannot_ask():
    data = FakeData(["normal", "clear lungs"])
    with pytest.raises(InputError, match=r"kinds: flip given; choices: shuffle_all_words, "):
        Structure(constant(), data, kinds=["flip"])
    with pytest.raises(InputError, match="kinds: none given"):
        Structure(constant(), data, kinds=[])
    with pytest.raises(
        InputError, match=r"every report of fake/test has fewer than 5 valid copies"
    ):
        Structure(constant(), data)
    with pytest.raises(InputError, match="num_perturbed is 0"):
        Structure(constant(), data, num_perturbed=0)
