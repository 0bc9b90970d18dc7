"""Heads that project encoder features into the joint embedding space."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import LayerNorm, check_choice, dense, flatten


class Projection(nnx.Module):
    """[..., in_features] -> [..., out_features].

    kind "linear": one linear layer without bias. kind "affine": the same with bias. kind
    "normed": layer norm, then the same with bias. kind "mlp": linear, exact GELU, linear, with
    `hidden` features between (default: in_features). Raises InputError for another kind.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kind: str = "linear",
        hidden: int | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("Projection", "kind", kind, ("linear", "affine", "normed", "mlp"))
        self.kind = kind
        make = functools.partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        if kind != "mlp":
            if kind == "normed":
                self.norm = LayerNorm(in_features, param_dtype=param_dtype, rngs=rngs)
            bias = kind in ("affine", "normed")
            self.out = make(in_features, out_features, ("embed", "joint"), use_bias=bias)
        else:
            hidden = hidden or in_features
            self.wide = make(in_features, hidden, ("embed", "mlp"))
            self.out = make(hidden, out_features, ("mlp", "joint"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., in_features] -> [..., out_features] in the compute dtype."""
        rows = flatten(x)
        if self.kind == "normed":
            rows = self.norm(rows)
        if self.kind == "mlp":
            rows = jax.nn.gelu(self.wide(rows), approximate=False)
        return self.out(rows).reshape(*x.shape[:-1], -1)
