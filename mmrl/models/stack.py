"""A stack of transformer blocks: unrolled or scanned over layers, rematerialised as configured."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models.layers import Block, Remat, Size, check_choice, spread_rows

# What jax.checkpoint may keep of a block: nothing, or the results of its dense layers. The
# attention matrix has batch dimensions, so "dots" recomputes it too.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nnx.Module):
    """`size.depth` blocks, as attributes block_00, block_01, ... or as one scanned `blocks`.

    Scanned, each parameter of `blocks` has a leading axis "layers", and the stack compiles in
    the time of one block. Both forms compute the same from the same parameters and key. `options`
    are those of Block.
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
            # Attributes, not a list: a list would put integer keys into the parameter dict.
            for index in range(size.depth):
                setattr(self, f"block_{index:02d}", Block(size, mlp_dim, rngs=rngs, **options))
            return

        @nnx.split_rngs(splits=size.depth)
        @nnx.vmap
        def make_all(rngs: nnx.Rngs) -> Block:
            return Block(size, mlp_dim, rngs=rngs, **options)

        self.blocks = make_all(rngs)
        # nnx.vmap(transform_metadata=...) would name the new axis in graph mode only.
        for _, variable in nnx.iter_graph(self.blocks):
            if isinstance(variable, nnx.Variable):
                variable.set_metadata(out_sharding=("layers", *variable.out_sharding))

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        last: int = 1,
    ) -> tuple[jax.Array, jax.Array]:
        """x [B, L, width] -> the last block's output and the sum over the `last` blocks' outputs.

        mask bool[B, L] hides keys, bool[B, L, L] hides them from each query; without a key there
        is no dropout.
        """
        x, total = self._run(x, mask, key, last, self.depth)
        return x, x if total is None else total

    def before_last(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        last: int = 1,
    ) -> tuple[jax.Array, jax.Array | None]:
        """What `last_block` gets, and what its output must be added to for the sum; None: 0."""
        return self._run(x, mask, key, last, self.depth - 1)

    def last_block(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        queries: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, L, width] -> the last block's output, at queries i32[B, Q] only if given.

        `key` is that of the whole stack; mask bool[B, Q, L] goes with queries.
        """
        if self.scan_layers:
            graphdef, params = nnx.split(self.blocks)
            pure = jax.tree.map(lambda leaf: leaf[-1], nnx.to_pure_dict(params))
        else:
            graphdef, params = nnx.split(getattr(self, f"block_{self.depth - 1:02d}"))
            pure = nnx.to_pure_dict(params)
        own = None if key is None else jax.random.split(key, self.depth)[-1]
        return self._block(graphdef, mask, queries)(pure, x, own)

    def _run(
        self, x: jax.Array, mask: jax.Array | None, key: jax.Array | None, last: int, stop: int
    ) -> tuple[jax.Array, jax.Array | None]:
        """Blocks 0 to stop - 1 and the sum over those among the `last`; None: just x, or none."""
        keys = None if key is None else jax.random.split(key, self.depth)
        if stop == 0:
            return x, None
        run = self._run_scanned if self.scan_layers else self._run_unrolled
        return run(x, mask, keys, last, stop)

    def _block(
        self,
        graphdef: nnx.GraphDef[Block],
        mask: jax.Array | None,
        queries: jax.Array | None = None,
    ) -> Callable[..., Any]:
        """(parameters, x, key) -> x, rematerialised as configured."""

        def apply(params: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
            return spread_rows(nnx.merge(graphdef, params)(spread_rows(x), mask, key, queries))

        if self.remat == "none":
            return apply
        # The scan itself keeps XLA from merging the recomputation into the forward pass.
        policy = REMAT_POLICIES[self.remat]
        return jax.checkpoint(apply, policy=policy, prevent_cse=not self.scan_layers)

    def _run_unrolled(
        self, x: jax.Array, mask: jax.Array | None, keys: jax.Array | None, last: int, stop: int
    ) -> tuple[jax.Array, jax.Array | None]:
        total = None
        for index in range(stop):
            graphdef, params = nnx.split(getattr(self, f"block_{index:02d}"))
            block = self._block(graphdef, mask)
            x = block(nnx.to_pure_dict(params), x, None if keys is None else keys[index])
            if last > 1 and index >= self.depth - last:
                total = x if total is None else total + x
        return x, total

    def _run_scanned(
        self, x: jax.Array, mask: jax.Array | None, keys: jax.Array | None, last: int, stop: int
    ) -> tuple[jax.Array, jax.Array | None]:
        graphdef, params = nnx.split(self.blocks)
        block = self._block(graphdef, mask)
        counted = (jnp.arange(self.depth) >= self.depth - last).astype(x.dtype)

        def body(carry: Any, layer: Any) -> Any:
            x, total = carry
            params, key, weight = layer
            x = block(params, x, key)
            return (x, None if total is None else total + weight * x), None

        # With one layer to sum, the sum is the output: carry nothing for it.
        total = None if last == 1 else jnp.zeros_like(x)
        layers = (nnx.to_pure_dict(params), keys, counted)
        if stop < self.depth:
            layers = jax.tree.map(lambda leaf: leaf[:stop], layers)
        (x, total), _ = jax.lax.scan(body, (x, total), layers)
        return x, total
