"""Attention of learned queries over the regions, as in SigLIP."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import Activation, LayerNorm, Mlp, dense
from mmrl.models.pool.base import Pooler, cleared, shares
from mmrl.types import InputError


class Attention(Pooler):
    """Multi-head attention pooling (Zhai et al. 2022, "Scaling vision transformers", section 2.2).

    Learned queries attend to the regions, followed by x + mlp(norm(x)). The results of several
    queries are concatenated.

    Args:
      width, grid, dtype, param_dtype, rngs: as of Pooler.
      queries: number of learned queries.
      num_heads: attention heads; 0: one for every 64 features, at least one that divides the width.
      mlp_dim: hidden features of the MLP; by default 4 * width.
      activation: of the MLP: gelu (exact), gelu_tanh (SigLIP), quick_gelu, silu or relu.
      epsilon: added to the variance by the norm.

    Raises:
      InputError: an unknown activation, or sizes that do not fit together.
    """

    unordered: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    def __init__(
        self,
        *,
        width: int,
        grid: tuple[int, int],
        queries: int = 1,
        num_heads: int = 0,
        mlp_dim: int | None = None,
        activation: Activation = "gelu",
        epsilon: float = 1e-6,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        heads = num_heads or next(n for n in range(max(width // 64, 1), 0, -1) if width % n == 0)
        if queries < 1 or heads < 1 or width % heads:
            raise InputError(
                f"pool attention: queries {queries}, num_heads {num_heads}, width {width}; "
                "expected at least one query, and a width that is a multiple of num_heads"
            )
        self.num_heads, self.width = heads, width * queries
        init = nnx.with_partitioning(nnx.initializers.xavier_uniform(), (None, "embed"))
        self.queries = nnx.Param(init(rngs.params(), (queries, width), param_dtype))

        def make(first: str, second: str) -> nnx.Linear:
            return dense(
                width, width, (first, second), dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        self.query, self.key = make("embed", "heads"), make("embed", "heads")
        self.value, self.out = make("embed", "heads"), make("heads", "embed")
        self.norm = LayerNorm(width, epsilon=epsilon, param_dtype=param_dtype, rngs=rngs)
        self.mlp = Mlp(
            width,
            mlp_dim or 4 * width,
            activation=activation,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        regions: jax.Array,
        mask: jax.Array | None = None,
        grid: tuple[int, int] | None = None,
    ) -> jax.Array:
        """See Pooler."""
        size, _, width = regions.shape
        regions = cleared(regions, mask)
        query = self._asked(regions)
        query = jnp.broadcast_to(query, (size, *query.shape[1:]))
        key, value = (self._by_head(layer(regions)) for layer in (self.key, self.value))
        counted = None if mask is None else mask[:, None, None]
        # jax.nn computes the softmax in float32 by implicit promotion, which strict mode refuses.
        with jax.numpy_dtype_promotion("standard"):
            x = jax.nn.dot_product_attention(query, key, value, mask=counted)
        x = self.out(x.reshape(size, -1, width))
        x = x + self.mlp(self.norm(x))
        return x.reshape(size, self.width)

    def weights(self, regions: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The share of each region in what is attended to, the mean over queries and heads.

        regions [N, R, width], mask bool[N, R] -> f32[N, R].
        """
        query = self._asked(regions)[0].astype(jnp.float32)
        key = self._by_head(self.key(cleared(regions, mask))).astype(jnp.float32)
        scores = jnp.einsum("qhd,nrhd->nqhr", query, key) / query.shape[-1] ** 0.5
        counted = None if mask is None else mask[:, None, None]
        return shares(scores, counted).mean(axis=(1, 2))

    def _asked(self, regions: jax.Array) -> jax.Array:
        """The learned queries [1, queries, heads, features of a head]."""
        return self._by_head(self.query(self.queries[...].astype(regions.dtype)))[None]

    def _by_head(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., heads, features of a head]."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)
