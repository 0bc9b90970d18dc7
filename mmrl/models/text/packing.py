"""Texts of a step packed into fewer rows, so that almost no arithmetic is spent on padding.

Each group of N texts is laid into rows as long as the longest text may be, several texts behind
one another in a row; a text sees only itself (block-diagonal mask) and counts its positions from
its own beginning. Everything computed for a text is what it would be alone in a padded row.

Decisions, and why:

* Rows, not length buckets. A batch as long as its longest report saves nothing when batches are
  large, and batches of reports of one length would change which negatives meet.
* Planned on the device, from the lengths, within the compiled step. First-fit decreasing takes
  one vector step per possible length, not one per text, so it costs next to nothing, and nobody
  else has to know: neither the loader and its state nor the code that deals micro-batches.
* In groups of a configured number of reports. The plan of a report depends on its group only: not
  on how many devices or processes there are. Whole groups per device need no communication.
* A fixed number of rows per group, and never a lost text. What does not fit spills into further
  rows, computed a few at a time and again in the backward pass, behind a condition that all
  devices share. A second compiled shape chosen by the host would need all processes to agree
  before every step. A budget too small costs time and nothing else.

`python -m benchmarks.packing` tells which budget a corpus needs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

PAD = 0  # The id that replaces whatever stands at a padded position.


class Rows(NamedTuple):
    """Rows of P slots with up to S texts each, as an encoder reads them.

    Attributes:
      tokens: i32[R, P], PAD where there is none.
      position: i32[R, P], of each token in its own text; None: its column.
      mask: bool[R, P], the keys that may be seen, or bool[R, P, P], those that each slot sees.
      query: i32[R, S], the slot whose output stands for the text ("cls" or "eos").
      seen: bool[R, S, P], the slots of each text; none where a seat is empty.
    """

    tokens: jax.Array
    position: jax.Array | None
    mask: jax.Array
    query: jax.Array
    seen: jax.Array


def first_fit_decreasing(lengths: jax.Array, slots: int, seats: int) -> tuple[jax.Array, jax.Array]:
    """Places texts, the longest first, each into the first row that has room for it.

    Texts of equal length keep their order. Since equal texts fill one row after another, all
    texts of one length are placed at once.

    Args:
      lengths: i32[N], 1 to `slots`.
      slots: tokens of a row. seats: most texts of a row.

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


class PackingPlan:
    """A plan for groups of texts: which rows they make, and how to find them again.

    Args:
      tokens: i32[G, N, P], padded at the end. mask: bool[G, N, P].
      seats: most texts of a row.

    Attribute: row i32[G, N], the row of each text in its group.
    """

    def __init__(self, tokens: jax.Array, mask: jax.Array, seats: int) -> None:
        self._tokens, self._mask, self._seats = tokens, mask, seats
        self._slots = tokens.shape[2]
        column = jnp.arange(self._slots, dtype=jnp.int32)
        # A text without tokens takes one slot, so that each has a place.
        self._lengths = jnp.max(jnp.where(mask, column + 1, 1), axis=2)
        self.row, self._start = jax.vmap(
            lambda lengths: first_fit_decreasing(lengths, self._slots, seats)
        )(self._lengths)

    def rows(self, first: jax.Array | int, count: int, *, at_end: bool) -> Rows:
        """Rows first to first + count - 1 of every group, [G * count, P] and so on.

        Args:
          at_end: whether a text's last slot stands for it, not its first.
        """

        def of_group(*group: jax.Array) -> Rows:
            return _rows_of_group(group, first, count, self._seats, at_end)

        plan = (self._tokens, self._mask, self._lengths, self.row, self._start)
        rows = jax.vmap(of_group)(*plan)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def texts(self, x: jax.Array, first: jax.Array | int) -> jax.Array:
        """x [G * R, S, width] of the rows from `first` on -> [G, N, width]; 0 for other texts."""
        same = self.row[:, None] == self.row[:, :, None]
        earlier = same & (self._start[:, None] < self._start[:, :, None])
        seat = jnp.sum(earlier, axis=2, dtype=jnp.int32)
        return self._find(x, first, seat[..., None], jnp.bool_(True))[:, :, 0]

    def tokens_of(self, x: jax.Array, first: jax.Array | int, every: int) -> jax.Array:
        """x [G * R, P, width] -> [G, N / every, P, width], of texts 0, every, 2 * every...

        Zero for texts that are not in the rows from `first` on, and behind a text's end.
        """
        chosen = (slice(None), slice(None, None, every))
        column = jnp.arange(self._slots, dtype=jnp.int32)
        inside = column < self._lengths[chosen][..., None]
        slot = self._start[chosen][..., None] + column
        return self._find(x, first, slot, inside, chosen)

    def _find(
        self,
        x: jax.Array,
        first: jax.Array | int,
        column: jax.Array,
        inside: jax.Array,
        chosen: tuple[slice, ...] = (),
    ) -> jax.Array:
        """x [G * R, Q, width] at the row of each text and at `column` i32[G, N, C]."""
        groups, width = self.row.shape[0], x.shape[2]
        x = x.reshape(groups, -1, x.shape[1], width)
        row = (self.row[chosen] - first)[..., None]
        inside = inside & (row >= 0) & (row < x.shape[1])
        index = jnp.where(inside, row * x.shape[2] + column, 0)
        flat = x.reshape(groups, -1, width)
        found = jax.vmap(lambda values, at: values[at])(flat, index)
        return jnp.where(inside[..., None], found, jnp.zeros_like(found))


def _rows_of_group(
    group: tuple[jax.Array, ...], first: jax.Array | int, count: int, seats: int, at_end: bool
) -> Rows:
    """PackingPlan.rows of one group: tokens i32[N, P], mask bool[N, P], then i32[N] each: length,
    row and start of every text.
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
    # Starts ascend within a row, so a slot belongs to the last seat that starts before it.
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
        # Empty slots see each other, which keeps them finite.
        mask=segment[:, :, None] == segment[:, None, :],
        query=jnp.minimum(right - 1 if at_end else left, slots - 1),
        seen=segment[:, None] == jnp.arange(seats, dtype=jnp.int32)[None, :, None],
    )
