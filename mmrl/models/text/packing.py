"""Packs the texts of a step into fewer rows, so that little arithmetic is spent on padding.

The texts of a group are placed one after another into rows of the maximum text length. A text
attends only to itself (block-diagonal mask), and its positions count from its own beginning. The
result for a text is therefore the same as alone in a padded row.

Design:

* Packing instead of length buckets. Padding a batch to its longest report saves little if batches
  are large, and batches of reports of equal length would change the negatives of each report.
* The plan is computed on the device, in the compiled step, from the lengths of the texts.
  First-fit decreasing needs one vector operation for each possible length, not for each text, so
  its cost is negligible. The data pipeline and the splitting into micro-batches do not depend on
  the plan.
* Texts are packed in groups of a fixed number of reports, so the plan of a report does not depend
  on the number of devices or processes. If each device holds whole groups, packing needs no
  communication.
* Each group has a fixed number of rows, its budget, and no text is dropped. Texts that exceed the
  budget spill into extra rows, which are computed a few at a time and recomputed in the backward
  pass. A `lax.cond` that takes the same branch on all devices skips them if there are none. The
  alternative, a second compiled program that the host chooses, would need all processes to agree
  before every step. A budget that is too small costs time but changes no result.

`python -m benchmarks.packing` measures the budget that a corpus needs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

PAD = 0  # token id at padded positions


class Rows(NamedTuple):
    """Rows of P slots with up to S texts each, the input of an encoder.

    A slot is the place of one token. A seat is the place of one text in its row; rows with fewer
    than S texts have empty seats.

    Attributes:
      tokens: i32[R, P], PAD in empty slots.
      position: i32[R, P], the position of each token in its text; None if it equals the slot.
      mask: attention mask; bool[R, P], the keys that all slots attend to, or bool[R, P, P], those
        of each slot.
      query: i32[R, S], the slot whose output is pooled for the text ("cls" or "eos").
      members: bool[R, S, P], the slots of each text; all False for an empty seat.
    """

    tokens: jax.Array
    position: jax.Array | None
    mask: jax.Array
    query: jax.Array
    members: jax.Array


def first_fit_decreasing(lengths: jax.Array, slots: int, seats: int) -> tuple[jax.Array, jax.Array]:
    """First-fit decreasing: the longest text first, each into the first row that has room for it.

    Texts of equal length keep their order. They fill one row after another, so all texts of one
    length are placed at once.

    Args:
      lengths: i32[N], 1 to `slots`.
      slots: tokens per row. seats: maximum number of texts per row.

    Returns:
      Row i32[N] and first slot i32[N] of every text; rows are below N.
    """
    count = lengths.shape[0]
    sizes = jnp.arange(slots, 0, -1, dtype=jnp.int32)
    of_size = jnp.sum(lengths[None] == sizes[:, None], axis=1, dtype=jnp.int32)

    def place(
        state: tuple[jax.Array, jax.Array], item: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        free, unused = state  # slots and seats of every row
        size, texts = item
        room = jnp.minimum(free // size, unused)
        before = jnp.cumsum(room, dtype=jnp.int32) - room
        placed = jnp.clip(texts - before, 0, room)
        left = (free - placed * size, unused - placed)
        return left, (before + room, slots - free - before * size)

    empty = jnp.full(count, slots, jnp.int32), jnp.full(count, seats, jnp.int32)
    _, (filled, offset) = jax.lax.scan(place, empty, (sizes, of_size))
    index = jnp.arange(count, dtype=jnp.int32)
    earlier = (lengths[None] == lengths[:, None]) & (index[None] < index[:, None])
    rank = jnp.sum(earlier, axis=1, dtype=jnp.int32)  # among the texts of its length
    which = slots - lengths
    row = jnp.sum(filled[which] <= rank[:, None], axis=1, dtype=jnp.int32)
    return row, offset[which, row] + rank * lengths


def take_texts(x: jax.Array, chosen: Sequence[int], axis: int = 1) -> jax.Array:
    """x [B, C, ...] -> [B, len(chosen), ...], by slices, which no mesh has to exchange."""
    return jnp.concatenate([jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in chosen], axis)


class PackingPlan:
    """Assigns the texts of each group to rows, and maps the outputs of rows back to texts.

    Args:
      tokens: i32[G, N, P], padded at the end. mask: bool[G, N, P].
      seats: maximum number of texts per row.

    Attributes:
      row: i32[G, N], the row of each text within its group.
    """

    def __init__(self, tokens: jax.Array, mask: jax.Array, seats: int) -> None:
        self._tokens, self._mask, self._seats = tokens, mask, seats
        self._slots = tokens.shape[2]
        column = jnp.arange(self._slots, dtype=jnp.int32)
        # A text without tokens takes one slot.
        self._lengths = jnp.max(jnp.where(mask, column + 1, 1), axis=2)
        self.row, self._start = jax.vmap(
            lambda lengths: first_fit_decreasing(lengths, self._slots, seats)
        )(self._lengths)

    def rows(self, first: jax.Array | int, count: int, *, at_end: bool) -> Rows:
        """Rows `first` to `first + count - 1` of every group, with a leading axis of G * count.

        Args:
          at_end: whether `query` is the last slot of each text instead of the first.
        """

        def of_group(*group: jax.Array) -> Rows:
            return _rows_of_group(group, first, count, self._seats, at_end)

        plan = (self._tokens, self._mask, self._lengths, self.row, self._start)
        rows = jax.vmap(of_group)(*plan)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def texts(self, x: jax.Array, first: jax.Array | int) -> jax.Array:
        """Maps outputs per seat to texts: x [G * R, S, width] -> [G, N, width].

        x belongs to the rows from `first` on. Texts in other rows get 0.
        """
        same = self.row[:, None] == self.row[:, :, None]
        earlier = same & (self._start[:, None] < self._start[:, :, None])
        seat = jnp.sum(earlier, axis=2, dtype=jnp.int32)
        return self._find(x, first, self.row, seat[..., None], jnp.bool_(True))[:, :, 0]

    def tokens_of(
        self, x: jax.Array, first: jax.Array | int, count: int, chosen: Sequence[int]
    ) -> jax.Array:
        """Maps outputs per slot to the `chosen` of each `count` neighbouring texts.

        x [G * R, P, width] -> [G, N / count * len(chosen), P, width]. x belongs to the rows from
        `first` on. Texts in other rows get 0, and so do positions after the end of a text.
        """

        def of_texts(values: jax.Array) -> jax.Array:
            taken = take_texts(values.reshape(len(values), -1, count), chosen, axis=2)
            return taken.reshape(len(values), -1)

        lengths, start, row = map(of_texts, (self._lengths, self._start, self.row))
        column = jnp.arange(self._slots, dtype=jnp.int32)
        inside = column < lengths[..., None]
        return self._find(x, first, row, start[..., None] + column, inside)

    @staticmethod
    def _find(
        x: jax.Array,
        first: jax.Array | int,
        row: jax.Array,
        column: jax.Array,
        inside: jax.Array,
    ) -> jax.Array:
        """x [G * R, Q, width] at `row` i32[G, N] and `column` i32[G, N, C]; 0 where not inside."""
        groups, width = row.shape[0], x.shape[2]
        x = x.reshape(groups, -1, x.shape[1], width)
        row = (row - first)[..., None]
        inside = inside & (row >= 0) & (row < x.shape[1])
        index = jnp.where(inside, row * x.shape[2] + column, 0)
        flat = x.reshape(groups, -1, width)
        found = jax.vmap(lambda values, at: values[at])(flat, index)
        return jnp.where(inside[..., None], found, jnp.zeros_like(found))


def _rows_of_group(
    group: tuple[jax.Array, ...], first: jax.Array | int, count: int, seats: int, at_end: bool
) -> Rows:
    """`PackingPlan.rows` for one group.

    Args:
      group: tokens i32[N, P], mask bool[N, P], and length, row and start, i32[N] each.
    """
    tokens, mask, lengths, row, start = group
    texts, slots = tokens.shape
    order = jnp.argsort(row * slots + start)
    bounds = first + jnp.arange(count + 1, dtype=jnp.int32)
    begin = jnp.sum(row[None] < bounds[:, None], axis=1, dtype=jnp.int32)
    rank = begin[:-1, None] + jnp.arange(seats, dtype=jnp.int32)[None]  # R S
    taken = rank < begin[1:, None]
    text = order[jnp.minimum(rank, texts - 1)]
    left = jnp.where(taken, start[text], slots)
    right = left + jnp.where(taken, lengths[text], 0)
    slot = jnp.arange(slots, dtype=jnp.int32)[None]
    # Starts ascend within a row, so a slot belongs to the last seat that starts at or before it.
    seat = jnp.sum(left[:, None] <= slot[..., None], axis=2, dtype=jnp.int32) - 1  # R P
    seat = jnp.maximum(seat, 0)
    offset = slot - jnp.take_along_axis(left, seat, axis=1)
    inside = (offset >= 0) & (slot < jnp.take_along_axis(right, seat, axis=1))
    position = jnp.where(inside, offset, 0)
    source = jnp.take_along_axis(text, seat, axis=1), position
    inside &= mask[source]
    segment = jnp.where(inside, seat, -1)
    return Rows(
        tokens=jnp.where(inside, tokens[source], PAD),
        position=position,
        # Empty slots attend to each other, which keeps their outputs finite.
        mask=segment[:, :, None] == segment[:, None, :],
        query=jnp.minimum(right - 1 if at_end else left, slots - 1),
        members=segment[:, None] == jnp.arange(seats, dtype=jnp.int32)[None, :, None],
    )
