"""A stack of transformer blocks, unrolled or scanned over layers, with rematerialisation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrl.models.layers import (
    DEFAULT_BLOCK,
    Block,
    BlockOptions,
    Remat,
    Size,
    check_choice,
    spread_rows,
)

# What jax.checkpoint keeps of a block: nothing ("full"), or the outputs of its dense layers
# ("dots"). Both recompute the attention matrix, which has batch dimensions.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Outputs(NamedTuple):
    """What blocks compute.

    Attributes:
      x: [B, L, width], the output of the last one.
      total: as x, the sum of the outputs of the `last` last blocks of the stack, as far as they
        have been computed; None if there are none.
      layers: number of blocks -> [B, L, width], what comes out of these; 0: the input.
    """

    x: jax.Array
    total: Any
    layers: Mapping[int, jax.Array]


class Stack(nnx.Module):
    """`size.depth` blocks, either as attributes block_00, block_01, ... or as one scanned `blocks`.

    If `scan_layers`, each parameter of `blocks` has a leading axis "layers", and the stack takes as
    long to compile as one block. Both forms give the same result from the same parameters and key.
    `options` are those of Block.
    """

    def __init__(
        self,
        size: Size,
        mlp_dim: int | None,
        *,
        scan_layers: bool,
        remat: Remat,
        block: BlockOptions = DEFAULT_BLOCK,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        check_choice("stack", "remat", remat, ("none", *REMAT_POLICIES))
        self.depth, self.scan_layers, self.remat = size.depth, scan_layers, remat
        self.drop_path = block.drop_path
        options["block"] = block
        if not scan_layers:
            # Attributes instead of a list, which would put integer keys into the parameter dict.
            for index in range(size.depth):
                setattr(self, f"block_{index:02d}", Block(size, mlp_dim, rngs=rngs, **options))
            return

        @nnx.split_rngs(splits=size.depth)
        @nnx.vmap
        def make_all(rngs: nnx.Rngs) -> Block:
            return Block(size, mlp_dim, rngs=rngs, **options)

        self.blocks = make_all(rngs)
        # nnx.vmap(transform_metadata=...) names the new axis only in graph mode.
        for _, variable in nnx.iter_graph(self.blocks):
            if isinstance(variable, nnx.Variable):
                variable.set_metadata(out_sharding=("layers", *variable.out_sharding))

    @property
    def layers(self) -> tuple[str, ...]:
        """The parameters of each block: the start of their paths; all alike if scanned."""
        if self.scan_layers:
            return ("blocks",) * self.depth
        return tuple(f"block_{index:02d}" for index in range(self.depth))

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        last: int = 1,
        positions: jax.Array | None = None,
        layers: Sequence[int] = (),
        start: int = 0,
        stop: int | None = None,
    ) -> Outputs:
        """Applies blocks `start` to `stop` - 1 (None: to the last one) to x [B, L, width].

        All parts, one after the other, compute what the whole stack does.

        Args:
          mask, positions: as in Attention.
          key: of dropout of the whole stack; None: no dropout.
          last: number of outputs in the sum `total`, at least 1.
          layers: numbers of blocks, 0 to `depth`, after which the features are wanted as well;
            those that are not in this part are left out.

        Raises:
          ValueError: other `layers`.
        """
        stop = self.depth if stop is None else stop
        x, total, taken = self._run(range(start, stop), x, mask, key, last, positions, layers)
        return Outputs(x, x if total is None else total, taken)

    def before_last(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        last: int = 1,
        positions: jax.Array | None = None,
        layers: Sequence[int] = (),
    ) -> Outputs:
        """All blocks but the last one, as `__call__`; its output is the input of `last_block`."""
        return self._run(range(self.depth - 1), x, mask, key, last, positions, layers)

    def last_block(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        queries: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, L, width] -> the output of the last block; with queries i32[B, Q], only for those.

        `key` is the key of the whole stack. With queries, the mask is bool[B, Q, L].
        """
        graphdef, params = self._last()
        own = None if key is None else jax.random.split(key, self.depth)[-1]
        rates = self._rates()
        rate = None if rates is None else rates[-1]
        return self._block(graphdef, mask, positions, queries)(params, x, own, rate)

    def attention_of_last(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        queries: jax.Array | None = None,
        among: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """The attention that some tokens pay to all tokens in the last block, on average over them.

        The weights are computed again from the input of the block, by its queries and keys alone,
        whatever implementation the block itself uses.

        Args:
          x: [B, L, width], the input of the last block.
          mask: as of `last_block`.
          queries: i32[B, Q], the tokens that attend; None: those of `among`.
          among: bool[B, L]; None: all tokens. Where there are none, the result is 0.
          positions: as in Attention.

        Returns:
          f32[B, heads, L], which otherwise sums to 1 over L.
        """
        graphdef, params = self._last()

        def apply(params: Any, x: jax.Array) -> jax.Array:
            block = nnx.merge(graphdef, params)
            weights = block.attention_weights(spread_rows(x), mask, queries, positions)
            if queries is not None or among is None:
                return weights.mean(axis=2)
            counts = among.astype(jnp.float32)
            share = counts / jnp.maximum(counts.sum(axis=1, keepdims=True), 1.0)
            return jnp.einsum("bq,bhqk->bhk", share, weights)

        return self._rematerialised(apply)(params, x)

    def _last(self) -> tuple[nnx.GraphDef[Block], Any]:
        """Graph and parameters of the last block."""
        if self.scan_layers:
            graphdef, params = nnx.split(self.blocks)
            return graphdef, jax.tree.map(lambda leaf: leaf[-1], nnx.to_pure_dict(params))
        graphdef, params = nnx.split(getattr(self, f"block_{self.depth - 1:02d}"))
        return graphdef, nnx.to_pure_dict(params)

    def _rates(self) -> np.ndarray | None:
        """f32[depth], at which blocks drop their branches; None without `drop_path`."""
        if self.drop_path == 0:
            return None
        return np.linspace(0, self.drop_path, self.depth, dtype=np.float32)

    def _run(
        self,
        which: range,
        x: jax.Array,
        mask: jax.Array | None,
        key: jax.Array | None,
        last: int,
        positions: jax.Array | None,
        layers: Sequence[int],
    ) -> Outputs:
        """Applies some blocks; `total` is None if it has no terms, or if `last` is 1."""
        if any(not 0 <= layer <= self.depth for layer in layers):
            raise ValueError(f"layers {tuple(layers)}; expected numbers of 0 to {self.depth}")
        keys = None if key is None else jax.random.split(key, self.depth)
        taken = {which.start: x} if which.start in layers else {}
        if not which:
            return Outputs(x, None, taken)
        run = self._run_scanned if self.scan_layers else self._run_unrolled
        inner = sorted({*layers} & {*which[1:]})
        x, total, between = run(which, x, mask, positions, keys, last, inner)
        return Outputs(
            x, total, taken | between | ({which.stop: x} if which.stop in layers else {})
        )

    def _block(
        self,
        graphdef: nnx.GraphDef[Block],
        mask: jax.Array | None,
        positions: jax.Array | None,
        queries: jax.Array | None = None,
    ) -> Callable[..., Any]:
        """The function (parameters, x, key, rate) -> x of a block, rematerialised as configured."""

        def apply(params: Any, x: jax.Array, key: jax.Array | None, rate: Any) -> jax.Array:
            block = nnx.merge(graphdef, params)
            return spread_rows(block(spread_rows(x), mask, key, queries, positions, rate))

        return self._rematerialised(apply)

    def _rematerialised(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        if self.remat == "none":
            return apply
        # Inside a scan, XLA cannot merge the recomputation with the forward pass anyway.
        policy = REMAT_POLICIES[self.remat]
        return jax.checkpoint(apply, policy=policy, prevent_cse=not self.scan_layers)

    def _run_unrolled(
        self,
        which: range,
        x: jax.Array,
        mask: jax.Array | None,
        positions: jax.Array | None,
        keys: jax.Array | None,
        last: int,
        wanted: Sequence[int],
    ) -> tuple[jax.Array, jax.Array | None, dict[int, jax.Array]]:
        total, taken, rates = None, {}, self._rates()
        for index in which:
            graphdef, params = nnx.split(getattr(self, f"block_{index:02d}"))
            block = self._block(graphdef, mask, positions)
            key, rate = (None if given is None else given[index] for given in (keys, rates))
            x = block(nnx.to_pure_dict(params), x, key, rate)
            if last > 1 and index >= self.depth - last:
                total = x if total is None else total + x
            if index + 1 in wanted:
                taken[index + 1] = x
        return x, total, taken

    def _run_scanned(
        self,
        which: range,
        x: jax.Array,
        mask: jax.Array | None,
        positions: jax.Array | None,
        keys: jax.Array | None,
        last: int,
        wanted: Sequence[int],
    ) -> tuple[jax.Array, jax.Array | None, dict[int, jax.Array]]:
        graphdef, params = nnx.split(self.blocks)
        block = self._block(graphdef, mask, positions)
        weights = (jnp.arange(self.depth) >= self.depth - last).astype(x.dtype)
        # One place more than is wanted: that of all the other outputs. So nothing of a size that
        # grows with the depth is kept.
        places = np.full(self.depth, len(wanted), np.int32)
        places[[layer - 1 for layer in wanted]] = range(len(wanted))

        def body(carry: Any, layer: Any) -> Any:
            x, total, taken = carry
            params, key, rate, weight, place = layer
            x = block(params, x, key, rate)
            total = None if total is None else total + weight * x
            if taken is not None:
                taken = jax.lax.dynamic_update_index_in_dim(taken, x, place, axis=1)
            return (x, total, taken), None

        # With `last` 1 the sum equals the output and needs no carry.
        total = None if last == 1 else jnp.zeros_like(x)
        taken: Any = None
        if wanted:
            shape = (x.shape[0], len(wanted) + 1, *x.shape[1:])
            taken = spread_rows(jnp.zeros(shape, x.dtype))
        layers = (nnx.to_pure_dict(params), keys, self._rates(), weights, places)
        if len(which) < self.depth:
            layers = jax.tree.map(lambda leaf: leaf[which.start : which.stop], layers)
        (x, total, taken), _ = jax.lax.scan(body, (x, total, taken), layers)
        return x, total, {layer: taken[:, i] for i, layer in enumerate(wanted)}
