"""Checks of published systems: their files fit, and claims are judged as the page says."""

import itertools
import math

import pytest

from benchmarks.systems import check
from benchmarks.systems.check import Claim
from mmrl import presets
from tests.conftest import ROOT

CLAIM = Claim("accuracy", "accuracy", beside=("blind", "constant"))


def seeds(accuracy, blind=(0.3, 0.3, 0.3)):
    return [
        {"accuracy": one, "blind": other, "constant": 0.25}
        for one, other in zip(accuracy, blind, strict=True)
    ]


def test_the_effect_is_taken_to_the_best_of_those_beside():
    (one,) = seeds([0.8], [0.1])
    assert CLAIM.effect(one) == pytest.approx(0.55)
    less = Claim("error", "error", beside=("mean", "blind"), less=True)
    assert less.effect({"error": 1.0, "mean": 4.0, "blind": 3.0}) == 2.0


def test_the_interval_is_that_of_student():
    low, high = check.interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # the quantile with two degrees of freedom
    assert (low, high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert check.interval([1.0]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("accuracy", "threshold", "holds"),
    [
        ((0.8, 0.81, 0.82), 0.4, True),
        ((0.8, 0.81, 0.82), 0.6, False),  # below the threshold
        ((0.31, 0.9, 0.6), 0.2, False),  # the interval contains 0
        ((0.3, 0.3, 0.3), 0.0, False),  # no better than the blind answer
        ((0.8, 0.81, 0.82), None, False),  # nothing was frozen
    ],
)
def test_claims_without_bounds(accuracy, threshold, holds):
    assert check.judge(CLAIM, seeds(accuracy), threshold).holds is holds


@pytest.mark.parametrize(("most", "holds"), [(0.8, False), (0.83, True)])
def test_claims_with_bounds_hold_in_every_seed(most, holds):
    claim = Claim("accuracy", "accuracy", least=0.5, most=most)
    assert check.judge(claim, seeds((0.7, 0.81, 0.82))).holds is holds


def test_claims_with_bounds_have_to_beat_what_is_beside_them():
    claim = Claim("accuracy", "accuracy", beside=("blind",), least=0.5)
    assert check.judge(claim, seeds((0.7, 0.71, 0.72))).holds
    assert not check.judge(claim, seeds((0.7, 0.71, 0.72), (0.69, 0.75, 0.7))).holds


def test_runs_that_are_given_alike_share_a_folder():
    assert check.slug(("m3ae:small",)) == "m3ae_small"
    assert check.slug(("m3ae", *check.UNTRAINED)) == "m3ae-untrained"
    one, two = (check.slug(("m3ae", f"--config.total_steps={n}")) for n in (1, 2))
    assert one != two


@pytest.mark.parametrize("name", check.names())
def test_rows(name):
    row = check.load(name)
    assert "\n" not in (row.__doc__ or "\n").strip()
    assert row.EXPRESSED and isinstance(row.DIFFERS, str)
    stated = [claim.value for claim in row.CLAIMS]
    assert stated and len(set(stated)) == len(stated)
    for claim in row.CLAIMS:
        assert claim.bounded or claim.beside, claim.text
    for given in row.RUNS.values():
        preset = check.arguments(given, 0)[0].removeprefix("--config=")
        path, colon, variants = preset.partition(":")
        presets.load(f"{ROOT / path}{colon}{variants}")


def test_every_system_has_one_row_at_most():
    numbers = list(itertools.chain.from_iterable(check.load(n).NUMBERS for n in check.names()))
    assert len(set(numbers)) == len(numbers)


def test_presets_of_systems_are_short():
    for path in (ROOT / "configs" / "systems").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path.name
