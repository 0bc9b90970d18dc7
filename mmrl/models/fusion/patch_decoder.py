"""A light decoder from the kept patches of an image to all of its patches, as in MAE."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.fusion.base import Fusion
from mmrl.models.image.vit import sincos2d_positions
from mmrl.models.layers import LayerNorm, Remat, Size, dense
from mmrl.models.stack import Stack
from mmrl.types import InputError


class PatchDecoder(Fusion):
    """Puts a learned token in the place of each removed patch, and decodes all patches together.

    A linear layer to `width`, fixed positions, blocks of a transformer, a norm and a linear layer
    to the values of a patch (He et al. 2022, MAE, section 3). The grid of patches is square.

    Features: patches f32[B, P, patch_size^2 channels], in the order of
    `objectives.masked_image.patchify`.

    Args:
      widths, dtype, param_dtype, make_rngs: as of Fusion.
      patch_size: side of a patch, in pixels.
      channels: of the pixels, 1 or 3.
      width: features of a token, a multiple of 4.
      depth: number of blocks.
      num_heads: attention heads; they divide the width.
      remat: what the backward pass recomputes of a block: none, full (all of it) or dots (all but
        the results of dense layers).

    Raises:
      InputError: sizes out of range, or that do not fit together.
    """

    reads: ClassVar[Mapping[str, str]] = {"kept_patches": "image@patches.local"}
    batch: ClassVar[Mapping[str, str]] = {"kept": "patches.kept", "mask": "patches.mask"}

    def __init__(
        self,
        *,
        widths: Mapping[str, int],
        patch_size: int,
        channels: int = 1,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        remat: Remat = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        make_rngs: Callable[[str], nnx.Rngs],
    ) -> None:
        if min(patch_size, channels, depth) < 1 or width < 4 or width % 4:
            raise InputError(
                f"PatchDecoder: patch_size {patch_size}, channels {channels}, depth {depth}, width "
                f"{width}; expected at least 1, and a width that is a multiple of 4"
            )
        numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        self.out_width, self.dtype = patch_size**2 * channels, dtype
        self.project = dense(
            widths["kept_patches"], width, ("embed", "joint"), **numbers, rngs=make_rngs("project")
        )
        init = nnx.with_partitioning(nnx.initializers.normal(0.02), ("embed",))
        self.mask = nnx.Param(init(make_rngs("mask").params(), (width,), param_dtype))
        self.stack = Stack(
            Size(width, depth, num_heads),
            None,
            scan_layers=False,
            remat=remat,
            dropout=0.0,
            attention="xla",
            **numbers,
            rngs=make_rngs("stack"),
        )
        self.norm = LayerNorm(width, param_dtype=param_dtype, rngs=make_rngs("norm"))
        self.out = dense(
            width, self.out_width, ("embed", "patch"), **numbers, rngs=make_rngs("out")
        )

    @property
    def features(self) -> tuple[str, ...]:
        """See Fusion."""
        return ("patches",)

    def width_of(self, feature: str) -> int:
        """See Fusion."""
        return self.out_width

    def __call__(
        self,
        wanted: tuple[str, ...],
        *,
        kept_patches: jax.Array,
        kept: jax.Array,
        mask: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Decodes each image on its own.

        Args:
          kept_patches: [B, P', width]. kept: i32[B, P'], their places. mask: bool[B, P].

        Raises:
          ValueError: shapes that do not fit, or a grid that is not square.
        """
        size, count = mask.shape
        side = math.isqrt(count)
        if side * side != count or kept_patches.shape[:2] != kept.shape:
            raise ValueError(
                f"kept patches {kept_patches.shape}, kept {kept.shape}, mask {mask.shape}; "
                "expected [B, P', width], [B, P'] and [B, P], where P is a square"
            )
        tokens = self.project(kept_patches)
        every = jnp.broadcast_to(
            self.mask[...].astype(tokens.dtype), (size, count, tokens.shape[-1])
        )
        rows = jnp.arange(size, dtype=kept.dtype)[:, None]
        every = every.at[rows, kept].set(tokens)
        every += jnp.asarray(sincos2d_positions((side, side), tokens.shape[-1]), tokens.dtype)
        decoded = self.norm(self.stack(every)[0])
        return {"patches": self.out(decoded).astype(jnp.float32)}
