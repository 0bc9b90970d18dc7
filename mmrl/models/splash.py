"""Self-attention by JAX's splash kernel for TPU, which never holds the whole attention matrix.

The kernel takes segments instead of masks: a token attends to the tokens of its own segment. This
covers both masks that the encoders use: padding at the end, and several texts packed into a row.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec as P

from mmrl.devices.axes import sharing_axes, usable_mesh

_LANES = 128  # the kernel needs the number of tokens to be a multiple of this


def segments(mask: jax.Array | None, batch: int, length: int) -> jax.Array:
    """Segment of every token, i32[B, L]; -1 for padding, which attends to padding only.

    Args:
      mask: bool[B, L], valid tokens; or bool[B, L, L], the keys that each token attends to, which
        must be block-diagonal.
    """
    if mask is None:
        return jnp.zeros((batch, length), jnp.int32)
    if mask.ndim == 2:
        return jnp.where(mask, 0, -1).astype(jnp.int32)
    first = jnp.argmax(mask, axis=2).astype(jnp.int32)
    return jnp.where(mask.any(axis=2), first, -1)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    causal: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """Equals `jax.nn.dot_product_attention` at all tokens that are not padding.

    XLA cannot partition the kernel, so on a mesh each device computes its own rows of the batch and
    its own heads.

    Args:
      query: [B, L, heads, head_dim].
      key, value: [B, L, kv_heads, head_dim], where kv_heads divides heads.
      mask: as in `segments`.
      causal: whether tokens attend to none that come after them.
      interpret: interpret the kernel, which works on any device but is slow.
    """
    batch, length = query.shape[:2]
    segment = segments(mask, batch, length)
    local = functools.partial(_attend_on_device, causal=causal, interpret=interpret)
    mesh = usable_mesh(jax.typeof(query).sharding.mesh)
    if mesh is None or mesh.size == 1:
        return local(query, key, value, segment)
    rows = sharing_axes(mesh, batch)
    kv_heads = key.shape[2]  # divides the heads of the queries, so their shards match
    split = "tensor" if kv_heads % mesh.shape.get("tensor", kv_heads + 1) == 0 else None
    spec = P(rows or None, None, split)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spec, spec, spec, P(rows or None)),
        out_specs=spec,
        check_vma=False,  # the kernel does not declare over which mesh axes its output varies
    )(query, key, value, segment)


def _attend_on_device(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment: jax.Array,
    *,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    length, heads, width = query.shape[1:]
    padded = -(-length // _LANES) * _LANES
    extra = padded - length

    def heads_first(x: jax.Array) -> jax.Array:  # B heads L head_dim
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, extra), (0, 0)))

    segment = jnp.pad(segment, ((0, 0), (0, extra)), constant_values=-1)
    shape = (padded, padded)
    seen = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    every = masks.MultiHeadMask([seen] * heads)
    splash = kernel.make_splash_mha(every, head_shards=1, q_seq_shards=1, interpret=interpret)
    # The kernel itself does not scale the logits.
    query = query * jnp.asarray(1.0 / math.sqrt(width), query.dtype)
    with jax.numpy_dtype_promotion("standard"):
        out = jax.vmap(splash)(
            heads_first(query),
            heads_first(key),
            heads_first(value),
            kernel.SegmentIds(segment, segment),
        )
    return jnp.swapaxes(out, 1, 2)[:, :length].astype(query.dtype)
