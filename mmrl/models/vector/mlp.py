"""Multi-layer perceptron for vectors, such as expression profiles or rows of a table."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import Features, LayerNorm, Layers, dense, dropout_keys
from mmrl.types import InputError


class Mlp(nnx.Module):
    """Layer norm of the input, then `depth` layers, each linear, GELU and dropout.

    Args:
      size: F, numbers of a vector.
      width: features of every layer.
      depth: layers, at least 1.
      dropout: rate after every layer, in training.

    Attribute: width. Raises InputError for sizes below 1.
    """

    def __init__(
        self,
        *,
        size: int,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if min(size, width, depth) < 1:
            raise InputError(f"Mlp: size {size}, width {width}, depth {depth}; expected 1 or more")
        self.size, self.width, self.depth, self.dtype = size, width, depth, dtype
        make = functools.partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = LayerNorm(size, param_dtype=param_dtype, rngs=rngs)
        for index in range(depth):
            axes = ("embed", "mlp") if index % 2 == 0 else ("mlp", "embed")
            setattr(self, f"layer_{index:02d}", make(width if index else size, width, axes))
        self.dropout = nnx.Dropout(dropout)

    @property
    def layers(self) -> Layers:
        """See `mmrl.models.layers.Layers`."""
        return (("norm",), *((f"layer_{index:02d}",) for index in range(self.depth)))

    def __call__(
        self, values: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Features:
        """values f[B, size] -> Features in the compute dtype, without local ones.

        Raises ValueError for another shape.
        """
        if values.ndim != 2 or values.shape[1] != self.size:
            raise ValueError(f"values {values.shape}; expected [B, {self.size}]")
        x = self.norm(values.astype(self.dtype))
        for index, key in enumerate(dropout_keys(train, rngs, self.depth)):
            x = jax.nn.gelu(getattr(self, f"layer_{index:02d}")(x), approximate=False)
            x = self.dropout(x, deterministic=key is None, rngs=key)
        return Features(pooled=x, local=None, mask=None)
