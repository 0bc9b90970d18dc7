"""Heads that project encoder features into the joint embedding space."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import ACTIVATIONS, Activation, LayerNorm, check_choice, dense, flatten
from mmrl.types import InputError

# Kind -> its options.
KINDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "affine": (),
    "normed": ("epsilon",),
    "mlp": ("hidden", "bias", "activation", "norm", "epsilon"),
    "identity": (),
}


class Projection(nnx.Module):
    """[..., in_features] -> [..., out_features].

    Args:
      in_features, out_features: of the projection.
      kind: linear (one linear layer without bias), affine (the same with bias), normed (layer norm,
        then affine), mlp (linear, activation, linear) or identity (no parameters; the encoder has
        as many features as the head).
      hidden: of an mlp: features between its layers; 0: in_features.
      bias: of an mlp: whether its linear layers have biases.
      activation: of an mlp: gelu (exact), gelu_tanh, quick_gelu, silu or relu.
      norm: of an mlp: whether a layer norm follows the activation.
      epsilon: added to the variance by the layer norm of a normed head or an mlp.

    Raises:
      InputError: an unknown kind or activation, or an identity between different numbers of
        features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kind: str = "linear",
        hidden: int = 0,
        bias: bool = True,
        activation: Activation = "gelu",
        norm: bool = False,
        epsilon: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("Projection", "kind", kind, KINDS)
        check_choice("Projection", "activation", activation, ACTIVATIONS)
        if kind == "identity" and in_features != out_features:
            raise InputError(
                f"Projection: identity of {out_features} features; expected {in_features}, those "
                "of the encoder"
            )
        self.kind, self.activation = kind, activation
        make = functools.partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        make_norm = functools.partial(
            LayerNorm, epsilon=epsilon, param_dtype=param_dtype, rngs=rngs
        )
        self.has_norm = kind == "normed" or norm
        if kind == "mlp":
            hidden = hidden or in_features
            self.wide = make(in_features, hidden, ("embed", "mlp"), use_bias=bias)
            if norm:
                self.norm = make_norm(hidden)
            self.out = make(hidden, out_features, ("mlp", "joint"), use_bias=bias)
        elif kind != "identity":
            if kind == "normed":
                self.norm = make_norm(in_features)
            self.out = make(
                in_features, out_features, ("embed", "joint"), use_bias=kind != "linear"
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., in_features] -> [..., out_features] in the compute dtype."""
        if self.kind == "identity":
            return x
        rows = flatten(x)
        if self.kind == "mlp":
            rows = ACTIVATIONS[self.activation](self.wide(rows))
        if self.has_norm:
            rows = self.norm(rows)
        return self.out(rows).reshape(*x.shape[:-1], -1)
