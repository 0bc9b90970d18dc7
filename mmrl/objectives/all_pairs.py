"""Losses over all image-text pairs of the global batch, with the batch divided among devices.

`pair_loss` computes the tiles of `mmrl.objectives.tiles` on one device ("chunked") or on a ring of
the devices that share the batch ("ring"). In a ring, each device keeps its images, and the texts
move from device to device together with their metadata and statistics. After as many steps as
there are devices, each has met all texts and never held more than two devices' share of them. The
backward pass is a second round, in which the gradients of the texts move along with the texts
(Liu, Zaharia, Abbeel 2023, "Ring Attention").
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmrl.devices.axes import BATCH_AXES, sharing_axes, usable_mesh
from mmrl.objectives import tiles
from mmrl.objectives.tiles import Block, Gradients, Metadata, Statistics, TiledLoss
from mmrl.types import InputError

IMPLEMENTATIONS = ("auto", "dense", "chunked", "ring")

# "auto" is dense if one device's share of the largest array has at most this many elements (64 MiB
# of float32). A matrix that small needs neither a loop nor recomputation nor communication.
_MAX_DENSE_ELEMENTS = 2**24


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices that share the rows of the batch.

    Attributes:
      mesh: their mesh; None for a single device.
      axes: mesh axes that divide the batch.
      size: number of devices along these axes.
    """

    mesh: Any = None
    axes: tuple[str, ...] = ()
    size: int = 1


