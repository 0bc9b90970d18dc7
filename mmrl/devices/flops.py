"""Counts the FLOPs of a traced function, and gives the peak FLOP/s of a device.

As usual for model FLOPs utilisation, only matrix products and convolutions count, with two
operations per multiply-add (Chowdhery et al. 2022, "PaLM", appendix B). XLA's cost analysis counts
the body of a `scan` once; this count multiplies it by the length of the scan.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import core

from mmrl.devices import hardware


def peak(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one device; None if unknown, for example for a CPU."""
    chip = hardware.find(device_kind)
    return None if chip is None else chip.peak


def count(
    function: Callable[..., Any], *arguments: Any, arm: Callable[[Iterable[int]], int] = max
) -> int:
    """FLOPs of matrix products and convolutions in `function(*arguments)`.

    Args:
      function: is traced by JAX, but not run.
      arguments: arrays or ShapeDtypeStructs.
      arm: combines the FLOPs of the branches of a conditional, for example max or min.

    Returns:
      FLOPs of all devices together. A `while` loop, whose trip count is unknown, counts once.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, arm)


_Arm = Callable[[Iterable[int]], int]


def of_jaxpr(jaxpr: core.Jaxpr, arm: _Arm = max) -> int:
    """As `count`, for a function that has been traced already."""
    return sum(_of_equation(equation, arm) for equation in jaxpr.eqns)


def may_repeat(jaxpr: core.Jaxpr) -> bool:
    """Whether a program has loops, recomputation or device-local parts.

    Where it has none, every product in it is computed once, so `of_jaxpr` is what the result needs.
    """
    return any(
        equation.primitive.name in _REPEATING or any(map(may_repeat, _parts(equation.params)))
        for equation in jaxpr.eqns
    )


_REPEATING = ("scan", "while", "cond", "remat2", "checkpoint", "shard_map", "pallas_call")


def _of_equation(equation: core.JaxprEqn, arm: _Arm) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return arm(of_jaxpr(branch.jaxpr, arm) for branch in parameters["branches"])
    inner = sum(of_jaxpr(part, arm) for part in _parts(parameters))
    if name == "scan":
        return inner * parameters["length"]
    if name == "shard_map":
        return inner * parameters["mesh"].size
    if name == "pallas_call":
        return inner * math.prod(parameters["grid_mapping"].grid)
    return inner


def _parts(parameters: dict[str, Any]) -> list[core.Jaxpr]:
    """The jaxprs inside an equation, without its derivative rules, which are functions."""
    found = []
    for value in parameters.values():
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
    return found


def _dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    numbers = equation.params["dimension_numbers"]
    kernel = _shape(equation.invars[1])
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    # The kernel already holds the input channels of one group.
    channels = kernel[numbers.rhs_spec[1]]
    return 2 * math.prod(_shape(equation.outvars[0])) * window * channels


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
