"""Transformer text encoder with pooled text features and word features."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl import build
from mmrl.models.layers import (
    BlockOptions,
    Features,
    Implementation,
    Layers,
    Remat,
    check_choice,
    dropout_keys,
    gathered,
    learned_positions,
    resolve_size,
    split_key,
    take_rows,
)
from mmrl.models.stack import Stack
from mmrl.models.text.packing import PAD, PackingPlan, Rows, take_texts
from mmrl.models.text.pooling import LatentAttention
from mmrl.types import InputError

# (pooled, x, total), see Transformer._encode_rows.
_Encoded = tuple[jax.Array, jax.Array | None, jax.Array | None]


def last_token(mask: jax.Array) -> jax.Array:
    """mask bool[N, L] -> i32[N], the position of the last valid token; 0 if there is none."""
    return jnp.max(jnp.where(mask, jnp.arange(mask.shape[1], dtype=jnp.int32)[None], 0), axis=1)


def word_mask(mask: jax.Array, *, begin: bool = True, end: bool = True) -> jax.Array:
    """mask bool[N, L] -> bool[N, L] without the marks of texts.

    Args:
      begin: whether the first valid token is a mark. end: whether the last one is.
    """
    position = jnp.arange(mask.shape[1], dtype=jnp.int32)[None]
    if begin:
        mask = mask & (position > 0)
    return mask & (position < last_token(mask)[:, None]) if end else mask


class TokenConvolution(nnx.Module):
    """Depthwise convolution over the tokens of a text.

    Tokens outside the mask count as 0, so the result does not depend on padding, nor on other texts
    in the same row.

    Args:
      width: features of a token. size: tokens that a window spans, odd.

    Raises:
      InputError: another size.
    """

    def __init__(
        self,
        width: int,
        size: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if size < 1 or size % 2 == 0:
            raise InputError(f"Transformer: convolution {size}; expected 0 or an odd number")
        self.size, self.dtype = size, dtype
        # Fan-in of a depthwise kernel is its size.
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=1)
        init = nnx.with_partitioning(init, (None, "embed"))
        self.kernel = nnx.Param(init(rngs.params(), (size, width), param_dtype))

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [N, L, width] -> [N, L, width].

        Args:
          mask: bool[N, L], the tokens of the text; or bool[N, L, L], at [n, i, j] whether tokens i
            and j of row n belong to one text.
        """
        length, reach = x.shape[1], self.size // 2
        kernel = self.kernel[...].astype(x.dtype)
        at = jnp.arange(length, dtype=jnp.int32)
        total = jnp.zeros_like(x)
        for offset in range(-reach, reach + 1):
            other = jnp.clip(at + offset, 0, length - 1)
            inside = (at + offset >= 0) & (at + offset < length)
            same = mask[:, other] if mask.ndim == 2 else mask[:, at, other]
            window = jnp.where(
                (inside[None] & same)[..., None], x[:, other], jnp.zeros((), x.dtype)
            )
            total = total + kernel[None, None, reach + offset] * window
        return total


