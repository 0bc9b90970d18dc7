"""Arithmetic on vectors that models and objectives share."""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """x [..., D] of any float dtype -> f32[..., D] = x / max(|x|, epsilon).

    The gradient is finite everywhere; at zero it is the identity / epsilon.
    """
    x = x.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))
