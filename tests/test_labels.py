"""Label policies: what raw labels become, and exactly which ones are masked."""

import dataclasses

import numpy as np
import pytest

from mmrl import config as configs
from mmrl.data.labels import PRESETS, Policy
from mmrl.evaluators.truth import Facts, read_facts
from mmrl.types import InputError
from tests import toys

NAMES = ("Atelectasis", "Cardiomegaly", "Edema", "Fracture")
RAW = np.array([[1, 0, -1, -2], [-1, -1, 0, -1], [-2, 1, -2, 0]], np.int8)
READ = [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
T, F = True, False


@pytest.mark.parametrize(
    ("policy", "labels", "mask"),
    [
        (
            Policy(),
            [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]],
            [[T, T, F, F], [F, F, T, F], [F, T, F, T]],
        ),
        (
            Policy("zeros"),
            [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]],
            [[T, T, T, F], [T] * 4, [F, T, F, T]],
        ),
        (Policy("ones", "zero"), [[1, 0, 1, 0], [1, 1, 0, 1], [0, 1, 0, 0]], [[T] * 4] * 3),
        (Policy("classes", "zero"), [[1, 0, 2, 0], [2, 2, 0, 2], [0, 1, 0, 0]], [[T] * 4] * 3),
        (
            Policy("ignore", "ignore", {"Edema": "ones", "Cardiomegaly": "zeros"}),
            [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]],
            [[T, T, T, F], [F, T, T, F], [F, T, F, T]],
        ),
        (
            PRESETS["gloria"],
            [[1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]],
            [[T] * 4, [T, T, T, F], [T] * 4],
        ),
    ],
)
def test_labels_and_mask(policy, labels, mask):
    found, kept = policy(NAMES, RAW)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(kept, mask)
    assert found.dtype == np.int8 and kept.dtype == np.bool_


def test_presets_are_read_from_the_config():
    given = {"preset": "mgca", "uncertain": "ignore", "blank": "ignore", "labels": {}}
    assert Policy.from_config(given) == PRESETS["mgca"]
    config = toys.config()
    assert Policy.from_config(config.data.label_policy) == Policy()
    config.data.label_policy.labels = {"Edema": "ones"}
    config.data.label_policy.blank = "zero"
    stored = configs.from_plain(configs.plain(config))
    assert Policy.from_config(stored.data.label_policy) == Policy(
        "ignore", "zero", {"Edema": "ones"}
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"uncertain": "one"},
            r"config.data.label_policy.uncertain 'one'.*ignore, zeros, ones",
        ),
        ({"blank": "zeros"}, "unknown config.data.label_policy.blank 'zeros'"),
        ({"labels": {"Edema": "two"}}, r"label_policy.labels.Edema 'two'"),
        ({"preset": "chexnet"}, r"label_policy.preset 'chexnet'"),
        ({"preset": "gloria", "blank": "zero"}, "preset 'gloria' together with other keys"),
        ({"mask": 1}, r"unknown key in config.data.label_policy 'mask'"),
    ],
)
def test_what_is_wrong_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        Policy.from_config(given)


def test_strange_labels_are_refused():
    with pytest.raises(InputError, match="a label of 3; expected 1, 0, -1 or -2"):
        Policy()(("a", "b"), np.array([1, 3]))
    with pytest.raises(InputError, match=r"labels of shape \[3\]; expected \[..., 2\]"):
        Policy()(("a", "b"), np.array([1, 0, 1]))


def test_zero_shot_reads_labels_by_the_policy():
    record = dataclasses.replace(
        toys.ToySource(9)[1], label_names=NAMES, labels=(1, 0, -1, -2), findings=()
    )
    here = {"Atelectasis": frozenset({""})}
    assert read_facts([record]) == [Facts(here, frozenset({"Cardiomegaly"}))]
    assert read_facts([record], Policy("ones", "zero")) == [
        Facts({**here, "Edema": frozenset({""})}, frozenset({"Cardiomegaly", "Fracture"}))
    ]
    assert read_facts([record], Policy("classes", "zero")) == [
        Facts(here, frozenset({"Cardiomegaly", "Fracture"}))
    ]