def check_implementation(name: str, chunk_size: int) -> None:
    """Checks the options that all pair losses have.

    Raises:
      InputError: unknown implementation or negative chunk size.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(
            f"unknown implementation {name!r} of a loss; choices: {', '.join(IMPLEMENTATIONS)}"
        )
    if chunk_size < 0:
        raise InputError(
            f"chunk_size={chunk_size}; expected a positive number, or 0 for tiles that fit in "
            "memory"
        )


def choose(implementation: str, size: int, per_pair: int, example: jax.Array) -> tuple[str, Ring]:
    """Decides how a loss is computed, and on which devices.

    Args:
      implementation: one of IMPLEMENTATIONS. "auto" is "dense" while one device's share of the
        largest array is small; otherwise "ring" if several devices share the batch, else
        "chunked".
      size: pairs in the global batch.
      per_pair: elements per pair in the largest array of the dense form.
      example: an array of the batch. Its type gives the mesh if there is no ambient mesh.

    Returns:
      (form, ring). The form is "dense" or "tiled"; "tiled" runs on the devices of the ring.

    Raises:
      InputError: "ring" on a mesh that cannot divide the batch evenly.
    """
    check_implementation(implementation, 0)
    ring, even = _find_ring(size, example)
    if implementation == "ring" and not even:
        raise InputError(
            f"implementation='ring' needs the batch of {size} pairs to be a multiple of the "
            f"devices that share it (mesh axes {' x '.join(BATCH_AXES)})"
        )
    small = size * (size // ring.size) * per_pair <= _MAX_DENSE_ELEMENTS
    if implementation == "dense" or (implementation == "auto" and small):
        return "dense", ring
    return "tiled", Ring() if implementation == "chunked" else ring


def _find_ring(size: int, example: jax.Array) -> tuple[Ring, bool]:
    """(devices that share the batch, whether they divide it evenly)."""
    ambient = jax.sharding.get_abstract_mesh()
    mesh = usable_mesh(jax.typeof(example).sharding.mesh if ambient.empty else ambient)
    if mesh is None:
        return Ring(), True
    axes = sharing_axes(mesh, size)
    if axes is None:
        return Ring(), False
    count = math.prod(mesh.shape[name] for name in axes)
    # Devices along other axes hold copies of the batch. They join the ring instead of repeating
    # the same work.
    for name, factor in mesh.shape.items():
        if name not in axes and size % (count * factor) == 0:
            axes, count = (*axes, name), count * factor
    return (Ring(mesh, axes, count) if count > 1 else Ring()), True


def pair_loss(
    tiled: TiledLoss,
    params: Any,
    rows: jax.Array,
    columns: jax.Array,
    *,
    group: jax.Array | None,
    present: jax.Array | None = None,
    mask: jax.Array | None = None,
    ring: Ring,
) -> jax.Array:
    """A tiled loss over all pairs of rows and columns, divided by the number of present rows.

    Differentiable once, in reverse mode, with respect to params, rows and columns.

    Args:
      tiled: the loss; its tile shape is for one device's share of the batch.
      params: parameters of the logits, replicated on all devices.
      rows, columns: f[B, ...]; row i and column i are a positive pair.
      group: i32[B], duplicate groups: pairs off the diagonal with equal group are not negatives.
      present: bool[B]; None: all. The other rows and columns do not enter the loss. Their features
        must be finite.
      mask: bool[B, W], valid words of the columns.
      ring: the devices to compute it on.

    Returns:
      f32[].
    """
    position = jnp.arange(rows.shape[0], dtype=jnp.int32)
    metadata = Metadata(position, position if group is None else group, mask, present)
    return _pair_loss(_RingLoss(tiled, ring, rows.shape[0]), params, rows, columns, metadata)


@dataclasses.dataclass(frozen=True)
class _RingLoss:
    """A loss of `batch_size` pairs on a ring, and the communication that it needs."""

    tiled: TiledLoss
    ring: Ring
    batch_size: int

    def shard_map(self, function: Any, inputs: tuple[Any, ...], outputs: Any) -> Any:
        """Runs `function` on every device of the ring.

        Args:
          inputs, outputs: for each argument and result, True if it is divided along its first
            axis and False if it is replicated.
        """
        if self.ring.size == 1:
            return function
        spec = {True: P(self.ring.axes), False: P()}
        return jax.shard_map(
            function,
            mesh=self.ring.mesh,
            in_specs=jax.tree.map(spec.get, inputs),
            out_specs=jax.tree.map(spec.get, outputs),
            check_vma=False,
        )

    def psum(self, tree: Any) -> Any:
        """Sums each array over the devices."""
        return jax.lax.psum(tree, self.ring.axes) if self.ring.size > 1 else tree

    def rotate(self, tree: Any) -> Any:
        """Sends each array to the next device of the ring."""
        size, axes = self.ring.size, self.ring.axes
        if size == 1:
            return tree
        permutation = [(source, (source + 1) % size) for source in range(size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, permutation), tree)

    def round(self, step: Any, start: Any) -> Any:
        """Applies step(carry) once for each device of the ring."""
        if self.ring.size == 1:
            return step(start)
        return jax.lax.fori_loop(0, self.ring.size, lambda _, carry: step(carry), start)

    def row_count(self, metadata: Metadata) -> int | jax.Array:
        """The number of present rows on all devices, but at least 1."""
        if metadata.present is None:
            return self.batch_size
        count = self.psum(metadata.present.sum(dtype=jnp.float32))
        return jnp.maximum(count, 1.0)

    def sort_by_length(
        self, columns: jax.Array, metadata: Metadata
    ) -> tuple[jax.Array, Metadata, Any]:
        """Sorts columns by their number of words, so that tiles of short ones can be cut.

        Returns:
          (columns, metadata, order); the order is None if nothing was sorted.
        """
        if len(self.tiled.widths) < 2 or metadata.mask is None:
            return columns, metadata, None
        order = jnp.argsort(tiles.lengths(metadata.mask))
        columns, metadata = jax.tree.map(lambda x: x[order], (columns, metadata))
        return columns, metadata, order


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair_loss(
    ring_loss: _RingLoss, params: Any, rows: jax.Array, columns: jax.Array, metadata: Metadata
) -> jax.Array:
    return _forward(ring_loss, params, rows, columns, metadata)[0]


def _forward(
    ring_loss: _RingLoss, params: Any, rows: jax.Array, columns: jax.Array, metadata: Metadata
) -> tuple[jax.Array, Any]:
    def on_device(params: Any, rows: jax.Array, columns: jax.Array, metadata: Metadata) -> Any:
        row_metadata = metadata._replace(mask=None)
        columns, metadata, _ = ring_loss.sort_by_length(columns, metadata)

        def step(carry: Any) -> Any:
            columns, metadata, row_statistics, column_statistics = carry
            # Does not depend on this step's tiles, so it can be sent while they are computed.
            received = ring_loss.rotate((columns, metadata))
            row_statistics, column_statistics = tiles.accumulate_statistics(
                ring_loss.tiled,
                params,
                Block(rows, row_metadata, row_statistics),
                Block(columns, metadata, column_statistics),
            )
            return *received, row_statistics, ring_loss.rotate(column_statistics)

        statistics = ring_loss.tiled.loss.initial(row_metadata, metadata)
        statistics = ring_loss.round(step, (columns, metadata, *statistics))[2:]
        total = ring_loss.psum(ring_loss.tiled.loss.total(*statistics))
        return total / ring_loss.row_count(row_metadata), statistics

    mapped = ring_loss.shard_map(on_device, (False, True, True, True), (False, True))
    value, statistics = mapped(params, rows, columns, metadata)
    return value, (params, rows, columns, metadata, statistics)


def _backward(ring_loss: _RingLoss, saved: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    def on_device(
        cotangent: jax.Array,
        params: Any,
        rows: jax.Array,
        columns: jax.Array,
        metadata: Metadata,
        statistics: tuple[Statistics, Statistics],
    ) -> tuple[Any, ...]:
        row_block = Block(rows, metadata._replace(mask=None), statistics[0])
        columns, metadata, order = ring_loss.sort_by_length(columns, metadata)
        scale = cotangent / ring_loss.row_count(metadata)

        def step(carry: Any) -> Any:
            column_block, gradients = carry
            received = ring_loss.rotate(column_block)
            gradients = tiles.accumulate_gradients(
                ring_loss.tiled, params, row_block, column_block, scale, gradients
            )
            return received, gradients._replace(columns=ring_loss.rotate(gradients.columns))

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (params, rows, columns))
        column_block = Block(columns, metadata, statistics[1])
        _, gradients = ring_loss.round(step, (column_block, Gradients(*zeros)))
        of_columns = gradients.columns
        if order is not None:
            of_columns = jnp.zeros_like(of_columns).at[order].set(of_columns, unique_indices=True)
        of_params = jax.tree.map(
            lambda g, p: ring_loss.psum(g).astype(p.dtype), gradients.params, params
        )
        return of_params, gradients.rows.astype(rows.dtype), of_columns.astype(columns.dtype)

    inputs = (False, False, True, True, True, True)
    mapped = ring_loss.shard_map(on_device, inputs, (False, True, True))
    return *mapped(cotangent, *saved), None


_pair_loss.defvjp(_forward, _backward)
