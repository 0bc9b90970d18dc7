"""A stack of transformer blocks, unrolled or scanned over layers, with rematerialisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.layers import Block, Remat, Size, check_choice, spread_rows

# What jax.checkpoint keeps of a block: nothing ("full"), or the outputs of its dense layers
# ("dots"). Both recompute the attention matrix, which has batch dimensions.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        check_choice("stack", "remat", remat, ("none", *REMAT_POLICIES))
        self.depth, self.scan_layers, self.remat = size.depth, scan_layers, remat
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
    ) -> tuple[jax.Array, jax.Array]:
        """x [B, L, width] -> the output of the last block, and the sum of the `last` last outputs.

        Mask and positions are as in Attention. Without a key there is no dropout.
        """
        x, total = self._run(x, mask, key, last, self.depth, positions=positions)
        return x, x if total is None else total

    def part(
        self,
        x: jax.Array,
        start: int,
        stop: int | None,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Blocks `start` to `stop` - 1 (None: to the last one); `key` is that of the whole stack.

        All parts, one after the other, compute what the whole stack does.
        """
        stop = self.depth if stop is None else stop
        return self._run(x, mask, key, 1, stop, start, positions=positions)[0]

    def before_last(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        last: int = 1,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """All blocks but the last one.

        Returns:
          The input of `last_block`, and the sum of those of the `last` last outputs that come
          before it; None if there are none.
        """
        return self._run(x, mask, key, last, self.depth - 1, positions=positions)

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
        if self.scan_layers:
            graphdef, params = nnx.split(self.blocks)
            pure = jax.tree.map(lambda leaf: leaf[-1], nnx.to_pure_dict(params))
        else:
            graphdef, params = nnx.split(getattr(self, f"block_{self.depth - 1:02d}"))
            pure = nnx.to_pure_dict(params)
        own = None if key is None else jax.random.split(key, self.depth)[-1]
        return self._block(graphdef, mask, positions, queries)(pure, x, own)

    def _run(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        key: jax.Array | None,
        last: int,
        stop: int,
        start: int = 0,
        *,
        positions: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Applies blocks start to stop - 1, and sums the outputs of those among the `last` last.

        The sum is None if it has no terms, or if `last` is 1.
        """
        keys = None if key is None else jax.random.split(key, self.depth)
        if start == stop:
            return x, None
        run = self._run_scanned if self.scan_layers else self._run_unrolled
        return run(x, mask, positions, keys, last, range(start, stop))

    def _block(
        self,
        graphdef: nnx.GraphDef[Block],
        mask: jax.Array | None,
        positions: jax.Array | None,
        queries: jax.Array | None = None,
    ) -> Callable[..., Any]:
        """The function (parameters, x, key) -> x of a block, rematerialised as configured."""

        def apply(params: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
            block = nnx.merge(graphdef, params)
            return spread_rows(block(spread_rows(x), mask, key, queries, positions))

        if self.remat == "none":
            return apply
        # Inside a scan, XLA cannot merge the recomputation with the forward pass anyway.
        policy = REMAT_POLICIES[self.remat]
        return jax.checkpoint(apply, policy=policy, prevent_cse=not self.scan_layers)

    def _run_unrolled(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        positions: jax.Array | None,
        keys: jax.Array | None,
        last: int,
        which: range,
    ) -> tuple[jax.Array, jax.Array | None]:
        total = None
        for index in which:
            graphdef, params = nnx.split(getattr(self, f"block_{index:02d}"))
            block = self._block(graphdef, mask, positions)
            x = block(nnx.to_pure_dict(params), x, None if keys is None else keys[index])
            if last > 1 and index >= self.depth - last:
                total = x if total is None else total + x
        return x, total

    def _run_scanned(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        positions: jax.Array | None,
        keys: jax.Array | None,
        last: int,
        which: range,
    ) -> tuple[jax.Array, jax.Array | None]:
        graphdef, params = nnx.split(self.blocks)
        block = self._block(graphdef, mask, positions)
        weights = (jnp.arange(self.depth) >= self.depth - last).astype(x.dtype)

        def body(carry: Any, layer: Any) -> Any:
            x, total = carry
            params, key, weight = layer
            x = block(params, x, key)
            return (x, None if total is None else total + weight * x), None

        # With `last` 1 the sum equals the output and needs no carry.
        total = None if last == 1 else jnp.zeros_like(x)
        layers = (nnx.to_pure_dict(params), keys, weights)
        if len(which) < self.depth:
            layers = jax.tree.map(lambda leaf: leaf[which.start : which.stop], layers)
        (x, total), _ = jax.lax.scan(body, (x, total), layers)
        return x, total
