"""The records that a page shows, by row, and their nearest neighbours."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mmrl.data.batches.pipeline import Examples
from mmrl.evaluators.statistics import Subset
from mmrl.index import Hits, Index
from mmrl.training.run import Trained
from mmrl.types import InputError

NAMES = {"image": "image.embedding", "text": "text.embedding"}


class Neighbours(Protocol):
    """Finds the nearest of N rows."""

    def __len__(self) -> int: ...

    def nearest(self, queries: np.ndarray, k: int, which: str) -> Hits:
        """See `Index.nearest`."""


class Run(NamedTuple):
    """Rows that follow each other in a split: `row` on are the examples `position` on."""

    row: int
    split: str
    position: int


class Records:
    """The examples of some splits, by row.

    Args:
      examples: by split.
      runs: by rising row.
      count: N, number of rows.
    """

    def __init__(self, examples: Mapping[str, Examples], runs: Sequence[Run], count: int) -> None:
        self._examples, self._runs, self._count = examples, runs, count
        self._starts = [run.row for run in runs]

    def __len__(self) -> int:
        return self._count

    def place(self, row: int) -> tuple[Examples, int]:
        """The examples that a row belongs to, and its position in them.

        Raises:
          IndexError: no such row.
        """
        if not 0 <= row < self._count:
            raise IndexError(row)
        run = self._runs[bisect.bisect_right(self._starts, row) - 1]
        return self._examples[run.split], run.position + row - run.row

    @classmethod
    def first(cls, examples: Examples, count: int) -> "Records":
        """The first `count` examples of one split."""
        return cls({"": examples}, [Run(0, "", 0)], min(count, len(examples)))

    @classmethod
    def of_index(
        cls, index: Index, digest: str, examples_of: Callable[[str], Examples]
    ) -> "Records":
        """The examples that an index was made of.

        Args:
          digest: of the weights of the encoder.
          examples_of: a split by its name.

        Raises:
          InputError: the index is that of another encoder or of other records.
        """
        if (made_by := index.manifest["checkpoint"]["weights_sha256"]) != digest:
            raise InputError(
                f"--index={index.folder} was made by other weights ({made_by[:12]}); expected "
                f"those of this encoder ({digest[:12]})"
            )
        examples, runs, row = {}, [], 0
        done: dict[str, int] = {}
        for shard in index.manifest["shards"]:
            (split,) = index.values("split", [row])
            if split not in examples:
                examples[split] = examples_of(split)
                _check_same(index, split, examples[split])
            runs.append(Run(row, split, done.get(split, 0)))
            done[split] = done.get(split, 0) + shard["records"]
            row += shard["records"]
        return cls(examples, runs, row)


def _check_same(index: Index, split: str, examples: Examples) -> None:
    made_of = index.manifest["data"][split]
    if made_of["sha256"] != examples.sha256:
        raise InputError(
            f"--index={index.folder} was made of other records of {split} ({made_of['name']}); "
            f"expected those of {examples.name}, which the config of the run names"
        )


class Memory:
    """Embeddings in memory, all of which are compared.

    Args:
      embeddings: "image" and "text" -> f32[N, D], L2-normalised.
    """

    def __init__(self, embeddings: Mapping[str, np.ndarray]) -> None:
        self._embeddings = embeddings

    @classmethod
    def embed(cls, trained: Trained, records: Records) -> "Memory":
        """Embeds the rows of one split."""
        examples, _ = records.place(0)
        subset = Subset(examples, range(len(records)))
        parts = list(trained.predict.stream(trained.state, subset, list(NAMES.values())))
        return cls(
            {which: np.concatenate([p[name] for p in parts]) for which, name in NAMES.items()}
        )

    def __len__(self) -> int:
        return len(self._embeddings["image"])

    def nearest(self, queries: np.ndarray, k: int, which: str) -> Hits:
        """See `Index.nearest`."""
        scores = queries @ self._embeddings[which].T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Hits(np.take_along_axis(scores, rows, axis=1), rows)
