"""Schedules: their values before, between and after their ends, and what they refuse."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from mmrl import schedules
from mmrl.types import InputError

WHERE = "config.objectives.siglip.weight"


def values(given, *steps):
    schedule = schedules.parse(WHERE, given)
    call = jax.jit(lambda step: jnp.float32(schedule(step)))
    return [float(call(jnp.int32(step))) for step in steps]


def test_a_number_is_the_same_at_every_step():
    for given in (0.25, {"end": 0.25}, {"kind": "linear", "start": 0.25, "end": 0.25, "steps": 9}):
        assert values(given, 0, 5, 10**6) == [0.25] * 3
        assert schedules.parse(WHERE, given).constant == 0.25
    assert values(2, 0) == [2.0]
    moving = {"kind": "linear", "start": 0.0, "end": 0.25, "steps": 9}
    assert schedules.parse(WHERE, moving).constant is None


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_both_ends_are_exact_and_hold_outside(kind):
    given = {"kind": kind, "start": 0.992, "end": 0.5, "from_step": 10, "steps": 20}
    first, last = (float(jnp.float32(value)) for value in (0.992, 0.5))
    assert values(given, 0, 9, 10) == [first] * 3
    assert values(given, 30, 31, 10**9) == pytest.approx([last] * 3, abs=1e-7)
    assert values(given, 20) == pytest.approx([(0.992 + 0.5) / 2], abs=1e-6)


def test_values_between_the_ends_in_closed_form():
    linear = {"kind": "linear", "start": 1.0, "end": 3.0, "steps": 8}
    assert values(linear, 0, 1, 2, 7, 8) == pytest.approx([1.0, 1.25, 1.5, 2.75, 3.0])
    cosine = {**linear, "kind": "cosine"}
    expected = [3.0 - (1 + math.cos(math.pi * step / 8)) for step in (1, 2, 3, 7)]
    assert values(cosine, 1, 2, 3, 7) == pytest.approx(expected, abs=1e-6)


def test_without_steps_the_value_jumps():
    given = {"kind": "linear", "start": 1.0, "end": 3.0, "from_step": 4}
    assert values(given, 3, 4, 5) == [1.0, 1.0, 3.0]


def test_a_config_holds_schedules_and_modules_may():
    given = {"kind": "cosine", "start": 0.0, "end": 1.0, "steps": 4}
    parsed = schedules.parse(WHERE, given)
    assert parsed == schedules.parse(WHERE, ml_collections.ConfigDict(given))
    assert hash(parsed) == hash(schedules.parse(WHERE, dict(given)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0.1", f"{WHERE}='0.1'; expected a number, or a mapping such as"),
        (None, f"{WHERE}=None; expected a number"),
        (True, f"{WHERE}=True; expected a number"),
        ((0.0, 1.0), f"{WHERE}=(0.0, 1.0); expected a number"),
        (math.nan, "end nan must be finite numbers"),
        (math.inf, "end inf must be finite numbers"),
        ({"kind": "step"}, f"unknown kind in {WHERE} 'step'; choices: constant, linear, cosine"),
        ({"kind": "linear", "stop": 3}, f"unknown option in {WHERE} 'stop'"),
        ({"kind": "linear", "start": "0"}, f"{WHERE}: start '0' and end 0.0 must be finite"),
        ({"kind": "linear", "end": None}, f"{WHERE}: start 0.0 and end None must be finite"),
        ({"kind": "linear", "steps": -1}, "from_step 0 and steps -1 must be whole numbers of at"),
        ({"kind": "linear", "from_step": -1}, "from_step -1 and steps 0 must be whole numbers"),
        ({"kind": "linear", "steps": 1.5}, "from_step 0 and steps 1.5 must be whole numbers"),
    ],
)
def test_what_is_no_schedule_is_refused_in_one_line(given, message):
    with pytest.raises(InputError) as error:
        schedules.parse(WHERE, given)
    assert message in str(error.value) and "\n" not in str(error.value)
