"""Choice of samples by cluster, and scores of pairs, against slow references and known cases."""

import numpy as np
import pytest

from mmrl.data.curation import select, select_by_deviation
from mmrl.data.triplets import pair_score
from mmrl.types import InputError
from tests.arrays import unit

N, K, D = 211, 5, 6


def made():
    features, prototypes = unit(N, D), unit(K, D, seed=1)
    distance = np.array(
        [[np.sqrt(((x.astype(float) - p) ** 2).sum()) for p in prototypes] for x in features]
    )
    return features, prototypes, distance.min(axis=1), distance.argmin(axis=1)


def farthest(points, most, first):
    """Each next point is the one whose nearest chosen point is farthest."""
    chosen = [first]
    while len(chosen) < most:
        near = [min(np.linalg.norm(x - points[c]) for c in chosen) for x in points]
        chosen.append(int(np.argmax(near)))
    return chosen


def quantile(values, share):
    """Linear interpolation between the neighbours in order."""
    place = share * (len(values) - 1)
    below = int(place)
    ordered = [*sorted(values), max(values)]
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


@pytest.mark.parametrize(
    "options", [{}, {"outlier": 0.8, "support": 0.5, "most": 3}, {"most": 1}, {"most": 1000}]
)
@pytest.mark.parametrize("start", [None, [3, 0, 1, 2, 5]])
def test_the_released_choice_equals_the_reference(options, start):
    features, prototypes, distance, cluster = made()
    share = {"outlier": 0.95, "support": 0.85, "most": 10, **options}
    expected = np.zeros(N, bool)
    for k in range(K):
        rows = np.flatnonzero(cluster == k)
        low, high = (quantile(distance[rows], share[name]) for name in ("support", "outlier"))
        central = [i for i in rows if distance[i] <= low]
        expected[[i for i in rows if low < distance[i] <= high]] = True
        if len(central) > share["most"]:
            points = features[central].astype(float)
            first = 0 if start is None else start[k]
            central = [central[i] for i in farthest(points, share["most"], first)]
        expected[central] = True
    got = select(features, prototypes, first=start, **options)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == bool and 0 < got.sum() < N


def test_few_samples_are_all_kept_but_the_farthest():
    features, prototypes = unit(11, D), unit(1, D, seed=1)
    got = select(features, prototypes)
    dropped = np.argmax(np.linalg.norm(features - prototypes, axis=1))
    np.testing.assert_array_equal(np.flatnonzero(~got), [dropped])
    np.testing.assert_array_equal(select(features[:1], prototypes), [True])
    assert select(features[:0], prototypes).shape == (0,)


def test_a_start_may_be_stated_for_some_clusters_alone():
    features, prototypes, *_ = made()
    whole = select(features, prototypes, first=[0] * K)
    np.testing.assert_array_equal(
        select(features, prototypes, first=dict.fromkeys(range(K), 0)), whole
    )
    np.testing.assert_array_equal(select(features, prototypes), whole)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.55, 1.0])
def test_the_choice_by_deviation_equals_the_reference(ratio):
    features, prototypes, distance, cluster = made()
    expected = np.zeros(N, bool)
    for k in range(K):
        rows = np.flatnonzero(cluster == k)
        mean, spread = distance[rows].mean(), distance[rows].std()
        level = (distance[rows] - mean) / spread
        central, outside = rows[level <= 1], rows[(level > 1) & (level < 2)]
        expected[rows[(level >= 2) & (level < 3)]] = True
        budget = max(1, int((len(central) + len(outside)) * ratio))
        roots = np.sqrt([len(central), len(outside)])
        share = round(budget * roots[0] / roots.sum())
        for members, most in ((central, share), (outside, budget - share)):
            most = min(most, len(members))
            if most:
                chosen = farthest(features[members].astype(float), most, 0)
                expected[members if most == len(members) else members[chosen]] = True
    got = select_by_deviation(features, prototypes, ratio=ratio)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda f, p: select(f, p[:, :2]), "expected [N, D] and [K, D]"),
        (lambda f, p: select(f, p[:0]), "no prototypes"),
        (lambda f, p: select(f, p, support=0.96), "support 0.96"),
        (lambda f, p: select(f, p, most=0), "most 0"),
        (lambda f, p: select(f, p, first=[99] * K), "first of cluster 0 is 99; expected 0 to"),
        (lambda f, p: select_by_deviation(f, p, ratio=2.0), "ratio 2.0"),
    ],
)
def test_what_cannot_be_chosen_is_refused(call, text):
    with pytest.raises(InputError) as error:
        call(*made()[:2])
    assert text in str(error.value)


def jaccard(one, two):
    return len(one & two) / len(one | two) if one | two else 1.0


def score(i, j, labels, described, adjectives, directions, weights):
    def members(row):
        return set(np.flatnonzero(row))

    own, other = members(described[i]), members(described[j])
    total = weights[0] * jaccard(members(labels[i]), members(labels[j]))
    for weight, sets in zip(weights[1:], (adjectives, directions), strict=True):
        if own:
            found = [jaccard(members(sets[i, e]), members(sets[j, e])) for e in own & other]
            total += weight * sum(found) / len(own)
    return total


@pytest.mark.parametrize("weights", [(0.85, 0.10, 0.05), (0.2, 0.5, 0.3)])
def test_scores_of_pairs_equal_the_reference(weights):
    rng = np.random.default_rng(0)
    arrays = [rng.random(shape) < 0.4 for shape in ((11, 5), (11, 5), (11, 5, 3), (11, 5, 2))]
    arrays[0][:2] = False  # no label
    arrays[1][0] = False  # describes nothing
    got = pair_score(*arrays, weights=weights)
    expected = [[score(i, j, *arrays, weights) for j in range(11)] for i in range(11)]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.abs(got - got.T).max() > 0.01  # not symmetric


def test_scores_by_hand():
    labels = np.array([[1, 1], [1, 0], [0, 0]], bool)
    described = np.array([[1, 1], [1, 0], [0, 0]], bool)
    adjectives = np.array([[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]], bool)
    directions = np.zeros((3, 2, 1), bool)
    got = pair_score(labels, described, adjectives, directions)
    # One of two labels; half the adjectives, and two empty sets of directions, of one of two.
    assert got[0, 1] == pytest.approx(0.85 / 2 + 0.10 * 0.5 / 2 + 0.05 * 1 / 2)
    assert got[1, 0] == pytest.approx(0.85 / 2 + 0.10 * 0.5 + 0.05)
    assert got[2, 2] == pytest.approx(0.85)  # describes nothing
    with pytest.raises(InputError, match="expected"):
        pair_score(labels, described[:2], adjectives, directions)
