"""SimpleShot, nearest neighbours and concordance against dense references and scikit-learn."""

import numpy as np
import pytest
from sklearn import neighbors

from mmrl.evaluators import metrics


def clusters(seed=0, count=60, width=6):
    """Training and test items of the classes 3, 5 and 9, away from the origin."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(3, width))
    found = []
    for size in (count, 40):
        place = rng.integers(0, 3, size)
        x = (means[place] + rng.normal(size=(size, width)) + 50).astype(np.float32)
        found += [x, np.array([3, 5, 9])[place]]
    return found


def centred_by_hand(train, one):
    moved = one.astype(np.float64) - train.astype(np.float64).mean(axis=0)
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)


def test_simple_shot_is_the_nearest_class_mean_of_centred_features():
    train_x, train_y, test_x, _ = clusters()
    train, test = (centred_by_hand(train_x, one) for one in (train_x, test_x))
    reference = neighbors.NearestCentroid().fit(train, train_y)
    found = metrics.simple_shot(train_x, train_y, test_x)
    np.testing.assert_array_equal(found, reference.predict(test))
    distances = np.linalg.norm(test[:, None] - reference.centroids_, axis=2)
    np.testing.assert_allclose(
        metrics.class_distances(train_x, train_y, test_x), distances, atol=1e-5
    )


def test_means_of_simple_shot_are_not_scaled_again():
    """Class 1 is spread around the circle, so that its mean is short and near to everything."""
    train = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0.6, 0.8], [-0.6, -0.8]], np.float32)
    y = np.array([0, 1, 1, 1, 0, 1])
    means = [np.array([0.8, 0.4]), np.array([-1.6, -0.8]) / 4]
    test = np.array([[0.0, 1.0]], np.float32)
    expected = [[np.linalg.norm(test[0] - mean) for mean in means]]
    np.testing.assert_allclose(metrics.class_distances(train, y, test), expected, atol=1e-6)
    assert metrics.simple_shot(train, y, test).tolist() == [0]


@pytest.mark.parametrize("k", [1, 5, 60])
def test_knn_is_the_majority_of_the_nearest(k):
    train_x, train_y, test_x, _ = clusters()
    train, test = (centred_by_hand(train_x, one) for one in (train_x, test_x))
    distances = np.linalg.norm(test[:, None] - train, axis=2)
    nearest = train_y[np.argsort(distances, axis=1)[:, :k]]
    votes = np.stack([(nearest == one).sum(axis=1) for one in (3, 5, 9)], axis=1)
    found = metrics.knn(train_x, train_y, test_x, k=k)
    np.testing.assert_array_equal(found, np.array([3, 5, 9])[votes.argmax(axis=1)])
    shares = metrics.neighbour_shares(train_x, train_y, test_x, k=k)
    np.testing.assert_allclose(shares, votes / k)


def test_of_equal_votes_the_smallest_class_wins():
    train = np.array([[1, 0], [1, 0.01], [-1, 0], [-1, 0.01]], np.float32)
    y = np.array([7, 2, 7, 2])
    assert metrics.knn(train, y, train, k=2).tolist() == [2, 2, 2, 2]
    assert metrics.knn(train, y, train, k=1).tolist() == [7, 2, 7, 2]
    with pytest.raises(ValueError, match="k is 5; expected from 1 to the 4 training items"):
        metrics.knn(train, y, train)


def test_scale_and_place_of_features_change_nothing():
    train_x, train_y, test_x, _ = clusters()
    for method in (metrics.simple_shot, metrics.knn):
        np.testing.assert_array_equal(
            method(train_x, train_y, test_x), method(train_x * 8 - 3, train_y, test_x * 8 - 3)
        )


def pairs_by_hand(time, event, risk):
    counts = [0, 0, 0, 0]
    for i in range(len(time)):
        for j in range(len(time)):
            same = time[i] == time[j] and not event[j]
            if i == j or not event[i] or not (time[i] < time[j] or same):
                continue
            place = 2 if abs(risk[i] - risk[j]) <= 1e-8 else 0 if risk[i] > risk[j] else 1
            counts[place] += 1
            counts[3] += same
    return tuple(counts)


@pytest.mark.parametrize("seed", range(4))
def test_concordance_counts_the_pairs_of_its_definition(seed, monkeypatch):
    """With ties of time and of risk, also in blocks of one row."""
    rng = np.random.default_rng(seed)
    time, event = rng.integers(1, 12, 40), rng.random(40) < 0.6
    risk = np.round(rng.normal(size=40), 1) + 5e-9 * rng.integers(0, 2, 40)
    expected = pairs_by_hand(time, event, risk)
    assert tuple(metrics.concordance_pairs(time, event, risk)) == expected
    concordant, discordant, tied, tied_time = expected
    assert tied and tied_time
    value = (concordant + tied / 2) / (concordant + discordant + tied)
    assert metrics.concordance(time, event, risk) == pytest.approx(value, abs=1e-15)
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 1)
    assert tuple(metrics.concordance_pairs(time, event, risk)) == expected


def test_concordance_of_known_risks():
    time, event = np.arange(1.0, 21), np.arange(20) % 3 != 0
    assert metrics.concordance(time, event, -time) == 1.0
    assert metrics.concordance(time, event, time) == 0.0
    assert metrics.concordance(time, event, np.ones(20)) == 0.5
    # Without censoring and ties it is the AUROC where there are two times.
    positive = np.arange(20) % 2 == 0
    risk = np.random.default_rng(0).normal(size=20)
    found = metrics.concordance(np.where(positive, 1, 2), positive, risk)
    assert found == pytest.approx(metrics.auroc(risk, positive))


def test_what_has_no_concordance_is_refused():
    with pytest.raises(ValueError, match="none of 3 items has an event before another"):
        metrics.concordance([1, 2, 3], [False, False, True], [1, 2, 3])
    with pytest.raises(ValueError, match=r"time \(2,\), event \(3,\)"):
        metrics.concordance([1, 2], [True, True, True], [1, 2])
    with pytest.raises(ValueError, match="must be finite"):
        metrics.concordance([1, np.nan], [True, True], [1, 2])


def test_what_is_not_known_is_no_event_and_no_class():
    with pytest.raises(ValueError, match="events must be 0 or 1"):
        metrics.concordance([1.0, 2.0], [1.0, np.nan], [0.0, 1.0])
    x = np.ones((3, 2), np.float32)
    bad = np.array([[np.nan, 0.0]])
    for classify in (metrics.simple_shot, metrics.knn):
        with pytest.raises(ValueError, match="must be finite"):
            classify(np.tile(x, (2, 1)), np.array([0, 1, 0, 1, 0, 1]), bad)
