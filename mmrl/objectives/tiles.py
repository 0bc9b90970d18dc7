"""The table of all image-text pairs of a share of the batch, one tile at a time.

A contrast of B images with B texts reads a table of logits with a row per image and a column per
text. Only a tile of it exists at once: the forward sweep folds each tile into statistics of its
rows and columns (running log-sum-exp, as in Rabe and Staats 2021 and in FlashAttention, Dao et
al. 2022), and the backward sweep computes each tile again, turns it into the slope of the loss
with the help of the finished statistics, and pulls that slope back at once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

# Unless told otherwise, a tile is sized so that its largest arrays have this many float32
# numbers, 16 MiB; about six of them exist at once in the backward sweep.
TILE_ELEMENTS = 2**22

Stats = tuple[jax.Array, ...]
Carry = TypeVar("Carry")


class Marks(NamedTuple):
    """What rows and columns carry besides their features; nothing is differentiated here.

    Attributes:
      position: i32[N], of the pair in the global batch; equal for an image and its own text.
      group: i32[N]; pairs of equal group are no negatives of each other.
      mask: bool[N, W], the valid words of a column; None for rows, and where there are no words.
    """

    position: jax.Array
    group: jax.Array
    mask: jax.Array | None = None


class Side(NamedTuple):
    """All rows, or all columns, of a table that is swept: features, marks, statistics so far."""

    features: jax.Array
    marks: Marks
    stats: Stats


class Tile(NamedTuple):
    """Logits f32[b, c] of some rows and columns, and how they relate, bool[b, c].

    `same`: image and text of one pair. `kept`: these and the negatives.
    """

    logits: jax.Array
    same: jax.Array
    kept: jax.Array


class Rule(Protocol):
    """A loss that sums over rows and columns of the table."""

    def start(self, rows: int, columns: int) -> tuple[Stats, Stats]:
        """Statistics of rows and of columns before any tile was seen."""

    def fold(self, tile: Tile, rows: Stats, columns: Stats) -> tuple[Stats, Stats]:
        """The statistics with one more tile in them."""

    def total(self, rows: Stats, columns: Stats) -> jax.Array:
        """B times the loss, from the statistics after all tiles; f32[]."""

    def slope(self, tile: Tile, rows: Stats, columns: Stats) -> jax.Array:
        """Derivative of B times the loss by the logits of a tile, f32[b, c]."""


class TwoWay:
    """`base.two_way_cross_entropy`: statistics are (log-sum-exp, logit of the own pair)."""

    def start(self, rows: int, columns: int) -> tuple[Stats, Stats]:
        """Nothing seen: log 0, and no own pair yet."""
        row, column = (
            (jnp.full(size, -jnp.inf, jnp.float32), jnp.zeros(size, jnp.float32))
            for size in (rows, columns)
        )
        return row, column

    def fold(self, tile: Tile, rows: Stats, columns: Stats) -> tuple[Stats, Stats]:
        """log(exp(old) + sum of exp(kept logits)) along both axes."""
        kept = jnp.where(tile.kept, tile.logits, -jnp.inf)
        own = jnp.where(tile.same, tile.logits, 0.0)
        row, column = (
            (
                jnp.logaddexp(stats[0], jax.nn.logsumexp(kept, axis=axis)),
                stats[1] + own.sum(axis=axis),
            )
            for stats, axis in ((rows, 1), (columns, 0))
        )
        return row, column

    def total(self, rows: Stats, columns: Stats) -> jax.Array:
        """Half the cross-entropies of all rows and columns."""
        return 0.5 * (jnp.sum(rows[0] - rows[1]) + jnp.sum(columns[0] - columns[1]))

    def slope(self, tile: Tile, rows: Stats, columns: Stats) -> jax.Array:
        """Half of both softmaxes, less one for the own pair."""
        kept = jnp.where(tile.kept, tile.logits, -jnp.inf)
        softmaxes = jnp.exp(kept - rows[0][:, None]) + jnp.exp(kept - columns[0][None])
        return 0.5 * softmaxes - tile.same.astype(jnp.float32)


class Sigmoid:
    """The sum of -log sigmoid(+-logit): rows keep their part of it, columns nothing."""

    def start(self, rows: int, columns: int) -> tuple[Stats, Stats]:
        """Sums begin at 0."""
        return (jnp.zeros(rows, jnp.float32),), ()

    def fold(self, tile: Tile, rows: Stats, columns: Stats) -> tuple[Stats, Stats]:
        """Adds the kept pairs of each row."""
        signed = jnp.where(tile.same, tile.logits, -tile.logits)
        losses = jnp.where(tile.kept, -jax.nn.log_sigmoid(signed), 0.0)
        return (rows[0] + losses.sum(axis=1),), columns

    def total(self, rows: Stats, columns: Stats) -> jax.Array:
        """Over all rows."""
        return rows[0].sum()

    def slope(self, tile: Tile, rows: Stats, columns: Stats) -> jax.Array:
        """sigmoid(logit), less one for the own pair."""
        slope = jax.nn.sigmoid(tile.logits) - tile.same.astype(jnp.float32)
        return jnp.where(tile.kept, slope, 0.0)


@dataclasses.dataclass(frozen=True)
class Table:
    """How to compute and to judge the logits of any rows and columns.

    Attributes:
      logits: (params, prepared rows, columns f32[c, ...], mask bool[c, W] or None) -> f32[b, c].
      rule: the loss.
      shape: rows and columns of a tile.
      prepare: rows f32[b, ...] -> what `logits` takes for them; runs once per row of tiles.
      widths: ascending; columns of a tile are cut to the narrowest of these numbers of words that
        holds all their valid words. Empty: columns have no words.
    """

    logits: Callable[[Any, Any, jax.Array, jax.Array | None], jax.Array]
    rule: Rule
    shape: tuple[int, int]
    prepare: Callable[[jax.Array], Any] = lambda rows: rows
    widths: tuple[int, ...] = ()

    def at_each_width(self) -> list[Callable[..., jax.Array]]:
        """`logits` for each of the widths, or as it is."""

        def cut_to(width: int) -> Callable[..., jax.Array]:
            def logits(params: Any, rows: Any, columns: jax.Array, mask: jax.Array) -> jax.Array:
                return self.logits(params, rows, columns[:, :width], mask[:, :width])

            return logits

        return [cut_to(width) for width in self.widths] or [self.logits]

    def width_of(self, mask: jax.Array | None) -> Any:
        """Index into `widths` for columns with these words."""
        if mask is None or len(self.widths) < 2:
            return 0
        return jnp.sum(lengths(mask).max() > jnp.array(self.widths[:-1]), dtype=jnp.int32)


def tile_shape(rows: int, columns: int, per_pair: int, chunk_size: int = 0) -> tuple[int, int]:
    """Rows and columns of a tile.

    Args:
      rows, columns: of the table.
      per_pair: numbers that a pair keeps in the largest arrays of its tile.
      chunk_size: at most so many rows and columns; 0: what TILE_ELEMENTS allows.
    """
    pairs = chunk_size**2 or max(1, TILE_ELEMENTS // per_pair)
    narrow = min(rows, columns, math.isqrt(pairs))
    wide = chunk_size or pairs // narrow
    first, second = (narrow, wide) if rows <= columns else (wide, narrow)
    # Even chunks: the last one is filled up with rows that were seen before.
    return -(-rows // _count(rows, first)), -(-columns // _count(columns, second))


def lengths(mask: jax.Array) -> jax.Array:
    """bool[N, W] -> i32[N]: the number of words up to and including the last valid one."""
    upto = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(mask, upto, 0), axis=1)


def sweep(table: Table, params: Any, rows: Side, columns: Side) -> tuple[Stats, Stats]:
    """Folds all tiles of rows x columns into the statistics of both."""
    forms = table.at_each_width()
    size, across_size = rows.features.shape[0], columns.features.shape[0]

    def on_rows(number: Any, stats: tuple[Stats, Stats]) -> tuple[Stats, Stats]:
        place = _Window.of(number, size, table.shape[0])
        prepared = table.prepare(_wide(place.cut(rows.features)))
        marks = place.cut(rows.marks)

        def on_columns(number: Any, inner: tuple[Stats, Stats]) -> tuple[Stats, Stats]:
            of_rows, of_columns = inner
            there = _Window.of(number, across_size, table.shape[1])
            part, across = there.cut((columns.features, columns.marks))
            mask = across.mask
            logits = jax.lax.switch(
                table.width_of(mask), forms, params, prepared, _wide(part), mask
            )
            tile = Tile(logits, *_relation(place, marks, there, across))
            of_rows, part = table.rule.fold(tile, of_rows, there.cut(of_columns))
            return of_rows, there.put(of_columns, part)

        count = _count(across_size, table.shape[1])
        part, of_columns = _repeat(count, on_columns, (place.cut(stats[0]), stats[1]))
        return place.put(stats[0], part), of_columns

    return _repeat(_count(size, table.shape[0]), on_rows, (rows.stats, columns.stats))


class Gradients(NamedTuple):
    """float32 sums, of the shapes of parameters, rows and columns."""

    params: Any
    rows: jax.Array
    columns: jax.Array


def sweep_back(
    table: Table, params: Any, rows: Side, columns: Side, scale: jax.Array, sums: Gradients
) -> Gradients:
    """Adds `scale` times the gradients of `rule.total` over all tiles of rows x columns."""

    def gradient_of(form: Callable[..., jax.Array]) -> Callable[..., Any]:
        def gradient(
            prepared: Any, part: jax.Array, mask: Any, same: Any, kept: Any, *of: Stats
        ) -> Any:
            logits, back = jax.vjp(lambda p, r, c: form(p, r, c, mask), params, prepared, part)
            return back(scale * table.rule.slope(Tile(logits, same, kept), *of))

        return gradient

    forms = [gradient_of(form) for form in table.at_each_width()]
    size, across_size = rows.features.shape[0], columns.features.shape[0]

    def on_rows(number: Any, sums: Gradients) -> Gradients:
        place = _Window.of(number, size, table.shape[0])
        part, marks, of_rows = place.cut(rows)
        prepared, unprepare = jax.vjp(table.prepare, _wide(part))

        def on_columns(number: Any, inner: Any) -> Any:
            there = _Window.of(number, across_size, table.shape[1])
            part, across, of_columns = there.cut(columns)
            mask, relation = across.mask, _relation(place, marks, there, across)
            of = (of_rows, of_columns)
            by_params, by_rows, by_columns = jax.lax.switch(
                table.width_of(mask), forms, prepared, _wide(part), mask, *relation, *of
            )
            so_far = jax.tree.map(jnp.add, inner[:2], (by_params, by_rows))
            return *so_far, there.add(inner[2], by_columns)

        start = (sums.params, jax.tree.map(jnp.zeros_like, prepared), sums.columns)
        count = _count(across_size, table.shape[1])
        by_params, by_prepared, by_columns = _repeat(count, on_columns, start)
        return Gradients(by_params, place.add(sums.rows, unprepare(by_prepared)[0]), by_columns)

    return _repeat(_count(size, table.shape[0]), on_rows, sums)


class _Window(NamedTuple):
    """Chunk `number` of an axis: the last one moves back to be full, `fresh` marks what is new."""

    start: Any
    length: int
    fresh: jax.Array

    @classmethod
    def of(cls, number: Any, size: int, chunk: int) -> "_Window":
        """The window on an axis of `size`, which is at least `chunk`."""
        start = jnp.minimum(number * chunk, size - chunk)
        fresh = start + jnp.arange(chunk) >= number * chunk
        return cls(start, chunk, fresh)

    def cut(self, tree: Any) -> Any:
        """The window's part of each array, along the first axis."""
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, self.start, self.length), tree
        )

    def put(self, tree: Any, part: Any) -> Any:
        """Overwrites the window."""
        return jax.tree.map(
            lambda x, p: jax.lax.dynamic_update_slice_in_dim(x, p, self.start, 0), tree, part
        )

    def add(self, total: jax.Array, part: jax.Array) -> jax.Array:
        """Adds to the window."""
        return self.put(total, self.cut(total) + part)


def _relation(
    place: _Window, rows: Marks, there: _Window, columns: Marks
) -> tuple[jax.Array, jax.Array]:
    """(same, kept) of a tile, see `Tile`; pairs that an earlier tile has seen are neither."""
    fresh = place.fresh[:, None] & there.fresh[None]
    same = fresh & (rows.position[:, None] == columns.position[None])
    return same, same | (fresh & (rows.group[:, None] != columns.group[None]))


def _wide(x: jax.Array) -> jax.Array:
    """Features as float32: gradients then add up in float32, whatever the matmuls run in."""
    return x.astype(jnp.float32)


def _count(size: int, chunk: int) -> int:
    return -(-size // chunk)


def _repeat(count: int, body: Callable[[Any, Carry], Carry], start: Carry) -> Carry:
    """body(number, carry) for all numbers below count; a loop only where there is one."""
    return body(0, start) if count == 1 else jax.lax.fori_loop(0, count, body, start)
