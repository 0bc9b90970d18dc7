"""How much arithmetic a step needs, counted from what JAX traces, and how fast the device could be.

Only matrix products and convolutions count, two operations per multiply-add, as is the custom for
model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B): what rematerialisation computes
again is not counted, a backward pass counts as two forward passes. XLA's own count takes the body
of a `scan` once, whatever its length; this one multiplies.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# Dense bfloat16 peak of one device in FLOP/s, by what `device_kind` begins with; from the vendors'
# data sheets (NVIDIA without sparsity; Google Cloud TPU system architecture).
PEAK_BFLOAT16 = {
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
}


def peak(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of one device; None where it is not known, such as for a CPU."""
    for name, flops in PEAK_BFLOAT16.items():
        if device_kind.startswith(name):
            return flops
    return None


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of matrix products and convolutions in `function(*arguments)`.

    Args:
      function: traceable by JAX; traced, never run.
      arguments: arrays or ShapeDtypeStructs.

    Returns:
      Of a branch the most expensive arm; of a `while` loop one round, for its number of rounds is
      not known. A `shard_map` counts for all its devices.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(_of_jaxpr(branch.jaxpr) for branch in parameters["branches"])
    inner = sum(_of_jaxpr(part) for part in _parts(parameters))
    if name == "scan":
        return inner * parameters["length"]
    if name == "shard_map":
        return inner * parameters["mesh"].size
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
    left = equation.invars[0].aval.shape
    out = equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    # The kernel already holds the input channels of one group.
    channels = kernel[numbers.rhs_spec[1]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * window * channels
