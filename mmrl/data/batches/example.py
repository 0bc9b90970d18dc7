"""Training examples: a batch made from its positions in the endless sequence of training.

An example depends only on (corpus, config, seed, position). One thread makes a whole batch, one
input after the other.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mmrl.data import counter, stall
from mmrl.data.corpus import Corpus
from mmrl.data.inputs.base import Input, Place, Rows
from mmrl.data.text.tokenizer import Tokenizer

GROUP = "group"


class Make:
    """positions -> rows of a batch: types.Batch with as many rows.

    Args:
      inputs: in the order in which they are made.
      tokenizers: text tower -> its tokenizer.
      example_seed: see `sequence.example_seed`.
      text_seed: of the choice of excerpts, see `Excerpts`.
      batch_size: of the global batch; it converts a position into a step.
      train: whether augmentation and other random choices are on; without them every row is of
        step 0.
      mark: called with each stage before it begins, see `stall.Board.mark`.
    """

    def __init__(
        self,
        corpus: Corpus,
        inputs: Mapping[str, Input],
        tokenizers: Mapping[str, Tokenizer],
        *,
        example_seed: int,
        text_seed: int,
        batch_size: int,
        train: bool = True,
        mark: Callable[[int, int], None] = stall.ignore,
    ) -> None:
        self._readers = {}
        for name, one in inputs.items():
            place = Place(corpus, tokenizers.get(one.tower_name), train, text_seed, mark)
            self._readers[name] = one.open(place), tuple(one.shapes())
        self._groups, self._mark = corpus.groups, mark
        self._seed, self._batch_size, self._train = example_seed, batch_size, train

    def __call__(self, positions: Sequence[int], indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Makes the rows.

        Args:
          positions: n positions in the endless sequence, all of one batch.
          indices: the index in the corpus of the example at each position.
        """
        seeds = counter.bits(np.uint64(self._seed), np.asarray(positions))
        step = positions[0] // self._batch_size if self._train else 0
        rows = Rows(indices, step, seeds)
        batch: dict[str, np.ndarray] = {}
        group = self._groups[np.asarray(indices, np.int64)]
        for name, (reader, arrays) in self._readers.items():
            made = reader(rows, batch)
            if name == "text":  # an excerpt may equal that of another group
                group = made[GROUP]
            batch |= {f"{name}.{array}": made[array] for array in arrays}
        self._mark(stall.IDLE, 0)
        batch[GROUP] = np.asarray(group, np.int32)
        batch["index"] = np.asarray(indices, np.int32)
        return batch