class Transformer(nnx.Module):
    """Transformer over sub-word ids; by default bidirectional, with pre-norm blocks.

    Padding follows the last token of a text. The features of valid tokens do not depend on the
    padding. A text without valid tokens gets finite features without meaning.

    Args:
      vocab_size: rows of the token table; ids at valid positions must be below it.
      length: maximum number of tokens of a text.
      width: features of a token.
      depth: number of blocks.
      num_heads: attention heads of a block; they divide the width.
      mlp_dim: hidden features of the MLPs; by default 4 * width.
      variant: a named size, Ti, S, B or L; explicit width, depth and num_heads take precedence.
      block: what blocks and norms are made of, such as {"norm": "rms"}; see `BlockOptions`.
      causal: whether tokens attend to none that come after them.
      positions: learned or none: whether a table of positions is added to the embedded tokens,
        which rotary positions (`rope_theta` of `block`) replace.
      embedding_norm: whether a norm follows the embedded tokens, as in BERT.
      final_norm: whether a norm follows the last block.
      pool: pooled feature: cls (position 0), eos (the last valid token), mean (over valid tokens)
        or latent_attention, which may be a mapping with options such as {"name":
        "latent_attention", "latents": 512, "num_heads": 8}, see `LatentAttention`.
      convolution: size, odd, of a depthwise convolution that is added to the embedded tokens; 0:
        none. It tells each word its neighbours, see `TokenConvolution`.
      word_layers: number of last layers whose outputs are summed for the word features; GLoRIA
        (Huang et al. 2021) sums four.
      dropout: rate on the embedded tokens and on both branches of every block, in training.
      attention: implementation of attention: xla, cudnn (NVIDIA) or splash (TPU), see `Attention`.
      scan_layers: compiles one block and scans it over the layers instead of compiling each.
      remat: what the backward pass recomputes of a block: none, full (all of it) or dots (all but
        the results of dense layers).
      packing: budget of rows for the texts of a training step, as a fraction of the number of
        texts, at most 1; 0 disables packing. Packing changes the dropout masks but no other
        result; see `mmrl.models.text.packing`.
      packing_group: number of reports whose texts share rows. It must divide a micro-batch. To
        avoid communication, it should also divide the share of each device.

    Attributes: width. Raises InputError for unknown choices and inconsistent sizes.
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
        block: Mapping[str, Any] | None = None,
        causal: bool = False,
        positions: Literal["learned", "none"] = "learned",
        embedding_norm: bool = False,
        final_norm: bool = True,
        pool: str | Mapping[str, Any] = "cls",
        convolution: int = 0,
        word_layers: int = 1,
        dropout: float = 0.0,
        attention: Implementation = "xla",
        scan_layers: bool = False,
        remat: Remat = "none",
        packing: float = 0.0,
        packing_group: int = 16,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        size = resolve_size("Transformer", variant, width, depth, num_heads)
        blocks = BlockOptions.of("Transformer", block)
        pool, latents = _pool_options(pool)
        check_choice("Transformer", "positions", positions, ("learned", "none"))
        if not 1 <= word_layers <= size.depth:
            raise InputError(
                f"Transformer: word_layers {word_layers}; expected 1 to depth {size.depth}"
            )
        if not 0 <= packing <= 1 or packing_group < 1:
            raise InputError(
                f"Transformer: packing {packing}, packing_group {packing_group}; expected a "
                "fraction of 0 (off) to 1, and at least 1"
            )
        self.packing, self.packing_group = packing, packing_group
        self.width = self.local_width = size.width
        self.length, self.dtype = length, dtype
        self.pool, self.word_layers = pool, word_layers
        self.has_positions, self.has_latents = positions == "learned", latents is not None
        self.has_embedding_norm, self.has_norm = embedding_norm, final_norm
        numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.token = nnx.Embed(
            vocab_size,
            size.width,
            dtype=dtype,
            param_dtype=param_dtype,
            embedding_init=nnx.with_partitioning(nnx.initializers.normal(0.02), ("vocab", "embed")),
            rngs=rngs,
        )
        if self.has_positions:
            self.position = learned_positions(
                length, size.width, param_dtype=param_dtype, rngs=rngs
            )
        self.has_convolution = convolution != 0
        if self.has_convolution:
            self.convolution = TokenConvolution(size.width, convolution, **numbers)
        if self.has_embedding_norm:
            self.embedding_norm = blocks.make_norm(size.width, param_dtype=param_dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.stack = Stack(
            size,
            mlp_dim,
            dropout=dropout,
            attention=attention,
            scan_layers=scan_layers,
            remat=remat,
            block=blocks,
            causal=causal,
            **numbers,
        )
        if self.has_norm:
            self.norm = blocks.make_norm(size.width, param_dtype=param_dtype, rngs=rngs)
        if latents is not None:
            self.pooler = LatentAttention(width=size.width, **latents, **numbers)

    @property
    def layers(self) -> Layers:
        """See `mmrl.models.layers.Layers`."""
        blocks = ((f"stack/{name}",) for name in self.stack.layers)
        return (("token", "position", "convolution", "embedding_norm"), *blocks)

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        layers: Sequence[int] = (),
        attention: bool = False,
    ) -> Features:
        """tokens i32[N, L], mask bool[N, L] -> Features in the compute dtype.

        Dropout is on when `train` and `rngs` (stream "dropout") are given.

        Args:
          layers: numbers of blocks, 1 to depth, whose outputs are wanted; without the final norm.
          attention: whether the attention of the last block is wanted, f32[N, heads, L]: what the
            pooled token (pool cls or eos) pays, or with other pools what all tokens pay on average.
            0 at padding. Computed again from the input of the block.

        Raises:
          ValueError: L exceeds `length`, the shapes differ, or `layers` do not exist.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.length or mask.shape != tokens.shape:
            raise ValueError(
                f"tokens {tokens.shape}, mask {mask.shape}; expected [N, L], L <= {self.length}"
            )
        if 0 in layers:
            raise ValueError(f"layers {tuple(layers)}; expected numbers from 1 on")
        embed_key, stack_key = dropout_keys(train, rngs, 2)
        x = self._embed(jnp.where(mask, tokens, PAD), None, mask, embed_key)
        before = self.stack.depth - 1
        wanted = (*layers, before) if attention else layers
        x, summed, after = self.stack(x, mask, key=stack_key, last=self.word_layers, layers=wanted)
        x = self._normed(x)
        return Features(
            pooled=self._pool(x, mask),
            local=x if self.word_layers == 1 else self._normed(summed),
            mask=mask,
            layers=jnp.stack([after[one] for one in layers], axis=1) if layers else None,
            attention=self._attention(after[before], mask) if attention else None,
        )

    def _attention(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Attention f32[N, heads, L] from the input of the last block x [N, L, width]."""
        if self.pool == "mean":
            first = jnp.arange(x.shape[1], dtype=jnp.int32)[None] == 0
            # A text without tokens, whose attention has no meaning, must not divide by 0.
            among = mask | (first & ~mask.any(axis=1, keepdims=True))
            found = self.stack.attention_of_last(x, mask, among=among)
        else:
            found = self.stack.attention_of_last(x, mask, queries=self._pooled_at(mask)[:, None])
        return jnp.where(mask[:, None], found, jnp.zeros_like(found))

    def _pooled_at(self, mask: jax.Array) -> jax.Array:
        """mask bool[N, L] -> i32[N], the position of the pooled token."""
        return last_token(mask) if self.pool == "eos" else jnp.zeros(mask.shape[:1], jnp.int32)

    def candidates(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        words: Sequence[int],
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Encodes C texts for each of B reports in one pass; word features of chosen texts only.

        Gives the same result as C calls but takes less work. With pool "cls" or "eos", the last
        block computes only the pooled token of each text whose word features are not needed. Texts
        are packed if so configured.

        Args:
          tokens: i32[B, C, L]. mask: bool[B, C, L].
          words: positions among C, without repetition, of the texts whose word features are wanted.

        Returns:
          Pooled features [B, C, width] and, where there are `words`, word features
          [B, len(words), L, width] in their order; both in the compute dtype.

        Raises:
          ValueError: as in `__call__`; `words` that are no positions among C.
          InputError: `packing_group` does not divide B.
        """
        reports, count, length = tokens.shape
        if length > self.length or mask.shape != tokens.shape:
            raise ValueError(
                f"tokens {tokens.shape}, mask {mask.shape}; expected [B, C, L], L <= {self.length}"
            )
        if len(set(words) & set(range(count))) < len(words):
            raise ValueError(f"words {tuple(words)}; expected distinct positions below {count}")
        packed = train and self.packing > 0
        flat = tokens.reshape(-1, length), mask.reshape(-1, length)
        if len(words) == count and not packed:
            features = self(*flat, train=train, rngs=rngs)
            local = features.local.reshape(*tokens.shape, -1)
            return features.pooled.reshape(reports, count, -1), take_texts(local, words)
        row_key, word_key = dropout_keys(train, rngs, 2)
        # Of few texts, the last block computes the words outside the rows; of many, that is more
        # work than to complete the rows.
        whole = self.pool == "mean" or (packed and len(words) > max(1, self.packing * count))
        if packed:
            pooled, x, total = self._encode_packed(tokens, mask, words, whole, row_key)
        else:
            pooled, *both = self._encode_rows(self._padded(*flat), bool(words), whole, row_key)
            x, total = (
                None
                if each is None
                else take_texts(each.reshape(*tokens.shape, -1), words).reshape(-1, *each.shape[1:])
                for each in both
            )
        pooled = pooled.reshape(reports, count, -1)
        if not words or x is None:
            return pooled, None
        if not whole:
            chosen = take_texts(mask, words).reshape(-1, length)
            x = self.stack.last_block(x, chosen, key=word_key)
            total = x if total is None else total + x
            own = self._pool(self._normed(x), chosen).reshape(reports, len(words), -1)
            # `pooled` of these texts had another dropout mask than their words.
            every = jnp.concatenate([own, pooled], axis=1)
            at = [words.index(i) if i in words else len(words) + i for i in range(count)]
            pooled = take_texts(every, at)
        local = self._normed(x if total is None else total)
        return pooled, local.reshape(reports, len(words), length, -1)

    def _embed(
        self,
        tokens: jax.Array,
        position: jax.Array | None,
        mask: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """tokens i32[N, L] -> [N, L, width]; positions i32[N, L] are by default 0 to L - 1.

        The mask is as in Attention.
        """
        x = jnp.take(gathered(self.token.embedding[...].astype(self.dtype)), tokens, axis=0)
        if self.has_positions:
            table = gathered(self.position[...].astype(x.dtype))
            x = x + (table[: tokens.shape[1]][None] if position is None else table[position])
        if self.has_convolution:
            x = x + self.convolution(x, mask)
        if self.has_embedding_norm:
            x = self.embedding_norm(x)
        return self.dropout(x, deterministic=key is None, rngs=key)

    def _normed(self, x: jax.Array) -> jax.Array:
        """The final norm of x [..., width]; without one, x."""
        return self.norm(x) if self.has_norm else x

    def _padded(self, tokens: jax.Array, mask: jax.Array) -> Rows:
        """Rows of one text each: tokens i32[N, L], mask bool[N, L]."""
        query = self._pooled_at(mask)[:, None]
        return Rows(jnp.where(mask, tokens, PAD), None, mask, query, mask[:, None])

    def _encode_rows(self, rows: Rows, words: bool, whole: bool, key: jax.Array | None) -> _Encoded:
        """Encodes rows of P slots with S texts each.

        Args:
          words: whether any word features are wanted.
          whole: whether the last block computes all tokens, instead of the pooled ones alone. Pool
            "mean" needs all.

        Returns:
          pooled: [R, S, width], pooled features of all texts.
          x: [R, P, width], from which the caller computes word features: the output of the last
            block if `whole`, else its input; None without `words`.
          total: [R, P, width], the sum of the outputs of the `word_layers` last blocks, as far as
            they have been computed; None if `word_layers` is 1.
        """
        embed_key, stack_key = split_key(key, 2)
        x = self._embed(rows.tokens, rows.position, rows.mask, embed_key)
        last = self.word_layers if words else 1
        total: jax.Array | None
        if whole:
            x, total, _ = self.stack(
                x, rows.mask, key=stack_key, last=last, positions=rows.position
            )
            pooled = self._pool_rows(self._normed(x), rows)
        else:
            x, total, _ = self.stack.before_last(
                x, rows.mask, key=stack_key, last=last, positions=rows.position
            )
            pooled = self._normed(
                self.stack.last_block(
                    x, rows.members, key=stack_key, queries=rows.query, positions=rows.position
                )
            )
        return (pooled, x, total if last > 1 else None) if words else (pooled, None, None)

    def _encode_packed(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        words: Sequence[int],
        whole: bool,
        key: jax.Array | None,
    ) -> _Encoded:
        """Packs the texts [B, C, L] into rows, encodes the rows and unpacks the result.

        Returns:
          As `_encode_rows`, with pooled [B * C, width]; x and total [B * len(words), L, width] are
          those of the texts whose word features are wanted.
        """
        reports, count, length = tokens.shape
        if reports % self.packing_group:
            raise InputError(
                f"packing_group={self.packing_group} of the text encoder does not divide the "
                f"{reports} reports of a micro-batch; choose a divisor"
            )
        texts = self.packing_group * count
        budget = math.ceil(self.packing * texts)
        packing = PackingPlan(
            tokens.reshape(-1, texts, length),
            mask.reshape(-1, texts, length),
            seats=min(length, 2 * math.ceil(1 / self.packing)),
        )

        def unpack(x: jax.Array | None, first: jax.Array | int) -> jax.Array | None:
            if x is None:
                return None
            return packing.tokens_of(x, first, count, words).reshape(-1, length, self.width)

        def compute(first: jax.Array | int, size: int) -> _Encoded:
            """The texts in rows `first` to `first + size - 1` of each group; 0 for all others."""
            rows = packing.rows(first, size, at_end=self.pool == "eos")
            row_key = None if key is None else jax.random.fold_in(key, first)
            pooled, x, total = self._encode_rows(rows, bool(words), whole, row_key)
            pooled = packing.texts(pooled, first).reshape(reports * count, -1)
            return pooled, unpack(x, first), unpack(total, first)

        encoded = compute(0, budget)
        if budget == texts:
            return encoded
        # Rows beyond the budget are computed a few at a time, to need little extra memory.
        size = math.ceil(budget / 8)

        def add(encoded: _Encoded, first: jax.Array) -> tuple[_Encoded, None]:
            more = jax.checkpoint(compute, static_argnums=1)(first, size)
            return jax.tree.map(jnp.add, encoded, more), None

        def spill(encoded: _Encoded) -> _Encoded:
            return jax.lax.scan(add, encoded, jnp.arange(budget, texts, size, dtype=jnp.int32))[0]

        # mmrl.planning recognises this rarely taken branch by its name scope.
        with jax.named_scope("spill"):
            return jax.lax.cond(jnp.any(packing.row >= budget), spill, lambda x: x, encoded)

    def _pool_rows(self, x: jax.Array, rows: Rows) -> jax.Array:
        """x [R, P, width] -> [R, S, width]."""
        if self.pool != "mean":
            return take_rows(x, rows.query)
        count = jnp.maximum(rows.members.sum(axis=2, keepdims=True), 1)
        weights = rows.members.astype(x.dtype) / count.astype(x.dtype)
        return jnp.einsum("rsp,rpd->rsd", weights, self._to_mean(x))

    def _pool(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [N, L, width], mask bool[N, L] -> [N, width]."""
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "eos":
            return jnp.take_along_axis(x, last_token(mask)[:, None, None], axis=1)[:, 0]
        count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        summed = jnp.where(mask[..., None], self._to_mean(x), 0).sum(axis=1)
        return summed / count.astype(x.dtype)

    def _to_mean(self, x: jax.Array) -> jax.Array:
        """The token features [N, L, width] whose mean is pooled, from those after the norm."""
        return self.pooler(x) if self.has_latents else x


def _pool_options(pool: str | Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Of an option `pool`: cls, eos or mean, and the options of LatentAttention if there is one.

    Raises:
      InputError: an unknown name or option.
    """
    # A ConfigDict is no Mapping.
    options: dict[str, Any] = {"name": pool} if isinstance(pool, str) else dict(pool.items())
    name = options.pop("name", None)
    check_choice("Transformer", "pool", name, ("cls", "eos", "mean", "latent_attention"))
    if name == "latent_attention":
        supplied = ("width", "dtype", "param_dtype", "rngs")
        build.check_options(
            "Transformer: pool latent_attention", LatentAttention, options, supplied=supplied
        )
        return "mean", options
    for option in options:
        raise InputError(build.unknown(f"option of Transformer: pool {name}", option, ()))
    return name, None
