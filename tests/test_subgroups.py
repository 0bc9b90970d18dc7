"""Subgroups: which examples belong to them, and which groups have rows of their own."""

import numpy as np
import pytest

from mmrl.evaluators import statistics
from mmrl.evaluators.subgroups import sizes, subgroups
from mmrl.types import ImageRef, Record
from tests.fakes import FakeData


def refuse():
    raise AssertionError("subgroups read pixels")


class Stated(FakeData):
    """Records with the attributes of one row each; nothing else is stated."""

    def __init__(self, rows):
        super().__init__([""] * len(rows))
        self.rows = rows

    def record(self, index):
        facts = dict(self.rows[index])
        projection = facts.pop("projection", "UNKNOWN")
        corpus = facts.pop("corpus", "table")
        images = (ImageRef("a.png", refuse, projection),)
        name = f"p{index}"
        return Record(
            f"{corpus}:{index}", corpus, name, name, name, "test", images, {}, attributes=facts
        )


def members(data, least=1):
    return {
        name: np.flatnonzero(mask).tolist() for name, mask in subgroups(data, least=least).items()
    }


def test_sexes_are_spelt_in_several_ways_and_unknown_ones_listed():
    data = Stated([{"sex": text} for text in ("F", "female", "M", " Male ", "", "n/a", "O")] + [{}])
    assert members(data) == {
        "sex=F": [0, 1],
        "sex=M": [2, 3],
        "sex=other": [6],
        "sex=unknown": [4, 5, 7],
    }


@pytest.mark.parametrize(
    ("text", "band"),
    [
        *(("0", "<20"), ("19", "<20"), ("19.9", "<20"), ("20", "20-39"), ("39Y", "20-39")),
        *(("040Y", "40-59"), ("54.0", "40-59"), ("60", "60-79"), ("79", "60-79"), ("80", "80+")),
        *(("120", "80+"), ("121", "unknown"), ("414", "unknown"), ("-3", "unknown")),
        *(("018M", "<20"), ("300M", "20-39"), ("003W", "<20"), ("9D", "<20")),
        *(("50+", "unknown"), ("", "unknown"), ("old", "unknown"), ("nan", "unknown")),
    ],
)
def test_age_bands(text, band):
    assert sizes(Stated([{"age": text}]))[f"age={band}"] == 1


def test_groups_come_in_order_and_unknown_last():
    data = Stated([{"age": age} for age in ("90", "", "5", "65", "30", "50")])
    names = ["<20", "20-39", "40-59", "60-79", "80+", "unknown"]
    assert list(subgroups(data, least=1)) == [f"age={name}" for name in names]


def test_small_groups_and_attributes_of_one_group_have_no_rows():
    data = Stated(
        [{"sex": "F", "projection": "PA", "age": "50"}] * 20
        + [{"sex": "M", "projection": "AP", "age": "50"}] * 20
        + [{"projection": "LATERAL"}] * 19
    )
    found = subgroups(data)
    assert {name: mask.sum() for name, mask in found.items()} == {
        "sex=F": 20,
        "sex=M": 20,
        "projection=AP": 20,
        "projection=PA": 20,
    }
    assert all(mask.shape == (59,) and mask.dtype == bool for mask in found.values())
    assert sizes(data) == {
        "sex=F": 20,
        "sex=M": 20,
        "sex=unknown": 19,
        "age=40-59": 40,
        "age=unknown": 19,
        "projection=AP": 20,
        "projection=LATERAL": 19,
        "projection=PA": 20,
        "source=table": 59,
    }
    # One stated group and unknown ones are no comparison.
    assert subgroups(Stated([{"sex": "F"}] * 20 + [{}] * 20)) == {}


def test_source_is_that_of_the_record_or_of_its_corpus():
    data = Stated([{"source": "clinic A"}, {"source": ""}, {"corpus": "openi"}])
    assert members(data) == {"source=clinic A": [0], "source=openi": [2], "source=table": [1]}


def test_groups_divide_every_example_and_follow_a_subset():
    rng = np.random.default_rng(0)
    rows = [
        {"sex": rng.choice(["F", "M", ""]), "age": str(rng.integers(0, 200))} for _ in range(300)
    ]
    data = Stated(rows)
    found = subgroups(data, least=1)
    for attribute in ("sex", "age"):
        masks = [mask for name, mask in found.items() if name.startswith(f"{attribute}=")]
        np.testing.assert_array_equal(np.sum(masks, axis=0), 1)
    chosen = rng.permutation(300)[:100]
    part = subgroups(statistics.Subset(data, chosen), least=1)
    for name, mask in part.items():
        np.testing.assert_array_equal(mask, found[name][chosen])


def test_nothing_is_stated_of_no_examples():
    assert subgroups(Stated([])) == {} and sizes(Stated([])) == {}
