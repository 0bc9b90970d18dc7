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

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mmrl import build
from mmrl.devices.axes import sharing_axes, usable_mesh
from mmrl.models import splash
from mmrl.types import InputError

LOGICAL_AXES = (
    "embed", "mlp", "qkv", "heads", "head_dim", "vocab", "position", "patch",
    "channels_in", "channels_out", "joint", "norm", "layers",
)  # fmt: skip

Implementation = Literal["xla", "cudnn", "splash"]
Remat = Literal["none", "full", "dots"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]

# Of Hendrycks and Gimpel 2016 (GELU, sections 2 and 3): the exact form, the approximation by tanh,
# and the one by a logistic function, which OpenAI's CLIP uses; SiLU is x * sigmoid(x).
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


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
      layers: [B, n, R or L, width], the regions or tokens after chosen numbers of blocks, before
        any later norm; None if not asked for.
      attention: f32[B, heads, R or L], the attention that the summary token pays to them in the
        last block; without such a token, that of all of them on average. None if not asked for.
    """

    pooled: jax.Array
    local: Any
    mask: jax.Array | None
    layers: jax.Array | None = None
    attention: jax.Array | None = None


class ImageEncoder(Protocol):
    """Interface of image encoders.

    Attributes:
      width: features of the pooled output.
      local_width: features of the local output.
      grid: rows and columns of regions of an image of the size that the encoder is made for.
      channels: C; 1 for an encoder that does not state it.
      layers: see `Layers`; an encoder without them cannot be trained with layer-wise decay.
      takes_kept: whether it can encode some of the regions alone; False if not stated.
      takes_hidden: whether a learned token can stand in the place of regions; False if not stated.
      num_heads: heads of the last block, of an encoder that gives `attention`.

    An encoder without such abilities leaves out the arguments `kept`, `hidden`, `layers` and
    `attention`.
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
        kept: jax.Array | None = None,
        hidden: jax.Array | None = None,
        layers: Sequence[int] = (),
        attention: bool = False,
    ) -> Features:
        """image f[B, H, W, C] -> pooled [B, width] and local [B, R, local_width].

        Args:
          train: whether dropout and batch statistics are those of training.
          rngs: stream "dropout"; None: no dropout.
          present: bool[B], rows that count in statistics of the batch; None: all.
          kept: i32[B, P'], places (row by row of the grid) of the regions to encode; R is then P',
            in this order. Only of an encoder with `takes_kept`. None: all.
          hidden: bool[B, R], regions whose pixels change nothing. Only of an encoder with
            `takes_hidden`. None: none.
          layers: numbers of blocks after which the regions are wanted; 1: after the first one.
          attention: whether the attention of the last block is wanted.
        """


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


