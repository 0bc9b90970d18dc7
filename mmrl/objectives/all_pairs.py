"""A loss over all pairs of the global batch, where no device holds more than its share.

`pair_loss` runs the sweeps of `chunks` over the whole table on one device ("chunked"), or around
a ring of the devices that share the batch ("ring"): each keeps its images and passes its texts
on, with what belongs to them, until they are home again. After n hops every device has seen all
texts and none has held more than two shares of them. The backward pass is a second such round in
which the gradients of the texts travel along (Liu, Zaharia, Abbeel 2023, "Ring Attention").
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
from mmrl.objectives.tiles import Gradients, Marks, Side, Stats, Table
from mmrl.types import InputError

IMPLEMENTATIONS = ("auto", "dense", "chunked", "ring")

# "auto" holds a table at once when a device's share of its largest array has at most this many
# numbers (64 MiB of float32): nothing then needs scanning, computing twice, or passing round.
_ELEMENTS_AT_ONCE = 2**24


@dataclasses.dataclass(frozen=True)
class Shares:
    """The devices that share the rows of the batch: a mesh, the axes that split it, their size.

    Without such devices: no mesh, no axes, size 1.
    """

    mesh: Any = None
    axes: tuple[str, ...] = ()
    size: int = 1


def check_implementation(name: str, chunk_size: int) -> None:
    """Refuses options that no pair loss has.

    Raises:
      InputError: unknown implementation or negative chunk size.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(
            f"unknown implementation {name!r} of a loss; choices: {', '.join(IMPLEMENTATIONS)}"
        )
    if chunk_size < 0:
        raise InputError(f"chunk_size={chunk_size} must be positive, or 0 to fit tiles to memory")


