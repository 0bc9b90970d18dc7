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
    interpret: bool = False,
) -> jax.Array:
    """Equals `jax.nn.dot_product_attention` at all tokens that are not padding.

    XLA cannot partition the kernel, so on a mesh each device computes its own rows of the batch and
    its own heads.

    Args:
      query, key, value: [B, L, heads, head_dim].
      mask: as in `segments`.
      interpret: interpret the kernel, which works on any device but is slow.
    """
    batch, length, heads, _ = query.shape
    segment = segments(mask, batch, length)
    local = functools.partial(_attend_on_device, interpret=interpret)
    mesh = usable_mesh(jax.typeof(query).sharding.mesh)
    if mesh is None or mesh.size == 1:
        return local(query, key, value, segment)
    rows = sharing_axes(mesh, batch)
    split = "tensor" if heads % mesh.shape.get("tensor", heads + 1) == 0 else None
    spec = P(rows or None, None, split)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spec, spec, spec, P(rows or None)),
        out_specs=spec,
        check_vma=False,  # the kernel does not declare over which mesh axes its output varies
    )(query, key, value, segment)


def _attend_on_device(
    query: jax.Array, key: jax.Array, value: jax.Array, segment: jax.Array, *, interpret: bool
) -> jax.Array:
    length, heads, width = query.shape[1:]
    padded = -(-length // _LANES) * _LANES
    extra = padded - length

    def heads_first(x: jax.Array) -> jax.Array:  # B heads L head_dim
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, extra), (0, 0)))

    segment = jnp.pad(segment, ((0, 0), (0, extra)), constant_values=-1)
    full = masks.MultiHeadMask([masks.FullMask((padded, padded))] * heads)
    splash = kernel.make_splash_mha(full, head_shards=1, q_seq_shards=1, interpret=interpret)
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
