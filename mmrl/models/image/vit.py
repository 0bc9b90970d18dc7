"""Vision transformer (Dosovitskiy et al. 2021, section 3.1); its patches are the image regions."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.image.stem import ConvolutionStem
from mmrl.models.layers import (
    BlockOptions,
    Features,
    Implementation,
    Layers,
    Remat,
    check_choice,
    check_image,
    dense,
    dropout_keys,
    gathered,
    learned_positions,
    resolve_size,
)
from mmrl.models.pool import base as pools
from mmrl.models.stack import Stack
from mmrl.types import InputError


@functools.lru_cache
def sincos2d_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D position embedding, f32[rows * columns, width] in row-major order.

    As in the code of MoCo v3 (Chen et al. 2021): with w = width / 4 frequencies
    f_i = 10000^(-i / w), the patch at column x and row y gets
    [sin(x f), cos(x f), sin(y f), cos(y f)].
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    x = columns.reshape(-1, 1) * frequencies
    y = rows.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


class Vit(nnx.Module):
    """Vision transformer; regions are the patches after the final norm.

    The mean over the patches forgets their places, so a contrastive loss can hardly teach left
    from right with it; zones and attention keep them (docs/training.md, "Our recipe").

    Args:
      image_size: side of the square image in pixels, a multiple of `patch_size`.
      variant: a named size, Ti, S, B or L; explicit width, depth and num_heads take precedence.
      patch_size: side of a patch in pixels.
      width: features of a token.
      depth: number of blocks.
      num_heads: attention heads of a block; they divide the width.
      mlp_dim: hidden features of the MLPs; by default 4 * width.
      block: what the blocks and norms are made of, see `BlockOptions`.
      posemb: position embedding of the patches: learned (a table) or sincos2d (fixed). The class
        token and registers have none, as their own values are learned.
      embedding_norm: whether a norm precedes the first block, as in CLIP.
      registers: number of learned tokens between the class token and the patches, which are no
        regions (Darcet et al. 2024, section 2.2).
      pool: pooled feature: cls (the class token after the final norm), mean, zones or attention
        (over the patches), or a mapping with options of the pooler, such as {"name": "zones",
        "size": 2}; see `mmrl.models.pool`.
      stem: how pixels become patches: patch (one linear layer) or convolution (several of stride 2;
        the patch size is then a power of two), see `ConvolutionStem`.
      region_layer: number of blocks before the regions, which then have a norm of their own; 0: the
        embedded patches. None: all blocks and the final norm.
      dropout: rate on the embedded patches and on both branches of every block, in training.
      attention: implementation of attention: xla, cudnn (NVIDIA) or splash (TPU), see `Attention`.
      scan_layers: compiles one block and scans it over the layers instead of compiling each.
      remat: what the backward pass recomputes of a block: none, full (all of it) or dots (all but
        the results of dense layers).
      channels: channels of the image.

    Attributes: width, local_width (the same) and grid (rows, columns); `first`, the number of
    tokens before the patches.
    Raises InputError for unknown choices and sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        image_size: int,
        variant: str | None = None,
        patch_size: int = 16,
        width: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_dim: int | None = None,
        block: Mapping[str, Any] | None = None,
        posemb: str = "learned",
        embedding_norm: bool = False,
        registers: int = 0,
        pool: str | Mapping[str, Any] = "mean",
        stem: str = "patch",
        region_layer: int | None = None,
        dropout: float = 0.0,
        attention: Implementation = "xla",
        scan_layers: bool = False,
        remat: Remat = "none",
        channels: int = 1,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        size = resolve_size("Vit", variant, width, depth, num_heads)
        blocks = BlockOptions.of("Vit", block)
        check_choice("Vit", "posemb", posemb, ("learned", "sincos2d"))
        check_choice("Vit", "stem", stem, ("patch", "convolution"))
        if region_layer is not None and not 0 <= region_layer <= size.depth:
            raise InputError(f"Vit: region_layer {region_layer}; expected 0 to depth {size.depth}")
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise InputError(
                f"Vit: image_size {image_size}; expected a multiple of patch_size {patch_size}"
            )
        if registers < 0:
            raise InputError(f"Vit: registers {registers}; expected 0 or more")
        if posemb == "sincos2d" and size.width % 4:
            raise InputError(
                f"Vit: posemb sincos2d with width {size.width}; expected width % 4 = 0"
            )
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        self.local_width = size.width
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.posemb, self.dtype = posemb, dtype
        self.region_layer = None if region_layer == size.depth else region_layer
        numbers: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.has_stem = stem == "convolution"
        if not self.has_stem:
            self.patch = dense(patch_size**2 * channels, size.width, ("patch", "embed"), **numbers)
        else:
            self.stem = ConvolutionStem(channels, size.width, patch_size, **numbers)
        if posemb == "learned":
            patches = self.grid[0] * self.grid[1]
            self.position = learned_positions(
                patches, size.width, param_dtype=param_dtype, rngs=rngs
            )
        self.has_cls = pools.chosen(pool, own=("cls",))[0] == "cls"
        if self.has_cls:
            init = nnx.with_partitioning(nnx.initializers.normal(0.02), ("embed",))
            self.cls = nnx.Param(init(rngs.params(), (size.width,), param_dtype))
        self.has_registers, self.first = registers > 0, int(self.has_cls) + registers
        if self.has_registers:
            init = nnx.with_partitioning(nnx.initializers.normal(0.02), (None, "embed"))
            self.registers = nnx.Param(init(rngs.params(), (registers, size.width), param_dtype))
        norm = functools.partial(blocks.make_norm, size.width, param_dtype=param_dtype, rngs=rngs)
        self.has_embedding_norm = embedding_norm
        if embedding_norm:
            self.embedding_norm = norm()
        self.dropout = nnx.Dropout(dropout)
        self.stack = Stack(
            size,
            mlp_dim,
            dropout=dropout,
            attention=attention,
            scan_layers=scan_layers,
            remat=remat,
            block=blocks,
            **numbers,
        )
        self.norm = norm()
        self.width = size.width
        if not self.has_cls:
            self.pool = pools.make(pool, width=size.width, grid=self.grid, **numbers)
            self.width = self.pool.width
        if self.region_layer is not None:
            self.region_norm = norm()

    @property
    def layers(self) -> Layers:
        """See `mmrl.models.layers.Layers`."""
        blocks = ((f"stack/{name}",) for name in self.stack.layers)
        return (
            ("patch", "stem", "position", "cls", "registers", "embedding_norm"),
            *blocks,
        )

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        present: jax.Array | None = None,
    ) -> Features:
        """image f[B, image_size, image_size, channels] -> Features in the compute dtype.

        Dropout is on when `train` and `rngs` (stream "dropout") are given. Raises ValueError for
        another image shape.
        """
        embed_key, stack_key = dropout_keys(train, rngs, 2)
        x = self._embed(image)
        x = self.dropout(x, deterministic=embed_key is None, rngs=embed_key)
        if self.region_layer is not None:
            x = self.stack.part(x, 0, self.region_layer, key=stack_key)
            local = self.region_norm(x)[:, self.first :]
            x = self.norm(self.stack.part(x, self.region_layer, None, key=stack_key))
        else:
            x, _ = self.stack(x, key=stack_key)
            x = self.norm(x)
            local = x[:, self.first :]
        pooled = x[:, 0] if self.has_cls else self.pool(x[:, self.first :])
        return Features(pooled=pooled, local=local, mask=None)

    def _embed(self, image: jax.Array) -> jax.Array:
        """image -> tokens: class token and registers if there are any, patches with positions."""
        check_image(image, self.image_size, self.channels)
        (rows, columns), patch = self.grid, self.patch_size
        x = image.astype(self.dtype)
        if self.has_stem:
            x = self.stem(x).reshape(x.shape[0], rows * columns, -1)  # B R width
        else:
            # A convolution whose stride equals its kernel size. The product is faster on CPU.
            x = x.reshape(-1, rows, patch, columns, patch, self.channels)
            x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, patch**2 * self.channels)
            x = self.patch(x)  # B R width
        if self.posemb == "learned":
            position = gathered(self.position[...])
        else:
            position = jnp.asarray(sincos2d_positions(self.grid, self.local_width))
        x = x + position.astype(x.dtype)[None]
        before = [self.cls[...][None]] if self.has_cls else []
        before += [self.registers[...]] if self.has_registers else []
        if before:
            tokens = [jnp.broadcast_to(t.astype(x.dtype), (len(x), *t.shape)) for t in before]
            x = jnp.concatenate([*tokens, x], axis=1)
        return self.embedding_norm(x) if self.has_embedding_norm else x
