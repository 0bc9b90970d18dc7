"""Arithmetic on vectors that models and objectives share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """x [..., D] of any float dtype -> f32[..., D] = x / max(|x|, epsilon).

    The gradient is finite everywhere; at zero it is the identity / epsilon.
    """
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(equation: str, one: jax.Array, two: jax.Array, dtype: Any) -> jax.Array:
    """`jnp.einsum` of two arrays that multiplies in `dtype` and adds in float32.

    The gradients are computed in the same way, which plain differentiation would not do: it would
    multiply the float32 cotangent.

    Args:
      equation: every index stands in two of its three parts.
      one, two: f32. dtype: float32 or a narrower type.

    Returns:
      f32.
    """
    one, two = one.astype(dtype), two.astype(dtype)
    return jnp.einsum(equation, one, two, preferred_element_type=jnp.float32)


def _contract_forward(
    equation: str, one: jax.Array, two: jax.Array, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return contract(equation, one, two, dtype), (one, two)


def _contract_backward(
    equation: str, dtype: Any, saved: tuple[jax.Array, jax.Array], slope: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, out = equation.split("->")
    first, second = inputs.split(",")
    one, two = saved
    return (
        contract(f"{out},{second}->{first}", slope, two, dtype),
        contract(f"{out},{first}->{second}", slope, one, dtype),
    )


contract.defvjp(_contract_forward, _contract_backward)


def matmul_dtype(*features: jax.Array) -> Any:
    """The type in which to multiply these: bfloat16 or float16 where all are, else float32."""
    types = {x.dtype for x in features}
    narrow = len(types) == 1 and types <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}
    return types.pop() if narrow else jnp.dtype(jnp.float32)
