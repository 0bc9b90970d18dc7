"""Vision transformer (Dosovitskiy et al. 2021, section 3.1); its patches are the image regions."""

import functools
from collections.abc import Mapping, Sequence
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
    take_rows,
)
from mmrl.models.pool import base as pools
from mmrl.models.positions import resampling
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


def resized_positions(
    table: jax.Array, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = True
) -> jax.Array:
    """As `positions.resize_grid`, differentiable, for a table f[rows * columns, width].

    The products are computed in float32, or in the dtype of the table where that is wider; the
    result has the dtype of the table. Equal grids give the table itself.
    """
    if old == new:
        return table
    dtype = jnp.promote_types(table.dtype, jnp.float32)
    rows, columns = (
        jnp.asarray(resampling(before, after, antialias=antialias), dtype)
        for before, after in zip(old, new, strict=True)
    )
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    x = exact("yr,rcd->ycd", rows, table.astype(dtype).reshape(*old, -1))
    return exact("xc,ycd->yxd", columns, x).reshape(new[0] * new[1], -1).astype(table.dtype)


class Vit(nnx.Module):
    """Vision transformer; regions are the patches after the final norm.

    Images may have any sides that are multiples of the patch size. Learned positions are those of
    an image of `image_size`, and interpolated for another grid; sincos2d ones are computed for it.
    Rotary positions count the tokens, with the patches row by row.

    With `kept`, only these patches are encoded; each has the position of its place. The convolution
    stem still sees the whole image, so that patches know the pixels of their neighbours; the patch
    stem leaves out the pixels of the others. With `hidden`, a learned token stands in the place of
    these patches, so that their pixels change nothing; it gets their positions.

    The mean over the patches forgets their places, so a contrastive loss can hardly teach left
    from right with it; zones and attention keep them (docs/training.md, "Our recipe").

    Args:
      image_size: side in pixels of the square image that the positions are for, a multiple of
        `patch_size`.
      variant: a named size, Ti, S, B or L; explicit width, depth and num_heads take precedence.
      patch_size: side of a patch in pixels.
      width: features of a token.
      depth: number of blocks.
      num_heads: attention heads of a block; they divide the width.
      mlp_dim: hidden features of the MLPs; by default 4 * width.
      block: what the blocks and norms are made of, see `BlockOptions`.
      posemb: position embedding of the patches: learned (a table) or sincos2d (fixed). The class
        token and registers have none, as their own values are learned.
      antialias: how learned positions are interpolated, see `positions.resampling`: True as timm,
        False as DINOv2 and transformers.
      embedding_norm: whether a norm precedes the first block, as in CLIP.
      registers: number of learned tokens between the class token and the patches, which are no
        regions (Darcet et al. 2024, section 2.2).
      pool: pooled feature: cls (the class token after the final norm), mean, zones or attention
        (over the patches), or a mapping with options of the pooler, such as {"name": "zones",
        "size": 2}; see `mmrl.models.pool`.
      stem: how pixels become patches: patch (one linear layer) or convolution (several of stride 2;
        the patch size is then a power of two), see `ConvolutionStem`.
      mask_token: whether there is a learned token for hidden patches (Zhou et al. 2022, iBOT,
        section 3.1), which starts at 0 as in DINOv2; with the patch stem alone.
      region_layer: number of blocks before the regions, which then have a norm of their own; 0: the
        embedded patches. None: all blocks and the final norm.
      dropout: rate on the embedded patches and on both branches of every block, in training.
      attention: implementation of attention: xla, cudnn (NVIDIA) or splash (TPU), see `Attention`.
      scan_layers: compiles one block and scans it over the layers instead of compiling each.
      remat: what the backward pass recomputes of a block: none, full (all of it) or dots (all but
        the results of dense layers).
      channels: channels of the image.

    Attributes: width, local_width (the same) and grid (rows, columns of an image of `image_size`);
    depth and num_heads; `first`, the number of tokens before the patches.
    Raises InputError for unknown choices and sizes that do not fit together.
    """

    takes_kept = True
    takes_hidden = False

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
        antialias: bool = True,
        embedding_norm: bool = False,
        registers: int = 0,
        pool: str | Mapping[str, Any] = "mean",
        stem: str = "patch",
        mask_token: bool = False,
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
        _check_choices(size.width, posemb, stem, registers, mask_token)
        if region_layer is not None and not 0 <= region_layer <= size.depth:
            raise InputError(f"Vit: region_layer {region_layer}; expected 0 to depth {size.depth}")
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise InputError(
                f"Vit: image_size {image_size}; expected a multiple of patch_size {patch_size}"
            )
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        self.local_width = size.width
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.posemb, self.antialias, self.dtype = posemb, antialias, dtype
        self.depth, self.num_heads = size.depth, size.num_heads
        self.is_rotary = blocks.rope_theta != 0
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
        token = functools.partial(_token, param_dtype, rngs)
        self.has_cls = pools.chosen(pool, own=("cls",))[0] == "cls"
        if self.has_cls:
            self.cls = token(nnx.initializers.normal(0.02), size.width)
        self.has_registers, self.first = registers > 0, int(self.has_cls) + registers
        if self.has_registers:
            self.registers = token(nnx.initializers.normal(0.02), registers, size.width)
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
        if mask_token:
            self.mask_token = token(nnx.initializers.zeros_init(), size.width)
            self.takes_hidden = True

    @property
    def layers(self) -> Layers:
        """See `mmrl.models.layers.Layers`."""
        blocks = ((f"stack/{name}",) for name in self.stack.layers)
        return (
            ("patch", "stem", "position", "cls", "registers", "mask_token", "embedding_norm"),
            *blocks,
        )

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        present: jax.Array | None = None,
        kept: jax.Array | None = None,
        hidden: jax.Array | None = None,
        layers: Sequence[int] = (),
        attention: bool = False,
    ) -> Features:
        """image f[B, H, W, channels] -> Features in the compute dtype.

        Args:
          image: H and W are multiples of the patch size.
          train, rngs: dropout is on with both (stream "dropout").
          present: unused; it belongs to the common signature.
          kept: i32[B, P'], places of the patches to encode, row by row of the grid of the image;
            regions, `layers` and `attention` are those of these patches. None: all.
          hidden: bool[B, P], patches in whose place the mask token stands. None: none.
          layers: numbers of blocks, 1 to depth, whose outputs are wanted; without the final norm.
          attention: whether the attention of the last block is wanted: what the class token, or
            the mean over the patches, pays to each patch. Nothing is renormalised, so that the sum
            is below 1 where tokens that are no patches take a part.

        Raises:
          ValueError: another image shape, or `kept`, `hidden` or `layers` that do not fit.
          InputError: `kept` with a pooler that needs every patch in its place.
        """
        check_image(image, self.patch_size, self.patch_size, self.channels)
        if 0 in layers:
            raise ValueError(
                f"layers {tuple(layers)}; expected numbers of 1 to {self.depth} blocks"
            )
        embed_key, stack_key = dropout_keys(train, rngs, 2)
        x = self._embed(image, kept, hidden)
        x = self.dropout(x, deterministic=embed_key is None, rngs=embed_key)
        wanted, places = [*layers, *([self.depth - 1] if attention else [])], self._places(kept)
        run = functools.partial(self.stack, key=stack_key, positions=places, layers=wanted)
        if self.region_layer is not None:
            x, _, before = run(x, stop=self.region_layer)
            local = self.region_norm(x)[:, self.first :]
            x, _, after = run(x, start=self.region_layer)
            after = {**before, **after}
            x = self.norm(x)
        else:
            x, _, after = run(x)
            x = self.norm(x)
            local = x[:, self.first :]
        chosen = [after[layer][:, self.first :] for layer in layers]
        return Features(
            pooled=self._pool(x, image, kept),
            local=local,
            mask=None,
            layers=jnp.stack(chosen, axis=1) if chosen else None,
            attention=self._attention(after[self.depth - 1], places) if attention else None,
        )

    def _pool(self, x: jax.Array, image: jax.Array, kept: jax.Array | None) -> jax.Array:
        """The pooled feature of the tokens x [B, L, width] after the final norm."""
        if self.has_cls:
            return x[:, 0]
        if kept is None:
            return self.pool(x[:, self.first :], grid=self._grid_of(image))
        if not self.pool.unordered:
            raise InputError(
                f"Vit: the pooler {type(self.pool).__name__.lower()} needs all patches in their "
                "places, and only some are kept; expected cls or a pooler such as mean or attention"
            )
        return self.pool(x[:, self.first :])

    def _attention(self, x: jax.Array, places: jax.Array | None) -> jax.Array:
        """Attention to the patches f32[B, heads, P], from the input of the last block."""
        find = functools.partial(self.stack.attention_of_last, x, positions=places)
        if self.has_cls:
            found = find(queries=jnp.zeros((x.shape[0], 1), jnp.int32))
        else:
            among = jnp.arange(x.shape[1], dtype=jnp.int32) >= self.first
            found = find(among=jnp.broadcast_to(among[None], x.shape[:2]))
        return found[:, :, self.first :]

    def _grid_of(self, image: jax.Array) -> tuple[int, int]:
        """Rows and columns of patches of image [B, H, W, channels]."""
        return image.shape[1] // self.patch_size, image.shape[2] // self.patch_size

    def _places(self, kept: jax.Array | None) -> jax.Array | None:
        """Positions of the tokens for rotary positions; None: they are 0, 1, 2, ..."""
        if kept is None or not self.is_rotary:
            return None
        before = jnp.arange(self.first, dtype=jnp.int32)
        before = jnp.broadcast_to(before[None], (kept.shape[0], self.first))
        return jnp.concatenate([before, kept + self.first], axis=1)

    def _embed(
        self,
        image: jax.Array,
        kept: jax.Array | None = None,
        hidden: jax.Array | None = None,
    ) -> jax.Array:
        """image -> tokens: class token and registers if there are any, patches with positions."""
        (rows, columns), patch = self._grid_of(image), self.patch_size
        if kept is not None and (kept.ndim != 2 or len(kept) != len(image)):
            raise ValueError(f"kept {kept.shape}; expected [{len(image)}, P']")
        if hidden is not None and hidden.shape != (len(image), rows * columns):
            raise ValueError(f"hidden {hidden.shape}; expected {(len(image), rows * columns)}")
        x = image.astype(self.dtype)
        if self.has_stem:
            x = self.stem(x).reshape(x.shape[0], rows * columns, -1)  # B R width
            x = x if kept is None else take_rows(x, kept)
        else:
            # A convolution whose stride equals its kernel size. The product is faster on CPU.
            x = x.reshape(-1, rows, patch, columns, patch, self.channels)
            x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, patch**2 * self.channels)
            x = self.patch(x if kept is None else take_rows(x, kept))  # B R width
        if hidden is not None:
            among = hidden if kept is None else jnp.take_along_axis(hidden, kept, axis=1)
            x = jnp.where(among[..., None], self.mask_token[...].astype(x.dtype), x)
        if self.posemb == "learned":
            position = resized_positions(
                gathered(self.position[...]), self.grid, (rows, columns), antialias=self.antialias
            )
        else:
            position = jnp.asarray(sincos2d_positions((rows, columns), self.local_width))
        position = position.astype(x.dtype)
        x = x + (position[None] if kept is None else jnp.take(position, kept, axis=0))
        before = [self.cls[...][None]] if self.has_cls else []
        before += [self.registers[...]] if self.has_registers else []
        if before:
            tokens = [jnp.broadcast_to(t.astype(x.dtype), (len(x), *t.shape)) for t in before]
            x = jnp.concatenate([*tokens, x], axis=1)
        return self.embedding_norm(x) if self.has_embedding_norm else x


def _token(
    dtype: DTypeLike, rngs: nnx.Rngs, initial: nnx.Initializer, *shape: int
) -> nnx.Param[jax.Array]:
    """A learned token, or several of them: [width] or [count, width]."""
    make = nnx.with_partitioning(initial, (*[None] * (len(shape) - 1), "embed"))
    return nnx.Param(make(rngs.params(), shape, dtype))


def _check_choices(width: int, posemb: str, stem: str, registers: int, mask_token: bool) -> None:
    """Refuses unknown choices and those that do not fit together."""
    check_choice("Vit", "posemb", posemb, ("learned", "sincos2d"))
    check_choice("Vit", "stem", stem, ("patch", "convolution"))
    if registers < 0:
        raise InputError(f"Vit: registers {registers}; expected 0 or more")
    if posemb == "sincos2d" and width % 4:
        raise InputError(f"Vit: posemb sincos2d with width {width}; expected width % 4 = 0")
    if mask_token and stem != "patch":
        raise InputError(
            f"Vit: mask_token with stem {stem}, which mixes the pixels of patches; expected stem "
            "patch"
        )
