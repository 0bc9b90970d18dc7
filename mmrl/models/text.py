"""Transformer text encoder with word features and true padding masks."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import (
    Features,
    Implementation,
    LayerNorm,
    Remat,
    check_choice,
    dropout_keys,
    learned_positions,
    resolve_size,
)
from mmrl.models.stack import Stack
from mmrl.types import InputError

PAD = 0  # The id that replaces whatever stands at a padded position.


def last_token(mask: jax.Array) -> jax.Array:
    """mask bool[N, L] -> i32[N], the position of the last valid token; 0 when there is none."""
    return jnp.max(jnp.where(mask, jnp.arange(mask.shape[1], dtype=jnp.int32)[None], 0), axis=1)


def word_mask(mask: jax.Array) -> jax.Array:
    """mask bool[N, L] -> bool[N, L] without the first (bos) and the last (eos) valid token."""
    position = jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
    return mask & (position > 0) & (position < last_token(mask)[:, None])


class Text(nnx.Module):
    """Pre-norm bidirectional transformer over sub-word ids.

    A text starts with bos, ends with eos as its last valid token, and is padded after that. What
    comes out for valid tokens depends neither on the amount nor on the content of the padding. A
    row without any valid token gives finite, meaningless features.

    Args:
      vocab_size: rows of the token table; ids at valid positions must be below it.
      length: most tokens of a text; shorter arrays are fine.
      width, depth, num_heads, variant: as of Vit. mlp_dim: default 4 * width.
      pool: "cls" (position 0), "eos" (the last valid token) or "mean" over valid tokens.
      word_layers: word features are the final norm of the sum of that many last layers' outputs
        (Huang et al. 2021, GLoRIA, sums the last four).
      dropout, attention, scan_layers, remat: as of Vit.

    Attribute: width. Raises InputError for unknown choices and sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        length: int,
        width: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_dim: int | None = None,
        variant: str | None = None,
        pool: str = "cls",
        word_layers: int = 1,
        dropout: float = 0.0,
        attention: Implementation = "xla",
        scan_layers: bool = False,
        remat: Remat = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        size = resolve_size("Text", variant, width, depth, num_heads)
        check_choice("Text", "pool", pool, ("cls", "eos", "mean"))
        if not 1 <= word_layers <= size.depth:
            raise InputError(f"Text: word_layers {word_layers}; expected 1 to depth {size.depth}")
        self.width, self.length = size.width, length
        self.pool, self.word_layers = pool, word_layers
        self.token = nnx.Embed(
            vocab_size,
            size.width,
            dtype=dtype,
            param_dtype=param_dtype,
            embedding_init=nnx.with_partitioning(nnx.initializers.normal(0.02), ("vocab", "embed")),
            rngs=rngs,
        )
        self.position = learned_positions(length, size.width, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.stack = Stack(
            size,
            mlp_dim,
            dropout=dropout,
            attention=attention,
            scan_layers=scan_layers,
            remat=remat,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(size.width, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Features:
        """tokens i32[N, L], mask bool[N, L] -> Features in the compute dtype.

        Dropout is on when `train` and `rngs` (stream "dropout") are given. Raises ValueError when
        L exceeds `length` or the shapes differ.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.length or mask.shape != tokens.shape:
            raise ValueError(
                f"tokens {tokens.shape}, mask {mask.shape}; expected [N, L], L <= {self.length}"
            )
        embed_key, stack_key = dropout_keys(train, rngs, 2)
        x = self.token(jnp.where(mask, tokens, PAD))  # N L width
        x = x + self.position[: tokens.shape[1]].astype(x.dtype)[None]
        x = self.dropout(x, deterministic=embed_key is None, rngs=embed_key)
        x, summed = self.stack(x, mask, key=stack_key, last=self.word_layers)
        x = self.norm(x)
        words = x if self.word_layers == 1 else self.norm(summed)
        return Features(pooled=self._pool(x, mask), local=words, mask=mask)

    def _pool(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [N, L, width], mask bool[N, L] -> [N, width]."""
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "eos":
            return jnp.take_along_axis(x, last_token(mask)[:, None, None], axis=1)[:, 0]
        count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return jnp.where(mask[..., None], x, 0).sum(axis=1) / count.astype(x.dtype)
