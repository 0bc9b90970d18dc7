"""How much arithmetic a step needs, counted from what JAX traces, and how fast the device could be.

Only matrix products and convolutions count, two operations per multiply-add, as is the custom for
model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B). XLA's own count takes the body
of a `scan` once, whatever its length; this one multiplies.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import core

from mmrl.devices import hardware


def peak(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one device; None where it is not known, such as for a CPU."""
    chip = hardware.find(device_kind)
    return None if chip is None else chip.peak


def count(
    function: Callable[..., Any], *arguments: Any, arm: Callable[[Iterable[int]], int] = max
) -> int:
    """FLOPs of matrix products and convolutions in `function(*arguments)`.

    Args:
      function: traceable by JAX; traced, never run.
      arguments: arrays or ShapeDtypeStructs.
      arm: which arm of a branch counts, max or min.

    Returns:
      FLOPs of all devices. Of a `while` loop one round, for its number of rounds is not known; a
      `shard_map` counts for all its devices.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr, arm)


_Arm = Callable[[Iterable[int]], int]


def of_jaxpr(jaxpr: core.Jaxpr, arm: _Arm = max) -> int:
    """As `count`, of what was traced already."""
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
    """The programs inside an equation; the rules for its derivative are functions, not programs."""
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
