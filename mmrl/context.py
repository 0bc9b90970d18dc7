"""What objectives and derived inputs are told beside the arrays that they read."""

from typing import Any, NamedTuple

import jax


class Context(NamedTuple):
    """What an objective or a derived input is told beside the arrays that it reads.

    Attributes:
      step: i32[], updates done before.
      key: of its own random numbers; None in evaluation.
      present: bool[B], the rows that have every input that it reads, without those that only fill
        up a batch; None: all of them. The other rows are neither row, column nor denominator of a
        loss.
      average: the same objective with averaged weights, where the run keeps them; of a loss that
        declares `averages`, it always is.
    """

    step: jax.Array
    key: jax.Array | None = None
    present: jax.Array | None = None
    average: Any = None

    def row_keys(self, index: jax.Array) -> jax.Array:
        """A key for each row, which does not depend on the other rows of its batch.

        In evaluation the keys depend on the records alone, so that draws repeat.

        Args:
          index: i32[B], the position of each record in its corpus.

        Returns:
          Keys [B].
        """
        key = jax.random.key(0) if self.key is None else self.key
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
