"""The current image beside a prior one of the same patient, as in BioViL-T."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.fusion.base import Fusion, Heads
from mmrl.models.layers import dense
from mmrl.models.pool import temporal


class Temporal(Fusion):
    """Static features of the current image, and what changed since the prior one.

    The static half of a region is a linear projection of its features. The other half is what the
    transformer `mmrl.models.pool.temporal` makes of the projected regions of both images (Bannur et
    al. 2023, BioViL-T, section 3.1). In a row without a prior image it is a learned embedding,
    equal for all regions, so the row is what it would be in a batch without any prior.

    Features:
      pooled   [B, 2 width], the mean over the regions
      regions  [B, R, 2 width], static half first
      HEAD     f32[B, C], an affine function of `pooled`, or f32[B, R, C] of the regions if the head
               states `of`

    Args:
      widths, dtype, param_dtype, make_rngs: as of Fusion.
      heads: name -> features or options, see `fusion.base.Heads`; with `of`, what they start from:
        pooled or regions.
      width: features of each half, a multiple of 4 and of `num_heads`.
      num_heads, depth, mlp_dim, dropout: of the transformer, see `mmrl.models.pool.temporal`.

    Raises:
      InputError: sizes that do not fit together, or as of Heads.
    """

    reads: ClassVar[Mapping[str, str]] = {"current": "image.local", "prior": "image@prior.local"}
    batch: ClassVar[Mapping[str, str]] = {"prior_present": "prior.present"}
    optional: ClassVar[tuple[str, ...]] = ("prior",)

    def __init__(
        self,
        *,
        widths: Mapping[str, int],
        heads: Mapping[str, Any] | None = None,
        width: int = 256,
        num_heads: int = 8,
        depth: int = 3,
        mlp_dim: int = 0,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        make_rngs: Callable[[str], nnx.Rngs],
    ) -> None:
        numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.temporal = temporal.Temporal(
            width=width,
            num_heads=num_heads,
            depth=depth,
            mlp_dim=mlp_dim,
            dropout=dropout,
            **numbers,
            rngs=make_rngs("temporal"),
        )
        self.static = dense(
            widths["current"],
            width,
            ("embed", "joint"),
            use_bias=False,
            **numbers,
            rngs=make_rngs("static"),
        )
        init = nnx.with_partitioning(nnx.initializers.truncated_normal(0.02), ("embed",))
        self.missing = nnx.Param(init(make_rngs("missing").params(), (width,), param_dtype))
        self.heads = Heads(
            "Temporal fusion",
            heads or {},
            {"pooled": 2 * width, "regions": 2 * width},
            **numbers,
            make_rngs=lambda name: make_rngs(f"heads/{name}"),
        )

    def __call__(
        self,
        wanted: tuple[str, ...],
        *,
        current: jax.Array,
        prior: jax.Array,
        prior_present: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Fuses each row on its own.

        Args:
          current, prior: [B, R, width of the image], the regions of square grids of one size.
          prior_present: bool[B]; what `prior` holds in the other rows changes nothing.
          key: of dropout; None, or without `train`: no dropout.

        Returns:
          feature -> [B, ...].

        Raises:
          ValueError: regions of different numbers, or of no square grid.
        """
        there = prior_present[:, None, None]
        static, before = self.static(current), self.static(jnp.where(there, prior, 0))
        changed = self.temporal(static, before, key=key if train else None)
        missing = self.missing[...].astype(static.dtype)[None, None]
        regions = jnp.concatenate([static, jnp.where(there, changed, missing)], axis=-1)
        pooled = regions.astype(jnp.float32).mean(axis=1).astype(regions.dtype)
        return self.heads({"pooled": pooled, "regions": regions}, wanted)
