"""Draws of training records by patient."""

import itertools

import numpy as np
import pytest

from mmrl.data.draws import draw_by_patient
from mmrl.types import InputError


def patients(count, each=3):
    """Names of `count` patients with `each` rows, in a mixed order."""
    names = np.repeat([f"p{n}" for n in range(count)], each)
    return np.random.default_rng(0).permutation(names)


def of(names, rows):
    return set(np.asarray(names)[rows].tolist())


@pytest.mark.parametrize("draw", range(5))
def test_small_draws_lie_within_large_ones_and_hold_whole_patients(draw):
    names = patients(200)
    truth = np.random.default_rng(1).integers(0, 2, (600, 4), np.int8)
    drawn = [draw_by_patient(names, truth, part, draw=draw) for part in (0.01, 0.1, 0.5, 1)]
    for small, large in itertools.pairwise(drawn):
        assert set(small.tolist()) < set(large.tolist())
    for rows in drawn:
        assert rows.dtype == np.int64 and (np.diff(rows) > 0).all()
        assert rows.tolist() == np.flatnonzero(np.isin(names, list(of(names, rows)))).tolist()
    assert [len(of(names, rows)) for rows in drawn[1:]] == [20, 100, 200]


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(30, 0.1, 3), (3, 0.1, 1), (101, 0.01, 2), (7, 1.0, 7)]
)
def test_the_number_of_patients_is_rounded_up(count, fraction, expected):
    names = patients(count)
    assert len(of(names, draw_by_patient(names, None, fraction))) == expected


def test_a_draw_depends_on_its_number_and_seed_but_not_on_the_order_of_rows():
    names = patients(100)
    first = draw_by_patient(names, None, 0.1)
    assert np.array_equal(first, draw_by_patient(names, None, 0.1))
    others = [draw_by_patient(names, None, 0.1, **own) for own in ({"draw": 1}, {"seed": 1})]
    assert not any(of(names, first) == of(names, other) for other in others)
    order = np.random.default_rng(2).permutation(len(names))
    assert of(names[order], draw_by_patient(names[order], None, 0.1)) == of(names, first)


@pytest.mark.parametrize("draw", range(20))
def test_a_draw_has_every_class_and_keeps_its_size(draw):
    names = np.array([f"p{n}" for n in range(400)])
    truth = np.zeros(400, np.int64)
    truth[7], truth[[11, 12]] = 1, 2
    rows = draw_by_patient(names, truth, 0.02, draw=draw)
    assert set(truth[rows]) == {0, 1, 2}
    assert len(rows) == 8
    plain = draw_by_patient(names, None, 0.02, draw=draw)
    if set(truth[plain]) == {0, 1, 2}:
        assert np.array_equal(rows, plain)  # nothing is replaced where nothing is missing
    assert len(set(plain) - set(rows)) <= 2


def test_more_patients_are_drawn_where_fewer_lack_a_class():
    truth = np.arange(10)
    assert len(draw_by_patient([f"p{n}" for n in range(10)], truth, 0.1)) == 10


def test_both_classes_of_every_label_are_drawn():
    names = [f"p{n}" for n in range(300)]
    truth = np.zeros((300, 3), np.int8)
    truth[5, 0], truth[9, 1] = 1, 1
    truth[:, 2] = -2
    truth[3, 2], truth[8, 2] = 1, -1
    rows = draw_by_patient(names, truth, 0.01)
    assert len(rows) == 4  # three of 300 patients, and one more for the fourth class
    assert {3, 5, 9} < set(rows.tolist())


@pytest.mark.parametrize("shape", [(60,), (60, 2)])
def test_rows_without_a_known_truth_are_not_drawn(shape):
    names = patients(20)
    truth = np.random.default_rng(3).integers(0, 2, shape).astype(np.int8)
    unknown = np.isin(names, ["p1", "p2"])
    unknown[0] = True
    truth[unknown] = -2
    rows = draw_by_patient(names, truth, 1.0)
    assert rows.tolist() == np.flatnonzero(~unknown).tolist()
    assert len(of(names, draw_by_patient(names, truth, 0.5))) == 9  # of 18 with a known truth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0}, "fraction=0"),
        ({"fraction": 1.5}, "at most 1"),
        ({"draw": -1}, "draw=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"truth": np.zeros(3)}, "truth [3] of 4 rows"),
        ({"truth": np.full(4, -2)}, "none of 4 rows has a known truth"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    given = {"fraction": 0.5, "truth": np.zeros(4), "draw": 0, "seed": 0} | changes
    with pytest.raises(InputError) as refused:
        draw_by_patient(list("abcd"), given.pop("truth"), given.pop("fraction"), **given)
    assert message in str(refused.value)
