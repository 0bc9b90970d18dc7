"""Pooling of the tokens of a text by attention to learned vectors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import LayerNorm, Mlp, dense, flatten
from mmrl.types import InputError


class LatentAttention(nnx.Module):
    """Attention of the tokens of a text to learned vectors; the pooled feature is their mean.

    Lee et al. 2024 ("NV-Embed", section 3.1) with the norms, residual sums and gated GELU of their
    released weights: x + attention(norm(x), latent_norm(latents)), then x + mlp(mlp_norm(x)).
    Tokens do not see each other, so the result for one does not depend on padding or packing.

    Args:
      width: features of a token.
      latents: number of learned vectors.
      num_heads: attention heads.
      head_dim: features of a head; 0: width / num_heads.
      mlp_dim: hidden features of the MLP; by default 4 * width.
      epsilon: added to the variance by the norms.

    Raises:
      InputError: sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        width: int,
        latents: int = 512,
        num_heads: int = 8,
        head_dim: int = 0,
        mlp_dim: int | None = None,
        epsilon: float = 1e-5,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if latents < 1 or num_heads < 1 or head_dim < 0 or (not head_dim and width % num_heads):
            raise InputError(
                f"pool latent_attention: latents {latents}, num_heads {num_heads}, head_dim "
                f"{head_dim}, width {width}; expected at least one latent, and a width that is a "
                "multiple of num_heads or a head_dim above 0"
            )
        self.num_heads = num_heads
        inner = num_heads * (head_dim or width // num_heads)
        numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = functools.partial(
            LayerNorm, width, epsilon=epsilon, param_dtype=param_dtype, rngs=rngs
        )
        init = nnx.with_partitioning(nnx.initializers.normal(1.0), (None, "embed"))
        self.latents = nnx.Param(init(rngs.params(), (latents, width), param_dtype))
        self.norm, self.latent_norm, self.mlp_norm = norm(), norm(), norm()
        self.query = dense(width, inner, ("embed", "heads"), use_bias=False, **numbers)
        self.key = dense(width, inner, ("embed", "heads"), use_bias=False, **numbers)
        self.value = dense(width, inner, ("embed", "heads"), use_bias=False, **numbers)
        self.out = dense(inner, width, ("heads", "embed"), use_bias=False, **numbers)
        self.mlp = Mlp(width, mlp_dim or 4 * width, gated=True, **numbers)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [N, L, width] -> [N, L, width], of which the caller takes means over tokens."""
        query = self.query(flatten(self.norm(x))).reshape(*x.shape[:2], self.num_heads, -1)
        latents = self.latent_norm(self.latents[...].astype(x.dtype))
        key, value = (
            jnp.broadcast_to(one[None], (len(x), *one.shape)).reshape(
                len(x), -1, self.num_heads, query.shape[3]
            )
            for one in (self.key(latents), self.value(latents))
        )
        # jax.nn computes the softmax in float32 by implicit promotion, which strict mode refuses.
        with jax.numpy_dtype_promotion("standard"):
            attended = jax.nn.dot_product_attention(query, key, value)
        x = x + self.out(attended.reshape(len(flatten(x)), -1)).reshape(x.shape)
        return x + self.mlp(self.mlp_norm(x))
