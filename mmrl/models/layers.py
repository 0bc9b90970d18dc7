"""Building blocks of the encoders: their output type, their sizes, layers and transformer block.

Every parameter is created with one logical name per array axis. The sharding rules map these names
to mesh axes:

  embed, mlp             features of the residual stream, hidden features of an MLP
  qkv, heads, head_dim   the three projections in one kernel, attention heads, features of one head
  vocab, position        rows of the token table, rows of a learned position table
  patch                  flattened pixels of one image patch
  channels_in/_out       input and output features of a convolution
  joint                  features of the joint embedding space
  norm                   scale and bias of a normalisation layer
  layers                 leading axis that a scanned stack adds to each of its parameters

The spatial axes of a convolution kernel, the window of a convolution over tokens, and the axis that
counts learned queries have no name (None).
"""

import functools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mmrl.devices.axes import sharing_axes, usable_mesh
from mmrl.models import splash
from mmrl.types import InputError

LOGICAL_AXES = (
    "embed", "mlp", "qkv", "heads", "head_dim", "vocab", "position", "patch",
    "channels_in", "channels_out", "joint", "norm", "layers",
)  # fmt: skip

Implementation = Literal["xla", "cudnn", "splash"]
Remat = Literal["none", "full", "dots"]


Layers = tuple[tuple[str, ...], ...]
"""The layers of an encoder from its input on, for layer-wise decay of the learning rate.

Each is given by the starts of the paths of its parameters within the encoder. The first layer is
the embedding, each other one a block. A start that several layers have is that of parameters with
a leading axis over these layers. Parameters of no layer, such as those of poolers, come after the
last one.
"""


class Features(NamedTuple):
    """The output of an encoder, in its compute dtype.

    Attributes:
      pooled: [B, width], one vector per image or text.
      local: for images, [B, R, local_width], the regions in row-major order of the encoder's
        `grid`; for texts, [B, L, width], the features of all token positions, padding included.
      mask: bool[B, L], True at tokens that are not padding; None for images.
    """

    pooled: jax.Array
    local: Any
    mask: jax.Array | None


class ImageEncoder(Protocol):
    """Interface of image encoders.

    Attributes:
      width: features of the pooled output.
      local_width: features of the local output.
      grid: rows and columns of regions.
      layers: see `Layers`; an encoder without them cannot be trained with layer-wise decay.
    """

    width: int
    local_width: int
    grid: tuple[int, int]

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        present: jax.Array | None = None,
    ) -> Features:
        """image f[B, H, W, C] -> pooled [B, width] and local [B, R, local_width]."""


class Size(NamedTuple):
    """Width, number of layers and number of heads of a transformer."""

    width: int
    depth: int
    num_heads: int


# Dosovitskiy et al. 2021 (ViT), table 1, and Touvron et al. 2021 (DeiT), table 1, for Ti and S.
VARIANTS = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
}


