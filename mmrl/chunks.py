"""Work on a part of the rows at a time, whose intermediate results are computed again later."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmrl.devices.axes import sharing_axes, usable_mesh
from mmrl.vectors import contract, matmul_dtype

# Without a chunk size, this many logits exist at a time (2**24 float32 are 64 MiB).
_LOGITS_AT_ONCE = 2**24


def by_rows(function: Callable[..., Any], *arrays: Any, chunk: int) -> Any:
    """`function(*arrays)`, computed for some rows at a time.

    The backward pass computes each part again, so the intermediate results of one part exist at a
    time. Rows are dealt to the parts in turn, so that each part stays spread over the devices that
    share the rows.

    Args:
      function: (pytrees of arrays [n, ...]) -> pytree of arrays [n, ...]. Each row of its result
        depends on the same row of its arguments alone.
      arrays: pytrees of arrays [N, ...].
      chunk: most rows of a part; 0: all rows at once, which are then not computed again.

    Returns:
      What `function(*arrays)` returns, [N, ...].
    """
    size = jax.tree.leaves(arrays)[0].shape[0]
    if not 0 < chunk < size:
        return function(*arrays)
    count = math.ceil(size / chunk)
    length = math.ceil(size / count)

    def deal(x: jax.Array) -> jax.Array:
        """[N, ...] -> [count, length, ...]; part i has the rows i, i + count, ..."""
        if count * length > size:  # the last places repeat the first rows
            x = x[np.arange(count * length) % size]
        return _spread(x.reshape(length, count, *x.shape[1:]).swapaxes(0, 1), length)

    def collect(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(count * length, *x.shape[2:])[:size]

    # XLA cannot merge the two computations across the scan, so preventing that would only cost.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(part: Any) -> Any:
        return function(*part)

    dealt = jax.tree.map(deal, jax.tree.map(jnp.asarray, arrays))
    return jax.tree.map(collect, jax.lax.map(one, dealt))


def _spread(x: jax.Array, rows: int) -> jax.Array:
    """x [count, rows, ...] with its second axis over the mesh axes that share the batch."""
    mesh = usable_mesh(jax.typeof(x).sharding.mesh)
    if mesh is None or (shared := sharing_axes(mesh, rows)) is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, shared)))


class CrossEntropy(NamedTuple):
    """Of each row: its cross-entropy, and whether its class has the largest logit.

    Attributes:
      value: f32[N], 0 for rows without a class.
      right: bool[N], False for rows without a class. With ties, the first of the largest counts.
    """

    value: jax.Array
    right: jax.Array


def chunked_cross_entropy(
    features: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    *,
    chunk: int = 0,
) -> CrossEntropy:
    """Softmax cross-entropy of logits features @ kernel + bias that never all exist at once.

    For heads with many classes, such as the tokens of a vocabulary. Logits are added up in float32;
    they are multiplied in bfloat16 or float16 where features and kernel have that type.

    Args:
      features: f[N, D]. kernel: f[D, C]. bias: f[C] or None.
      labels: i32[N], the class of each row; below 0: it has none.
      chunk: most rows whose logits exist at a time; 0: as many as take 64 MiB.

    Raises:
      ValueError: shapes that do not fit.
    """
    count = kernel.shape[-1]
    fits = features.ndim == kernel.ndim == 2 and features.shape[1] == kernel.shape[0]
    if not fits or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features [N, D] must match kernel [D, C] and labels [N], got {features.shape}, "
            f"{kernel.shape}, {labels.shape}"
        )
    dtype = matmul_dtype(features, kernel)

    def rows(features: jax.Array, labels: jax.Array) -> CrossEntropy:
        known = labels >= 0
        # Whatever rows without a class contain, their gradient is 0.
        features = jnp.where(known[:, None], features.astype(jnp.float32), 0.0)
        logits = contract("nd,dc->nc", features, kernel.astype(jnp.float32), dtype)
        if bias is not None:
            logits += bias.astype(jnp.float32)[None]
        own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        value = jnp.where(known, jax.nn.logsumexp(logits, axis=1) - own, 0.0)
        return CrossEntropy(value, known & (jnp.argmax(logits, axis=1) == labels))

    return by_rows(rows, features, labels, chunk=chunk or max(1, _LOGITS_AT_ONCE // count))
