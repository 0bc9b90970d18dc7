"""Losses over all image-text pairs, computed one tile of the logit matrix at a time.

A contrastive loss of B images and B texts depends on a B x B matrix of logits: one row per image,
one column per text. Only one tile of this matrix exists at a time.

  Forward pass: each tile updates statistics of its rows and columns, such as a running log-sum-exp
    (Rabe and Staats 2021, "Self-attention does not need O(n^2) memory"; Dao et al. 2022,
    "FlashAttention").
  Backward pass: each tile is computed again. The final statistics give the gradient of the loss
    with respect to its logits, which is propagated to the features before the next tile.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

# Default size of a tile: its largest arrays have this many float32 elements (16 MiB). The backward
# pass holds about six such arrays at a time.
TILE_ELEMENTS = 2**22

Statistics = tuple[jax.Array, ...]
Carry = TypeVar("Carry")


class Metadata(NamedTuple):
    """Attributes of rows or columns that are not differentiated.

    Attributes:
      position: i32[N], index of the pair in the global batch. A row and a column with the same
        position are a positive pair.
      group: i32[N], duplicate group. A row and a column of the same group are not negatives.
      mask: bool[N, W], valid words of each column; None for rows and for columns without words.
      present: bool[N], rows or columns that enter the loss; None for all.
    """

    position: jax.Array
    group: jax.Array
    mask: jax.Array | None = None
    present: jax.Array | None = None


class Block(NamedTuple):
    """Rows or columns that one device holds: features [N, ...], metadata and statistics."""

    features: jax.Array
    metadata: Metadata
    statistics: Statistics


class Tile(NamedTuple):
    """A tile of the logit matrix.

    Attributes:
      logits: f32[b, c].
      positive: bool[b, c], True where image and text belong to the same pair.
      included: bool[b, c], True where the pair enters the loss, as a positive or a negative.
    """

    logits: jax.Array
    positive: jax.Array
    included: jax.Array


class PairwiseLoss(Protocol):
    """A loss that is a sum over the rows and columns of the logit matrix."""

    def initial(self, rows: Metadata, columns: Metadata) -> tuple[Statistics, Statistics]:
        """Statistics of rows and columns before the first tile."""

    def update(
        self, tile: Tile, rows: Statistics, columns: Statistics
    ) -> tuple[Statistics, Statistics]:
        """Statistics of rows and columns that include one more tile."""

    def total(self, rows: Statistics, columns: Statistics) -> jax.Array:
        """Sum of the loss over its rows, from the final statistics; f32[]."""

    def gradient(self, tile: Tile, rows: Statistics, columns: Statistics) -> jax.Array:
        """Gradient of `total` with respect to the logits of a tile, f32[b, c]."""


class TwoWayCrossEntropy:
    """`base.two_way_cross_entropy`. Statistics: log-sum-exp and logit of the positive pair."""

    def initial(self, rows: Metadata, columns: Metadata) -> tuple[Statistics, Statistics]:
        """log 0, and 0 for the positive logit.

        Rows and columns that are not present start from log 1. No tile adds to them, so they
        contribute 0 to the total, and the gradients of their logits are finite.
        """

        def start(metadata: Metadata) -> Statistics:
            size = metadata.position.shape[0]
            log_sum = jnp.full(size, -jnp.inf, jnp.float32)
            if metadata.present is not None:
                log_sum = jnp.where(metadata.present, log_sum, 0.0)
            return log_sum, jnp.zeros(size, jnp.float32)

        return start(rows), start(columns)

    def update(
        self, tile: Tile, rows: Statistics, columns: Statistics
    ) -> tuple[Statistics, Statistics]:
        """Adds the included logits to the log-sum-exp of their rows and columns."""
        included = jnp.where(tile.included, tile.logits, -jnp.inf)
        positive = jnp.where(tile.positive, tile.logits, 0.0)
        row, column = (
            (
                jnp.logaddexp(statistics[0], jax.nn.logsumexp(included, axis=axis)),
                statistics[1] + positive.sum(axis=axis),
            )
            for statistics, axis in ((rows, 1), (columns, 0))
        )
        return row, column

    def total(self, rows: Statistics, columns: Statistics) -> jax.Array:
        """Half the sum of the cross-entropies of all rows and columns."""
        return 0.5 * (jnp.sum(rows[0] - rows[1]) + jnp.sum(columns[0] - columns[1]))

    def gradient(self, tile: Tile, rows: Statistics, columns: Statistics) -> jax.Array:
        """Half the sum of the two softmaxes, minus 1 for the positive pair."""
        included = jnp.where(tile.included, tile.logits, -jnp.inf)
        softmaxes = jnp.exp(included - rows[0][:, None]) + jnp.exp(included - columns[0][None])
        return 0.5 * softmaxes - tile.positive.astype(jnp.float32)


class SigmoidLoss:
    """Sum of -log sigmoid(+-logit) over all included pairs. Statistics: the sum of each row."""

    def initial(self, rows: Metadata, columns: Metadata) -> tuple[Statistics, Statistics]:
        """Sums of 0 for the rows; columns have no statistics."""
        return (jnp.zeros(rows.position.shape[0], jnp.float32),), ()

    def update(
        self, tile: Tile, rows: Statistics, columns: Statistics
    ) -> tuple[Statistics, Statistics]:
        """Adds the included pairs to the sums of their rows."""
        signed = jnp.where(tile.positive, tile.logits, -tile.logits)
        losses = jnp.where(tile.included, -jax.nn.log_sigmoid(signed), 0.0)
        return (rows[0] + losses.sum(axis=1),), columns

    def total(self, rows: Statistics, columns: Statistics) -> jax.Array:
        """The sum over all rows."""
        return rows[0].sum()

    def gradient(self, tile: Tile, rows: Statistics, columns: Statistics) -> jax.Array:
        """sigmoid(logit), minus 1 for the positive pair."""
        gradient = jax.nn.sigmoid(tile.logits) - tile.positive.astype(jnp.float32)
        return jnp.where(tile.included, gradient, 0.0)


@dataclasses.dataclass(frozen=True)
class TiledLoss:
    """A loss together with the logits that it is computed from.

    Attributes:
      logits: (params, prepared rows, columns f32[c, ...], mask bool[c, W] or None) -> f32[b, c].
      loss: the loss of the logits.
      tile_shape: rows and columns of a tile.
      prepare: rows f32[b, ...] -> the prepared rows that `logits` takes. It is applied once to
        each chunk of rows, for all tiles in it.
      widths: ascending numbers of words. The columns of a tile are cut to the smallest width that
        holds all their valid words. Empty for columns without words.
    """

    logits: Callable[[Any, Any, jax.Array, jax.Array | None], jax.Array]
    loss: PairwiseLoss
    tile_shape: tuple[int, int]
    prepare: Callable[[jax.Array], Any] = lambda rows: rows
    widths: tuple[int, ...] = ()

    def logits_by_width(self) -> list[Callable[..., jax.Array]]:
        """One version of `logits` for each width; `logits` itself if there are no widths."""

        def cut_to(width: int) -> Callable[..., jax.Array]:
            def logits(params: Any, rows: Any, columns: jax.Array, mask: jax.Array) -> jax.Array:
                return self.logits(params, rows, columns[:, :width], mask[:, :width])

            return logits

        return [cut_to(width) for width in self.widths] or [self.logits]

    def width_index(self, mask: jax.Array | None) -> Any:
        """Index into `widths` for columns with the word mask bool[c, W]."""
        if mask is None or len(self.widths) < 2:
            return 0
        return jnp.sum(lengths(mask).max() > jnp.array(self.widths[:-1]), dtype=jnp.int32)


def tile_shape(rows: int, columns: int, per_pair: int, chunk_size: int = 0) -> tuple[int, int]:
    """Rows and columns of a tile.

    Args:
      rows, columns: size of the matrix that is divided into tiles.
      per_pair: elements per pair in the largest arrays of a tile.
      chunk_size: maximum of both numbers; 0 derives them from TILE_ELEMENTS.
    """
    pairs = chunk_size**2 or max(1, TILE_ELEMENTS // per_pair)
    short = min(rows, columns, math.isqrt(pairs))
    long = chunk_size or pairs // short
    most_rows, most_columns = (short, long) if rows <= columns else (long, short)
    # Chunks of equal size, so that the last one overlaps the one before it as little as possible.
    return (
        -(-rows // _num_chunks(rows, most_rows)),
        -(-columns // _num_chunks(columns, most_columns)),
    )


def lengths(mask: jax.Array) -> jax.Array:
    """bool[N, W] -> i32[N]: the number of words up to and including the last valid one."""
    word_count = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(mask, word_count, 0), axis=1)


def accumulate_statistics(
    tiled: TiledLoss, params: Any, rows: Block, columns: Block
) -> tuple[Statistics, Statistics]:
    """Forward pass over all tiles of rows x columns.

    Returns:
      The statistics of rows and columns, updated with all tiles.
    """
    logits_by_width = tiled.logits_by_width()
    num_rows, num_columns = rows.features.shape[0], columns.features.shape[0]

    def row_step(
        index: Any, statistics: tuple[Statistics, Statistics]
    ) -> tuple[Statistics, Statistics]:
        row_chunk = _Chunk.at(index, num_rows, tiled.tile_shape[0])
        prepared = tiled.prepare(_float32(row_chunk.take(rows.features)))
        row_metadata = row_chunk.take(rows.metadata)

        def column_step(
            index: Any, statistics: tuple[Statistics, Statistics]
        ) -> tuple[Statistics, Statistics]:
            row_statistics, all_column_statistics = statistics
            column_chunk = _Chunk.at(index, num_columns, tiled.tile_shape[1])
            features, metadata = column_chunk.take((columns.features, columns.metadata))
            logits = jax.lax.switch(
                tiled.width_index(metadata.mask),
                logits_by_width,
                params,
                prepared,
                _float32(features),
                metadata.mask,
            )
            tile = Tile(logits, *_pair_masks(row_chunk, row_metadata, column_chunk, metadata))
            row_statistics, column_statistics = tiled.loss.update(
                tile, row_statistics, column_chunk.take(all_column_statistics)
            )
            return row_statistics, column_chunk.write(all_column_statistics, column_statistics)

        count = _num_chunks(num_columns, tiled.tile_shape[1])
        row_statistics, column_statistics = _loop(
            count, column_step, (row_chunk.take(statistics[0]), statistics[1])
        )
        return row_chunk.write(statistics[0], row_statistics), column_statistics

    count = _num_chunks(num_rows, tiled.tile_shape[0])
    return _loop(count, row_step, (rows.statistics, columns.statistics))


class Gradients(NamedTuple):
    """Sums of gradients in float32, with the shapes of parameters, rows and columns."""

    params: Any
    rows: jax.Array
    columns: jax.Array


def accumulate_gradients(
    tiled: TiledLoss,
    params: Any,
    rows: Block,
    columns: Block,
    scale: jax.Array,
    gradients: Gradients,
) -> Gradients:
    """Backward pass over all tiles of rows x columns.

    Args:
      rows, columns: with their final statistics.
      scale: f32[], factor of the gradients of `tiled.loss.total`.
      gradients: the sums so far.

    Returns:
      The sums, with the gradients of all tiles added.
    """

    def gradient_of(logits_of: Callable[..., jax.Array]) -> Callable[..., Any]:
        def gradient(
            prepared: Any,
            features: jax.Array,
            mask: Any,
            positive: Any,
            included: Any,
            *statistics: Statistics,
        ) -> Any:
            logits, vjp = jax.vjp(
                lambda p, r, c: logits_of(p, r, c, mask), params, prepared, features
            )
            tile = Tile(logits, positive, included)
            return vjp(scale * tiled.loss.gradient(tile, *statistics))

        return gradient

    gradient_by_width = [gradient_of(logits_of) for logits_of in tiled.logits_by_width()]
    num_rows, num_columns = rows.features.shape[0], columns.features.shape[0]

    def row_step(index: Any, sums: Gradients) -> Gradients:
        row_chunk = _Chunk.at(index, num_rows, tiled.tile_shape[0])
        row_features, row_metadata, row_statistics = row_chunk.take(rows)
        prepared, prepare_vjp = jax.vjp(tiled.prepare, _float32(row_features))

        def column_step(index: Any, sums: Any) -> Any:
            column_chunk = _Chunk.at(index, num_columns, tiled.tile_shape[1])
            features, metadata, column_statistics = column_chunk.take(columns)
            pair_masks = _pair_masks(row_chunk, row_metadata, column_chunk, metadata)
            of_params, of_prepared, of_columns = jax.lax.switch(
                tiled.width_index(metadata.mask),
                gradient_by_width,
                prepared,
                _float32(features),
                metadata.mask,
                *pair_masks,
                row_statistics,
                column_statistics,
            )
            params_and_prepared = jax.tree.map(jnp.add, sums[:2], (of_params, of_prepared))
            return *params_and_prepared, column_chunk.add(sums[2], of_columns)

        start = (sums.params, jax.tree.map(jnp.zeros_like, prepared), sums.columns)
        count = _num_chunks(num_columns, tiled.tile_shape[1])
        of_params, of_prepared, of_columns = _loop(count, column_step, start)
        (of_rows,) = prepare_vjp(of_prepared)
        return Gradients(of_params, row_chunk.add(sums.rows, of_rows), of_columns)

    return _loop(_num_chunks(num_rows, tiled.tile_shape[0]), row_step, gradients)


class _Chunk(NamedTuple):
    """A chunk of the rows or columns of a block, all chunks being of the same length.

    The last chunk may overlap the one before it. `new` is False for the elements that both share,
    so that no pair is counted twice.
    """

    start: Any
    length: int
    new: jax.Array

    @classmethod
    def at(cls, index: Any, size: int, length: int) -> "_Chunk":
        """Chunk `index` of an axis of `size`, which is at least `length`."""
        start = jnp.minimum(index * length, size - length)
        new = start + jnp.arange(length) >= index * length
        return cls(start, length, new)

    def take(self, tree: Any) -> Any:
        """The chunk of each array, along its first axis."""
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, self.start, self.length), tree
        )

    def write(self, tree: Any, values: Any) -> Any:
        """Replaces the chunk of each array."""
        return jax.tree.map(
            lambda x, v: jax.lax.dynamic_update_slice_in_dim(x, v, self.start, 0), tree, values
        )

    def add(self, array: jax.Array, values: jax.Array) -> jax.Array:
        """Adds values to the chunk of an array."""
        return self.write(array, self.take(array) + values)


def _pair_masks(
    row_chunk: _Chunk, rows: Metadata, column_chunk: _Chunk, columns: Metadata
) -> tuple[jax.Array, jax.Array]:
    """`Tile.positive` and `Tile.included`.

    Both are False for pairs that an earlier tile has counted, and for pairs that are not present.
    """
    new = row_chunk.new[:, None] & column_chunk.new[None]
    if rows.present is not None and columns.present is not None:
        new &= rows.present[:, None] & columns.present[None]
    positive = new & (rows.position[:, None] == columns.position[None])
    return positive, positive | (new & (rows.group[:, None] != columns.group[None]))


def _float32(x: jax.Array) -> jax.Array:
    """Casts features, so that their gradients are summed in float32 whatever the matmul dtype."""
    return x.astype(jnp.float32)


def _num_chunks(size: int, length: int) -> int:
    return -(-size // length)


def _loop(count: int, body: Callable[[Any, Carry], Carry], start: Carry) -> Carry:
    """body(index, carry) for each index below count, without a loop if count is 1."""
    return body(0, start) if count == 1 else jax.lax.fori_loop(0, count, body, start)