def check_choice(owner: str, option: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises InputError, with the list of choices, unless `value` is one of them."""
    choices = tuple(choices)
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise InputError(f"{owner}: unknown {option} {value!r}; choices: {listed}")


def resolve_size(
    owner: str, variant: str | None, width: int | None, depth: int | None, num_heads: int | None
) -> Size:
    """The size of a named variant, with explicit values taking precedence.

    Raises InputError if the variant is unknown, if a value is given neither explicitly nor by a
    variant, or if the width is not a multiple of the number of heads.
    """
    given = {"width": width, "depth": depth, "num_heads": num_heads}
    named = {}
    if variant is not None:
        check_choice(owner, "variant", variant, VARIANTS)
        named = VARIANTS[variant]._asdict()
    merged = named | {name: value for name, value in given.items() if value is not None}
    missing = given.keys() - merged.keys()
    if missing:
        raise InputError(
            f"{owner}: {', '.join(sorted(missing))} not given; give width, depth and num_heads "
            f"or a variant ({', '.join(VARIANTS)})"
        )
    size = Size(**merged)
    if min(size) < 1 or size.width % size.num_heads:
        raise InputError(
            f"{owner}: width {size.width}, depth {size.depth}, num_heads {size.num_heads}; "
            "all must be at least 1 and width a multiple of num_heads"
        )
    return size


def check_image(image: jax.Array, size: int, channels: int) -> None:
    """Raises ValueError unless `image` is [B, size, size, channels]."""
    if image.ndim != 4 or image.shape[1:] != (size, size, channels):
        raise ValueError(f"image {image.shape}; expected [B, {size}, {size}, {channels}]")


def flatten(x: jax.Array) -> jax.Array:
    """[..., width] -> [N, width], so that the gradient of a kernel is one matrix product.

    On CPU this is twice as fast for an MLP of width 96 (`python -m benchmarks.dense`).
    """
    return x.reshape(-1, x.shape[-1])


def spread_rows(x: jax.Array) -> jax.Array:
    """Shards x [B, ...] along its first axis only, over the mesh axes that share the batch.

    Without this constraint, the compiler may derive the sharding of activations from that of the
    kernels, which `fsdp` divides by features. It then exchanges activations between devices in
    every layer, although only the kernels need to be gathered. Returns x unchanged without a mesh,
    or if the mesh cannot divide B evenly.
    """
    mesh = usable_mesh(jax.typeof(x).sharding.mesh)
    if mesh is None or (shared := sharing_axes(mesh, x.shape[0])) is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(shared)))


def gathered(table: jax.Array) -> jax.Array:
    """Replicates an embedding table on every device of its mesh before rows are looked up.

    Looking up rows of a sharded table would shard the features of the result, see `spread_rows`.
    """
    mesh = usable_mesh(jax.typeof(table).sharding.mesh)
    if mesh is None:
        return table
    return jax.lax.with_sharding_constraint(table, NamedSharding(mesh, P()))


def take_rows(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x [B, L, width], positions i32[B, Q] -> [B, Q, width]."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)


def split_key(key: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    """`count` independent keys, all None if `key` is None."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))


def dropout_keys(train: bool, rngs: nnx.Rngs | None, count: int) -> tuple[jax.Array | None, ...]:
    """Keys from the stream "dropout". All are None (no dropout) without `train` or without rngs."""
    return split_key(rngs.dropout() if train and rngs is not None else None, count)


def dense(
    in_features: int,
    out_features: int,
    axes: tuple[str, str],
    *,
    use_bias: bool = True,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A linear layer whose kernel [in, out] has the logical `axes`; Glorot-uniform, zero bias."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nnx.with_partitioning(nnx.initializers.xavier_uniform(), axes),
        bias_init=nnx.with_partitioning(nnx.initializers.zeros_init(), axes[1:]),
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation, computed in float32 and returned in the dtype of the input."""

    def __init__(self, width: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        super().__init__(
            width,
            epsilon=1e-6,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            scale_init=nnx.with_partitioning(nnx.initializers.ones_init(), ("norm",)),
            bias_init=nnx.with_partitioning(nnx.initializers.zeros_init(), ("norm",)),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        """x [..., width] -> [..., width]."""
        return super().__call__(x, **kwargs).astype(x.dtype)


def learned_positions(
    length: int, width: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Param[jax.Array]:
    """Learned position table [length, width]; normal with standard deviation 0.02."""
    init = nnx.with_partitioning(nnx.initializers.normal(0.02), ("position", "embed"))
    return nnx.Param(init(rngs.params(), (length, width), param_dtype))


class Attention(nnx.Module):
    """Multi-head self-attention with one fused kernel for query, key and value.

    `attention` chooses the implementation:

      xla     runs on every device.
      cudnn   flash attention through jax.nn.dot_product_attention. Needs an NVIDIA GPU, bfloat16 or
              float16, and head_dim a multiple of 8 up to 128; in training with a mask, also an
              even number of tokens.
      splash  JAX's kernel for TPU, see `mmrl.models.splash`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        attention: Implementation,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("attention", "implementation", attention, ("xla", "cudnn", "splash"))
        if attention == "cudnn" and jnp.dtype(dtype).itemsize != 2:
            raise InputError(
                f"attention 'cudnn' with dtype {jnp.dtype(dtype)}; expected bfloat16 or float16"
            )
        self.implementation = attention
        head_dim = width // num_heads
        linear = functools.partial(
            nnx.LinearGeneral, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        zeros = nnx.initializers.zeros_init()
        # LinearGeneral initialises the flattened kernel [width, 3 * width]. Scaling by fan-in alone
        # equals Glorot scaling of its three square kernels.
        fan_in = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.qkv = linear(
            width,
            (3, num_heads, head_dim),
            kernel_init=nnx.with_partitioning(fan_in, ("embed", "qkv", "heads", "head_dim")),
            bias_init=nnx.with_partitioning(zeros, ("qkv", "heads", "head_dim")),
        )
        self.out = linear(
            (num_heads, head_dim),
            width,
            axis=(-2, -1),
            kernel_init=nnx.with_partitioning(
                nnx.initializers.xavier_uniform(), ("heads", "head_dim", "embed")
            ),
            bias_init=nnx.with_partitioning(zeros, ("embed",)),
        )

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, queries: jax.Array | None = None
    ) -> jax.Array:
        """x [B, L, width] -> [B, L, width]; with queries i32[B, Q], for those positions only.

        mask is bool[B, L], the keys that all queries attend to, or bool[B, L or Q, L], those of
        each query.
        """
        if queries is None:
            query, key, value = self._project(x, slice(None))
        else:
            key, value = self._project(x, slice(1, None))
            (query,) = self._project(take_rows(x, queries), slice(1))
        # A fused kernel gains nothing for few queries, and cudnn refuses an odd number of them.
        implementation = self.implementation if queries is None else "xla"
        if implementation == "splash":
            x = splash.attend(query, key, value, mask)
        else:
            x = self._attend(query, key, value, mask, implementation)
        out = self.out(x.reshape(-1, *x.shape[2:]))
        return out.reshape(*x.shape[:2], -1)

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None,
        implementation: Literal["xla", "cudnn"],
    ) -> jax.Array:
        if mask is not None:
            mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # B 1 Q|1 L
        # jax.nn computes the softmax in float32 by implicit promotion, which strict mode refuses.
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(
                query, key, value, mask=mask, implementation=implementation
            )

    def _project(self, x: jax.Array, which: slice) -> list[jax.Array]:
        """Projects x [B, L, width] to some of (query, key, value): [B, L, heads, head_dim] each."""
        if which == slice(None):
            projected = self.qkv(flatten(x))  # B*L 3 heads head_dim
        else:
            kernel = self.qkv.kernel[...][:, which].astype(x.dtype)
            projected = jnp.tensordot(flatten(x), kernel, axes=1)
            if self.qkv.bias is not None:
                projected += self.qkv.bias[...][which].astype(x.dtype)[None]
        projected = projected.reshape(*x.shape[:2], *projected.shape[1:])
        return [projected[:, :, i] for i in range(projected.shape[2])]


class Mlp(nnx.Module):
    """Linear, exact GELU, linear."""

    def __init__(
        self, width: int, hidden: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        make = functools.partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.wide = make(width, hidden, ("embed", "mlp"))
        self.out = make(hidden, width, ("mlp", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> [..., width]."""
        hidden = jax.nn.gelu(self.wide(flatten(x)), approximate=False)
        return self.out(hidden).reshape(x.shape)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches."""

    def __init__(
        self,
        size: Size,
        mlp_dim: int | None,
        *,
        dropout: float,
        attention: Implementation,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if not 0 <= dropout < 1:
            raise InputError(f"dropout {dropout}; expected at least 0 and below 1")
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attention_norm = LayerNorm(size.width, param_dtype=param_dtype, rngs=rngs)
        self.attention = Attention(size.width, size.num_heads, attention=attention, **kwargs)
        self.mlp_norm = LayerNorm(size.width, param_dtype=param_dtype, rngs=rngs)
        self.mlp = Mlp(size.width, mlp_dim or 4 * size.width, **kwargs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
        queries: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, L, width] -> [B, L, width]; with queries i32[B, Q], for those positions only.

        The mask is as in Attention. Without a key there is no dropout.
        """
        attention_key, mlp_key = split_key(key, 2)
        drop = functools.partial(self.dropout, deterministic=key is None)
        attended = self.attention(self.attention_norm(x), mask, queries)
        x = x if queries is None else take_rows(x, queries)
        x = x + drop(attended, rngs=attention_key)
        return x + drop(self.mlp(self.mlp_norm(x)), rngs=mlp_key)
