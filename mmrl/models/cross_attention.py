"""Attention from one sequence to another one, and blocks of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import (
    Attention,
    LayerNorm,
    Mlp,
    dense,
    flatten,
    split_key,
    spread_rows,
)
from mmrl.types import InputError


class CrossAttention(nnx.Module):
    """Multi-head attention whose keys and values come from another sequence.

    Args:
      width: features of the queries and of the result; num_heads divides it.
      other_width: features of the sequence that is attended to.

    Raises:
      InputError: num_heads does not divide the width.
    """

    def __init__(
        self,
        width: int,
        other_width: int,
        num_heads: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if num_heads < 1 or width % num_heads:
            raise InputError(
                f"cross-attention: num_heads {num_heads}, width {width}; expected a width that is "
                "a multiple of num_heads"
            )
        self.num_heads = num_heads
        make = functools.partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.query = make(width, width, ("embed", "heads"))
        self.key = make(other_width, width, ("embed", "heads"))
        self.value = make(other_width, width, ("embed", "heads"))
        self.out = make(width, width, ("heads", "embed"))

    def __call__(self, x: jax.Array, other: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [B, Q, width], other [B, N, other_width] -> [B, Q, width].

        mask is bool[B, N], what is attended to; None: all of `other`.
        """
        query, key, value = (
            layer(flatten(rows)).reshape(*rows.shape[:2], self.num_heads, -1)
            for layer, rows in ((self.query, x), (self.key, other), (self.value, other))
        )
        mask = None if mask is None else mask[:, None, None]
        # jax.nn computes the softmax in float32 by implicit promotion, which strict mode refuses.
        with jax.numpy_dtype_promotion("standard"):
            attended = jax.nn.dot_product_attention(query, key, value, mask=mask)
        return self.out(attended.reshape(-1, x.shape[-1])).reshape(x.shape)


class CrossBlock(nnx.Module):
    """Self-attention, cross-attention and an MLP, each a residual branch with a norm before it.

    Args:
      width: features of the sequence that changes. other_width: of the one it attends to.
      mlp_dim: hidden features of the MLP.
      self_attention: whether the sequence attends to itself.
      gated: whether tanh of a learned number, 0 at first, multiplies each branch (Alayrac et al.
        2022, section 3.1.2). A new block then returns its input.
      dropout: rate on each branch, in training.

    Raises:
      InputError: a dropout rate out of range, or num_heads does not divide the width.
    """

    def __init__(
        self,
        width: int,
        other_width: int,
        num_heads: int,
        mlp_dim: int,
        *,
        self_attention: bool,
        gated: bool,
        dropout: float,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if not 0 <= dropout < 1:
            raise InputError(f"dropout {dropout}; expected at least 0 and below 1")
        numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = functools.partial(LayerNorm, param_dtype=param_dtype, rngs=rngs)
        self.cross_norm, self.other_norm = norm(width), norm(other_width)
        self.cross_attention = CrossAttention(width, other_width, num_heads, **numbers)
        self.attends_itself, self.gated = self_attention, gated
        if self_attention:
            self.self_norm = norm(width)
            self.self_attention = Attention(width, num_heads, attention="xla", **numbers)
        self.mlp_norm = norm(width)
        self.mlp = Mlp(width, mlp_dim, **numbers)
        self.dropout = nnx.Dropout(dropout)
        if gated:
            self.cross_gate, self.mlp_gate = _gate(), _gate()
            if self_attention:
                self.self_gate = _gate()

    def __call__(
        self,
        x: jax.Array,
        other: jax.Array,
        mask: jax.Array | None = None,
        other_mask: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, Q, width], other [B, N, other_width] -> [B, Q, width].

        The masks, bool[B, Q] and bool[B, N], mark what is attended to; None: everything. Without a
        key there is no dropout.
        """
        self_key, cross_key, mlp_key = split_key(key, 3)
        x = spread_rows(x)
        if self.attends_itself:
            x = self._added(x, "self", self.self_attention(self.self_norm(x), mask), self_key)
        attended = self.cross_attention(self.cross_norm(x), self.other_norm(other), other_mask)
        x = self._added(x, "cross", attended, cross_key)
        return self._added(x, "mlp", self.mlp(self.mlp_norm(x)), mlp_key)

    def _added(
        self, x: jax.Array, name: str, branch: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        branch = self.dropout(branch, deterministic=key is None, rngs=key)
        if self.gated:
            branch *= jnp.tanh(getattr(self, f"{name}_gate")[...]).astype(branch.dtype)
        return x + branch


def _gate() -> nnx.Param[jax.Array]:
    return nnx.Param(jnp.float32(0))
