"""Residual convolutional network; the feature map of one stage gives the image regions."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mmrl.models.layers import Features, Layers, check_choice, check_image
from mmrl.models.pool import base as pools
from mmrl.types import InputError

# Blocks per stage and whether they are bottlenecks: He et al. 2016, table 1.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}

Norm = nnx.BatchNorm | nnx.GroupNorm


def conv(
    in_features: int,
    out_features: int,
    kernel: int,
    stride: int = 1,
    *,
    padding: int | None = None,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution without bias, padded by kernel // 2 if not told; He-normal over fan-out.

    `padding` is that of each of the four sides.
    """
    padding = kernel // 2 if padding is None else padding
    init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nnx.Conv(
        in_features,
        out_features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((padding, padding),) * 2,
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nnx.with_partitioning(init, (None, None, "channels_in", "channels_out")),
        rngs=rngs,
    )


def make_norm(
    features: int, *, kind: str, zero: bool = False, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> Norm:
    """Batch norm, or group norm with gcd(32, features) groups; `zero` initialises its scale with 0.

    Both are computed in float32. In a narrower dtype batch norm would round its running statistics.
    """
    scale = nnx.initializers.zeros_init() if zero else nnx.initializers.ones_init()
    make: Callable[..., Norm]
    if kind == "batch":
        make = functools.partial(nnx.BatchNorm, momentum=0.9)
    else:
        make = functools.partial(nnx.GroupNorm, num_groups=math.gcd(32, features))
    return make(
        features,
        epsilon=1e-5,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        scale_init=nnx.with_partitioning(scale, ("norm",)),
        bias_init=nnx.with_partitioning(nnx.initializers.zeros_init(), ("norm",)),
        rngs=rngs,
    )


def apply_norm(
    norm: Norm, x: jax.Array, train: bool, present: jax.Array | None = None
) -> jax.Array:
    """Normalises x [B, H, W, C] in float32 and returns the dtype of x.

    In training, batch norm uses the statistics of the batch and updates the running ones; otherwise
    it uses the running ones. With `present` bool[B], the statistics are those of the present rows;
    a batch without any leaves the running ones as they are.
    """
    if not isinstance(norm, nnx.BatchNorm):
        return norm(x).astype(x.dtype)
    if present is None or not train:
        return norm(x, use_running_average=not train).astype(x.dtype)
    before, some = (norm.mean[...], norm.var[...]), present.any()
    mask = (present | ~some)[:, None, None, None]  # the statistics of no row would be NaN
    y = norm(x, use_running_average=False, mask=mask).astype(x.dtype)
    for running, old in zip((norm.mean, norm.var), before, strict=True):
        running[...] = jnp.where(some, running[...], old)
    return y


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, with a shortcut.

    The stride of a bottleneck is in its 3x3 convolution ("v1.5"; Goyal et al. 2017, section 5.1).
    The scale of the last norm is initialised with 0, so that the block starts as the identity of
    its shortcut (same section).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        bottleneck: bool,
        norm: str,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        plan: tuple[tuple[int, int, int], ...]  # features, kernel, stride
        if bottleneck:
            plan = ((features, 1, 1), (features, 3, stride), (4 * features, 1, 1))
        else:
            plan = ((features, 3, stride), (features, 3, 1))
        self.convs = len(plan)
        self.out_features = plan[-1][0]
        make = functools.partial(conv, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        normalize = functools.partial(make_norm, kind=norm, param_dtype=param_dtype, rngs=rngs)
        width = in_features
        for index, (out, kernel, step) in enumerate(plan):
            setattr(self, f"conv_{index}", make(width, out, kernel, step))
            setattr(self, f"norm_{index}", normalize(out, zero=index == len(plan) - 1))
            width = out
        self.projects = stride != 1 or in_features != self.out_features
        if self.projects:
            self.shortcut = make(in_features, self.out_features, 1, stride)
            self.shortcut_norm = normalize(self.out_features)

    def __call__(self, x: jax.Array, train: bool, present: jax.Array | None = None) -> jax.Array:
        """x [B, H, W, in_features] -> [B, H / stride, W / stride, out_features]."""
        shortcut = (
            apply_norm(self.shortcut_norm, self.shortcut(x), train, present) if self.projects else x
        )
        for index in range(self.convs):
            x = getattr(self, f"conv_{index}")(x)
            x = apply_norm(getattr(self, f"norm_{index}"), x, train, present)
            if index < self.convs - 1:
                x = jax.nn.relu(x)
        return jax.nn.relu(x + shortcut)


class Resnet(nnx.Module):
    """ResNet-18, -34 or -50 (He et al. 2016).

    Images have the sides `image_size`, or multiples of the stride of the last stage: 32, or 8 with
    the small stem.

    Args:
      image_size: side in pixels of the square image that `grid` is for.
      depth: number of layers: 18, 34 or 50.
      width: channels of the stem; 64 in the paper.
      region_stage: the stage, 1 to 4, whose feature map becomes the regions.
      norm: kind of normalisation: batch (with statistics over the global batch) or group.
      channels: channels of the image.
      small_stem: a 3x3 convolution without stride and pooling, for images below about 100 pixels.
      pool: pooled feature: mean, zones or attention, or a mapping with options of the pooler, such
        as {"name": "zones", "size": 2}; see `mmrl.models.pool`. It pools the last stage.

    Attributes: width, local_width and grid, see ImageEncoder. Batch statistics are nnx.BatchStat
    variables, not parameters. Raises InputError for unknown choices.
    """

    takes_kept = False

    def __init__(
        self,
        *,
        image_size: int,
        depth: int,
        width: int = 64,
        region_stage: int = 4,
        norm: str = "batch",
        channels: int = 1,
        small_stem: bool = False,
        pool: str | Mapping[str, Any] = "mean",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("Resnet", "depth", depth, DEPTHS)
        check_choice("Resnet", "region_stage", region_stage, (1, 2, 3, 4))
        check_choice("Resnet", "norm", norm, ("batch", "group"))
        if image_size < 1 or width < 1:
            raise InputError(f"Resnet: image_size {image_size}, width {width}; expected 1 or more")
        self.image_size, self.channels, self.dtype = image_size, channels, dtype
        self.region_stage, self.small_stem = region_stage, small_stem
        self.blocks_per_stage, bottleneck = DEPTHS[depth]
        self.stem = conv(
            channels,
            width,
            *((3, 1) if small_stem else (7, 2)),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.stem_norm = make_norm(width, kind=norm, param_dtype=param_dtype, rngs=rngs)
        features = width
        for stage, blocks in enumerate(self.blocks_per_stage, start=1):
            for index in range(blocks):
                block = ResidualBlock(
                    features,
                    width * 2 ** (stage - 1),
                    2 if stage > 1 and index == 0 else 1,
                    bottleneck=bottleneck,
                    norm=norm,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    rngs=rngs,
                )
                setattr(self, f"stage_{stage}_block_{index:02d}", block)
                features = block.out_features
            if stage == region_stage:
                self.local_width = features
        self.grid = self._grid(region_stage, image_size, image_size)
        self.pool = pools.make(
            pool,
            width=features,
            grid=self._grid(4, image_size, image_size),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.width = self.pool.width

    @property
    def layers(self) -> Layers:
        """See `mmrl.models.layers.Layers`."""
        blocks = (
            (f"stage_{stage}_block_{index:02d}",)
            for stage, blocks in enumerate(self.blocks_per_stage, start=1)
            for index in range(blocks)
        )
        return (("stem", "stem_norm"), *blocks)

    def _grid(self, stage: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the feature map of a stage, of an image of so many pixels."""
        stride = 2 ** (stage - 1) * (1 if self.small_stem else 4)
        return -(-height // stride), -(-width // stride)

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        present: jax.Array | None = None,
    ) -> Features:
        """image f[B, H, W, channels] -> Features in the compute dtype.

        `train` is as in `apply_norm`. `rngs` is unused; it belongs to the common signature. Raises
        ValueError for another image shape.
        """
        stride = 8 if self.small_stem else 32
        check_image(image, self.image_size, stride, self.channels)
        x = self.stem(image.astype(self.dtype))
        x = jax.nn.relu(apply_norm(self.stem_norm, x, train, present))
        if not self.small_stem:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        regions = x
        for stage, blocks in enumerate(self.blocks_per_stage, start=1):
            for index in range(blocks):
                x = getattr(self, f"stage_{stage}_block_{index:02d}")(x, train, present)
            if stage == self.region_stage:
                regions = x
        local = regions.reshape(x.shape[0], -1, self.local_width)  # B R local_width
        grid = self._grid(4, *image.shape[1:3])
        pooled = self.pool(x.reshape(x.shape[0], -1, x.shape[-1]), grid=grid)
        return Features(pooled=pooled, local=local, mask=None)