def choose(implementation: str, size: int, per_pair: int, example: jax.Array) -> tuple[str, Shares]:
    """Which form to compute, and the devices it runs on.

    Args:
      implementation: one of IMPLEMENTATIONS. "auto": "dense" while a device's share is small;
        beyond that "ring" where devices share the batch, else "chunked".
      size: pairs in the global batch.
      per_pair: numbers that a pair keeps in the largest array of the dense form.
      example: a batch array; its type tells the mesh when no ambient mesh does.

    Returns:
      (form, shares), where form is "dense" or "swept", and "swept" runs over the shares.

    Raises:
      InputError: "ring" on a mesh that cannot share the batch evenly.
    """
    check_implementation(implementation, 0)
    shares, even = _shares(size, example)
    if implementation == "ring" and not even:
        raise InputError(
            f"implementation='ring' needs the batch of {size} pairs to be a multiple of the "
            f"devices that share it (mesh axes {' x '.join(BATCH_AXES)})"
        )
    small = size * (size // shares.size) * per_pair <= _ELEMENTS_AT_ONCE
    if implementation == "dense" or (implementation == "auto" and small):
        return "dense", shares
    return "swept", Shares() if implementation == "chunked" else shares


def _shares(size: int, example: jax.Array) -> tuple[Shares, bool]:
    """(devices that share the batch, whether they can do so evenly)."""
    ambient = jax.sharding.get_abstract_mesh()
    # No ambient mesh: arrays that came onto a mesh say so in their type.
    mesh = usable_mesh(jax.typeof(example).sharding.mesh if ambient.empty else ambient)
    if mesh is None:
        return Shares(), True
    shared = sharing_axes(mesh, size)
    if shared is None:
        return Shares(), False
    count = math.prod(mesh.shape[name] for name in shared)
    # Other axes hold copies of the batch: rather than all doing the same, they share it too.
    for name, more in mesh.shape.items():
        if name not in shared and size % (count * more) == 0:
            shared, count = (*shared, name), count * more
    return (Shares(mesh, shared, count) if count > 1 else Shares()), True


def pair_loss(
    table: Table,
    params: Any,
    rows: jax.Array,
    columns: jax.Array,
    *,
    group: jax.Array | None,
    mask: jax.Array | None = None,
    shares: Shares,
) -> jax.Array:
    """The rule of `table` over all pairs of rows and columns, divided by their number.

    Differentiable once, in reverse, by params, rows and columns.

    Args:
      table: how to compute logits and what to make of them; its tile shape is for one share.
      params: what the logits depend on besides; every device has all of it.
      rows, columns: f[B, ...]; row i and column i are one pair.
      group: i32[B]; pairs off the diagonal with equal group are no negatives.
      mask: bool[B, W], the valid words of the columns.
      shares: the devices of the ring.

    Returns:
      f32[].
    """
    position = jnp.arange(rows.shape[0], dtype=jnp.int32)
    marks = Marks(position, position if group is None else group, mask)
    return _pair_loss(_Plan(table, shares, rows.shape[0]), params, rows, columns, marks)


@dataclasses.dataclass(frozen=True)
class _Plan:
    table: Table
    shares: Shares
    batch: int

    def spread(self, function: Any, inputs: tuple[Any, ...], outputs: Any) -> Any:
        """`function` on every device; True stands for its share of an array, False for all."""
        if self.shares.size == 1:
            return function
        spec = {True: P(self.shares.axes), False: P()}
        return jax.shard_map(
            function,
            mesh=self.shares.mesh,
            in_specs=jax.tree.map(spec.get, inputs),
            out_specs=jax.tree.map(spec.get, outputs),
            check_vma=False,
        )

    def sum(self, tree: Any) -> Any:
        """Over all devices."""
        return jax.lax.psum(tree, self.shares.axes) if self.shares.size > 1 else tree

    def pass_on(self, tree: Any) -> Any:
        """Every device's arrays to the next device of the ring."""
        size, axes = self.shares.size, self.shares.axes
        if size == 1:
            return tree
        hop = [(number, (number + 1) % size) for number in range(size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, hop), tree)

    def go_round(self, turn: Any, start: Any) -> Any:
        """turn(carry) as often as there are devices."""
        if self.shares.size == 1:
            return turn(start)
        return jax.lax.fori_loop(0, self.shares.size, lambda _, carry: turn(carry), start)

    def by_length(self, columns: jax.Array, marks: Marks) -> tuple[jax.Array, Marks, Any]:
        """Columns in order of their number of words, so that tiles can be cut; and that order."""
        if len(self.table.widths) < 2 or marks.mask is None:
            return columns, marks, None
        order = jnp.argsort(tiles.lengths(marks.mask))
        columns, marks = jax.tree.map(lambda x: x[order], (columns, marks))
        return columns, marks, order


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair_loss(
    plan: _Plan, params: Any, rows: jax.Array, columns: jax.Array, marks: Marks
) -> jax.Array:
    return _forward(plan, params, rows, columns, marks)[0]


def _forward(
    plan: _Plan, params: Any, rows: jax.Array, columns: jax.Array, marks: Marks
) -> tuple[jax.Array, Any]:
    def share(params: Any, rows: jax.Array, columns: jax.Array, marks: Marks) -> Any:
        row_marks = marks._replace(mask=None)
        columns, marks, _ = plan.by_length(columns, marks)

        def turn(carry: Any) -> Any:
            columns, marks, of_rows, of_columns = carry
            # Nothing here waits for the sweep, so these may travel during it.
            following = plan.pass_on((columns, marks))
            images, texts = Side(rows, row_marks, of_rows), Side(columns, marks, of_columns)
            of_rows, of_columns = tiles.sweep(plan.table, params, images, texts)
            return *following, of_rows, plan.pass_on(of_columns)

        stats = plan.table.rule.start(rows.shape[0], columns.shape[0])
        stats = plan.go_round(turn, (columns, marks, *stats))[2:]
        return plan.sum(plan.table.rule.total(*stats)) / plan.batch, stats

    spread = plan.spread(share, (False, True, True, True), (False, True))
    value, stats = spread(params, rows, columns, marks)
    return value, (params, rows, columns, marks, stats)


def _backward(plan: _Plan, saved: Any, slope: jax.Array) -> tuple[Any, ...]:
    def share(
        slope: jax.Array,
        params: Any,
        rows: jax.Array,
        columns: jax.Array,
        marks: Marks,
        stats: tuple[Stats, Stats],
    ) -> tuple[Any, ...]:
        images = Side(rows, marks._replace(mask=None), stats[0])
        columns, marks, order = plan.by_length(columns, marks)
        scale = slope / plan.batch

        def turn(carry: Any) -> Any:
            texts, sums = carry
            following = plan.pass_on(texts)
            sums = tiles.sweep_back(plan.table, params, images, texts, scale, sums)
            return following, sums._replace(columns=plan.pass_on(sums.columns))

        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (params, rows, columns))
        _, sums = plan.go_round(turn, (Side(columns, marks, stats[1]), Gradients(*zero)))
        by_columns = sums.columns
        if order is not None:
            by_columns = jnp.zeros_like(by_columns).at[order].set(by_columns, unique_indices=True)
        by_params = jax.tree.map(lambda g, p: plan.sum(g).astype(p.dtype), sums.params, params)
        return by_params, sums.rows.astype(rows.dtype), by_columns.astype(columns.dtype)

    inputs = (False, False, True, True, True, True)
    gradients = plan.spread(share, inputs, (False, True, True))(slope, *saved)
    return *gradients, None


_pair_loss.defvjp(_forward, _backward)