def check_image(image: jax.Array, size: int, step: int, channels: int) -> None:
    """Raises ValueError unless `image` is [B, H, W, channels] with sides that an encoder takes.

    These are `size`, which the encoder is made for, and the multiples of `step`.
    """
    fits = image.ndim == 4 and all(
        side == size or (side > 0 and side % step == 0) for side in image.shape[1:3]
    )
    if not fits or image.shape[3] != channels:
        raise ValueError(
            f"image {image.shape}; expected [B, H, W, {channels}], where H and W are {size} or "
            f"multiples of {step}"
        )


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

    def __init__(
        self, width: int, *, epsilon: float = 1e-6, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        super().__init__(
            width,
            epsilon=epsilon,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            scale_init=nnx.with_partitioning(nnx.initializers.ones_init(), ("norm",)),
            bias_init=nnx.with_partitioning(nnx.initializers.zeros_init(), ("norm",)),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        """x [..., width] -> [..., width]."""
        return super().__call__(x, **kwargs).astype(x.dtype)


class RmsNorm(nnx.RMSNorm):
    """Division by the root mean square (Zhang and Sennrich 2019, equation 4), without a bias.

    Computed in float32 and returned in the dtype of the input, as LayerNorm.
    """

    def __init__(
        self, width: int, *, epsilon: float = 1e-6, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        super().__init__(
            width,
            epsilon=epsilon,
            dtype=jnp.float32,
            param_dtype=param_dtype,
            scale_init=nnx.with_partitioning(nnx.initializers.ones_init(), ("norm",)),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """x [..., width] -> [..., width]."""
        return super().__call__(x, *args, **kwargs).astype(x.dtype)


_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """What the blocks of a transformer are made of, the option `block` of its encoder.

    The defaults are the pre-norm block of ViT. BERT is `order` post with `epsilon` 1e-12; Llama is
    `norm` rms, `activation` silu, `gated`, no biases and `rope_theta`; DINOv2 has a `layer_scale`.

    Args:
      norm: layer or rms: layer normalisation, or division by the root mean square without a bias;
        of every norm of the encoder.
      order: pre or post: x + branch(norm(x)), or norm(x + branch(x)).
      epsilon: added to the variance or mean square; of every norm of the encoder.
      activation: function within the MLPs: gelu (exact), gelu_tanh, quick_gelu, silu or relu.
      gated: whether the hidden features of the MLPs are activation(gate(x)) * wide(x) instead of
        activation(wide(x)) (Shazeer 2020, section 2).
      layer_scale: initial value of a factor for each feature of both branches (Touvron et al.
        2021, CaiT, section 2); 0: no factors.
      kv_heads: heads of keys and values, each shared by equally many heads of queries (Ainslie et
        al. 2023); 0: as many as heads of queries.
      head_dim: features of a head; 0: width / num_heads.
      qkv_bias: whether queries, keys and values have biases.
      out_bias: whether the output of attention has a bias.
      mlp_bias: whether the MLPs have biases.
      rope_theta: base of the wavelengths of rotary positions (Su et al. 2021), in Llama's form, in
        which feature i turns with feature i + head_dim / 2; 0: none.
      rope_scaling: stretches the wavelengths of rotary positions as Llama 3.1 does: a mapping with
        factor, low_freq_factor, high_freq_factor and original_max_position; see
        `rotary_frequencies`. None or {}: not.
      drop_path: rate at which the last block leaves out each of its branches, per row and in
        training alone; the rate rises linearly from 0 in the first block (Huang et al. 2016,
        "Deep networks with stochastic depth", section 3). Branches that stay are divided by
        1 - rate.

    Raises:
      InputError: values that do not fit together.
    """

    norm: Literal["layer", "rms"] = "layer"
    order: Literal["pre", "post"] = "pre"
    epsilon: float = 1e-6
    activation: Activation = "gelu"
    gated: bool = False
    layer_scale: float = 0.0
    kv_heads: int = 0
    head_dim: int = 0
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    rope_theta: float = 0.0
    rope_scaling: Mapping[str, float] | None = None
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        numbers = ("epsilon", "layer_scale", "kv_heads", "head_dim", "rope_theta")
        for name in numbers:
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)}; expected at least 0")
        if not 0 <= self.drop_path < 1:
            raise InputError(f"drop_path {self.drop_path}; expected at least 0 and below 1")
        given = self.rope_scaling
        if not given:
            return
        wrong = self.rope_theta == 0 or set(given) != set(_SCALING)
        if wrong or not 0 < given["low_freq_factor"] < given["high_freq_factor"]:
            raise InputError(
                f"rope_scaling {dict(given)} with rope_theta {self.rope_theta}; expected "
                f"{', '.join(_SCALING)}, where 0 < low_freq_factor < high_freq_factor, and "
                "rope_theta above 0"
            )

    @classmethod
    def of(cls, owner: str, given: Mapping[str, Any] | None) -> "BlockOptions":
        """The options that a mapping gives, such as {"norm": "rms"}; None: the defaults.

        Raises:
          InputError: an unknown key, a value of another type, or values that do not fit together.
        """
        # A ConfigDict is no Mapping.
        plain = dict((given or {}).items())
        where = f"{owner}: block"
        build.check_options(where, cls, plain)
        scaling = plain.get("rope_scaling")
        try:
            return cls(**plain | {"rope_scaling": dict(scaling.items()) if scaling else None})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def make_norm(
        self, width: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs
    ) -> LayerNorm | RmsNorm:
        """A norm over `width` features as these options say."""
        make = LayerNorm if self.norm == "layer" else RmsNorm
        return make(width, epsilon=self.epsilon, param_dtype=param_dtype, rngs=rngs)


DEFAULT_BLOCK = BlockOptions()


def rotary_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, float] | None = None
) -> np.ndarray:
    """Radians by which each pair of features turns from one position to the next.

    Args:
      head_dim: features of a head. theta: base, as `rope_theta` of BlockOptions.
      scaling: as `rope_scaling` of BlockOptions. Of the wavelengths 2 pi / f, those that occur
        fewer than low_freq_factor times in original_max_position become `factor` times as long,
        those that occur more than high_freq_factor times keep their length, and f is interpolated
        linearly between (code of Llama 3.1; Grattafiori et al. 2024, "The Llama 3 herd of models").

    Returns:
      f64[head_dim / 2], theta^(-2 i / head_dim) without scaling (Su et al. 2021, section 3.2.2).
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if not scaling:
        return frequencies
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position"] * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotate(x: jax.Array, positions: jax.Array, frequencies: Iterable[float]) -> jax.Array:
    """Turns feature pairs i and i + head_dim / 2 by position * frequencies[i], in float32.

    x [B, L, heads, head_dim], positions i32[B or 1, L] -> as x.
    """
    steps = jnp.asarray(tuple(frequencies), jnp.float32)
    angles = positions[..., None, None].astype(jnp.float32) * steps[None, None, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)  # B|1 L 1 head_dim/2
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (one * cosine - other * sine, other * cosine + one * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def learned_positions(
    length: int, width: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Param[jax.Array]:
    """Learned position table [length, width]; normal with standard deviation 0.02."""
    init = nnx.with_partitioning(nnx.initializers.normal(0.02), ("position", "embed"))
    return nnx.Param(init(rngs.params(), (length, width), param_dtype))


def _of_queries(mask: jax.Array) -> jax.Array:
    """A mask bool[B, L] or bool[B, Q, L], see Attention -> bool[B, 1 or Q, L]."""
    return mask[:, None] if mask.ndim == 2 else mask


class Attention(nnx.Module):
    """Multi-head self-attention with one fused kernel for query, key and value.

    With fewer heads of keys and values than of queries there are two kernels, `query` and `kv`.

    `attention` chooses the implementation:

      xla     runs on every device.
      cudnn   flash attention through jax.nn.dot_product_attention. Needs an NVIDIA GPU, bfloat16 or
              float16, and head_dim a multiple of 8 up to 128; in training with a mask, also an
              even number of tokens.
      splash  JAX's kernel for TPU, see `mmrl.models.splash`.

    `causal`: whether tokens attend to none that come after them.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        attention: Implementation,
        block: BlockOptions = DEFAULT_BLOCK,
        causal: bool = False,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("attention", "implementation", attention, ("xla", "cudnn", "splash"))
        if attention == "cudnn" and jnp.dtype(dtype).itemsize != 2:
            raise InputError(
                f"attention 'cudnn' with dtype {jnp.dtype(dtype)}; expected bfloat16 or float16"
            )
        head_dim = block.head_dim or width // num_heads
        kv_heads = block.kv_heads or num_heads
        if num_heads % kv_heads:
            raise InputError(
                f"block: kv_heads {kv_heads}; expected a divisor of num_heads {num_heads}"
            )
        if block.rope_theta and head_dim % 2:
            raise InputError(f"block: rope_theta with head_dim {head_dim}; expected an even one")
        self.implementation, self.causal = attention, causal
        # A tuple, because an array on a module would be part of its state.
        self.frequencies: tuple[float, ...] = ()
        if block.rope_theta:
            turns = rotary_frequencies(head_dim, block.rope_theta, block.rope_scaling)
            self.frequencies = tuple(turns.tolist())
        linear = functools.partial(
            nnx.LinearGeneral, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        zeros = nnx.initializers.zeros_init()
        # LinearGeneral initialises the flattened kernel [width, 3 * width]. Scaling by fan-in alone
        # equals Glorot scaling of its three square kernels.
        fan_in = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")

        def project(*features: int) -> nnx.LinearGeneral:
            axes = ("qkv", "heads", "head_dim")[-len(features) :]
            return linear(
                width,
                features,
                use_bias=block.qkv_bias,
                kernel_init=nnx.with_partitioning(fan_in, ("embed", *axes)),
                bias_init=nnx.with_partitioning(zeros, axes),
            )

        self.grouped = kv_heads != num_heads
        if self.grouped:
            self.query = project(num_heads, head_dim)
            self.kv = project(2, kv_heads, head_dim)
        else:
            self.qkv = project(3, num_heads, head_dim)
        self.out = linear(
            (num_heads, head_dim),
            width,
            axis=(-2, -1),
            use_bias=block.out_bias,
            kernel_init=nnx.with_partitioning(
                nnx.initializers.xavier_uniform(), ("heads", "head_dim", "embed")
            ),
            bias_init=nnx.with_partitioning(zeros, ("embed",)),
        )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        queries: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, L, width] -> [B, L, width]; with queries i32[B, Q], for those tokens only.

        mask is bool[B, L], the keys that all queries attend to, or bool[B, L or Q, L], those of
        each query. positions i32[B, L] are those of the tokens, by default 0 to L - 1; only rotary
        positions need them.
        """
        (query, key, value), mask = self._asked(x, mask, queries, positions, 3)
        # A fused kernel gains nothing for few queries, and cudnn refuses an odd number of them.
        implementation = self.implementation if queries is None else "xla"
        causal = self.causal and queries is None
        if implementation == "splash":
            x = splash.attend(query, key, value, mask, causal=causal)
        else:
            x = self._attend(query, key, value, mask, causal, implementation)
        out = self.out(x.reshape(-1, *x.shape[2:]))
        return out.reshape(*x.shape[:2], -1)

    def weights(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        queries: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """The attention of all tokens, or of `queries`, f32[B, heads, L or Q, L]; as `__call__`.

        Softmax of the scaled products of queries and keys (Vaswani et al. 2017, equation 1), in
        float32. Sums to 1 over L.
        """
        (query, key), mask = self._asked(x, mask, queries, positions, 2)
        key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)  # each is that of a group
        products = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        products *= 1 / math.sqrt(query.shape[-1])
        if self.causal and queries is None:
            before = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None]
            mask = before if mask is None else before & _of_queries(mask)
        if mask is not None:
            seen = _of_queries(mask)[:, None]  # B 1 Q|1 L
            products = jnp.where(seen, products, -0.7 * float(np.finfo(np.float32).max))
        return jax.nn.softmax(products, axis=-1)

    def _asked(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        queries: jax.Array | None,
        positions: jax.Array | None,
        count: int,
    ) -> tuple[list[jax.Array], jax.Array | None]:
        """The first `count` of query, key and value, turned by positions; and the mask of queries.

        A causal mask is included where there are `queries`.
        """
        query, key, *value = self._projected(x, queries, count)
        if self.frequencies:
            if positions is None:
                positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
            key = rotate(key, positions, self.frequencies)
            if queries is not None:
                places = jnp.broadcast_to(positions, x.shape[:2])
                positions = jnp.take_along_axis(places, queries, axis=1)
            query = rotate(query, positions, self.frequencies)
        if queries is not None and self.causal:
            before = jnp.arange(x.shape[1], dtype=jnp.int32)[None, None] <= queries[..., None]
            mask = before if mask is None else before & _of_queries(mask)  # B Q L
        return [query, key, *value], mask

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None,
        causal: bool,
        implementation: Literal["xla", "cudnn"],
    ) -> jax.Array:
        if mask is not None:
            mask = _of_queries(mask)[:, None]  # B 1 Q|1 L
        # jax.nn computes the softmax in float32 by implicit promotion, which strict mode refuses.
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(
                query, key, value, mask=mask, is_causal=causal, implementation=implementation
            )

    def _projected(self, x: jax.Array, queries: jax.Array | None, count: int) -> list[jax.Array]:
        """Query [B, L or Q, heads, head_dim], key and value [B, L, kv_heads, head_dim].

        Only the first `count` of the three.
        """
        if self.grouped:
            asking = x if queries is None else take_rows(x, queries)
            (query,) = self._parts(self.query(flatten(asking))[:, None], asking)
            return [query, *self._some(self.kv, x, slice(count - 1))]
        if queries is None:
            return self._some(self.qkv, x, slice(count))
        (query,) = self._some(self.qkv, take_rows(x, queries), slice(1))
        return [query, *self._some(self.qkv, x, slice(1, count))]

    def _some(self, layer: nnx.LinearGeneral, x: jax.Array, which: slice) -> list[jax.Array]:
        """Some parts of x [B, L, width] by a kernel of several."""
        kernel = layer.kernel[...]
        if which.indices(kernel.shape[1])[:2] == (0, kernel.shape[1]):
            return self._parts(layer(flatten(x)), x)
        projected = jnp.tensordot(flatten(x), kernel[:, which].astype(x.dtype), axes=1)
        if layer.bias is not None:
            projected += layer.bias[...][which].astype(x.dtype)[None]
        return self._parts(projected, x)

    @staticmethod
    def _parts(projected: jax.Array, x: jax.Array) -> list[jax.Array]:
        """[B * L, parts, heads, head_dim] of x [B, L, width] -> [B, L, heads, head_dim] each."""
        projected = projected.reshape(*x.shape[:2], *projected.shape[1:])
        return [projected[:, :, i] for i in range(projected.shape[2])]


class Mlp(nnx.Module):
    """Linear, activation, linear; or out(activation(gate(x)) * wide(x)), see BlockOptions."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Activation = "gelu",
        gated: bool = False,
        use_bias: bool = True,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        check_choice("MLP", "activation", activation, ACTIVATIONS)
        make = functools.partial(
            dense, use_bias=use_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.activation, self.gated = activation, gated
        self.wide = make(width, hidden, ("embed", "mlp"))
        if gated:
            self.gate = make(width, hidden, ("embed", "mlp"))
        self.out = make(hidden, width, ("mlp", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] -> [..., width]."""
        rows, activate = flatten(x), ACTIVATIONS[self.activation]
        hidden = self.wide(rows)
        hidden = activate(self.gate(rows)) * hidden if self.gated else activate(hidden)
        return self.out(hidden).reshape(x.shape)


class Block(nnx.Module):
    """Attention, then an MLP, each a residual branch with a norm and dropout; see BlockOptions."""

    def __init__(
        self,
        size: Size,
        mlp_dim: int | None,
        *,
        dropout: float,
        attention: Implementation,
        block: BlockOptions = DEFAULT_BLOCK,
        causal: bool = False,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if not 0 <= dropout < 1:
            raise InputError(f"dropout {dropout}; expected at least 0 and below 1")
        kwargs: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm = functools.partial(block.make_norm, size.width, param_dtype=param_dtype, rngs=rngs)
        self.pre_norm, self.has_scale = block.order == "pre", block.layer_scale != 0
        self.attention_norm = norm()
        self.attention = Attention(
            size.width, size.num_heads, attention=attention, block=block, causal=causal, **kwargs
        )
        self.mlp_norm = norm()
        self.mlp = Mlp(
            size.width,
            mlp_dim or 4 * size.width,
            activation=block.activation,
            gated=block.gated,
            use_bias=block.mlp_bias,
            **kwargs,
        )
        if self.has_scale:
            init = nnx.with_partitioning(nnx.initializers.constant(block.layer_scale), ("embed",))
            self.attention_scale = nnx.Param(init(rngs.params(), (size.width,), param_dtype))
            self.mlp_scale = nnx.Param(init(rngs.params(), (size.width,), param_dtype))
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        key: jax.Array | None = None,
        queries: jax.Array | None = None,
        positions: jax.Array | None = None,
        rate: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, L, width] -> [B, L, width]; with queries i32[B, Q], for those tokens only.

        Mask and positions are as in Attention. `rate` is that at which a row drops a branch.
        Without a key there is no dropout of either kind.
        """
        attention_key, mlp_key = split_key(key, 2)

        def drop(branch: jax.Array, rngs: jax.Array | None) -> jax.Array:
            branch = self.dropout(branch, deterministic=key is None, rngs=rngs)
            if rngs is None or rate is None:
                return branch
            return drop_rows(branch, rate, jax.random.fold_in(rngs, 1))

        attended = self.attention(
            self.attention_norm(x) if self.pre_norm else x, mask, queries, positions
        )
        if self.has_scale:
            attended *= self.attention_scale[...].astype(x.dtype)[None, None]
        x = x if queries is None else take_rows(x, queries)
        x = x + drop(attended, attention_key)
        x = x if self.pre_norm else self.attention_norm(x)
        added = self.mlp(self.mlp_norm(x) if self.pre_norm else x)
        if self.has_scale:
            added *= self.mlp_scale[...].astype(x.dtype)[None, None]
        x = x + drop(added, mlp_key)
        return x if self.pre_norm else self.mlp_norm(x)

    def attention_weights(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        queries: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """As `weights` of its attention, from the input of the block."""
        x = self.attention_norm(x) if self.pre_norm else x
        return self.attention.weights(x, mask, queries, positions)


def drop_rows(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Sets rows of x [B, ...] to 0 at a rate, and divides the others by 1 - rate."""
    stays = 1.0 - jnp.asarray(rate, jnp.float32)
    rows = jax.random.bernoulli(key, stays, (x.shape[0],) + (1,) * (x.ndim - 1))
    return x * (rows.astype(jnp.float32) / stays).astype(x.dtype)
