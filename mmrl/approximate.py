"""Indexes of FAISS over exported embeddings: approximate search among many rows.

FOLDER/search.json                      column -> type, recall and digest of the export
FOLDER/COLUMN.faiss                     the index, of inner products of normalised rows
"""

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import extras, files
from mmrl.types import InputError, first_line

STATED = "search.json"
RECALL = 0.95  # what an index is tuned to find of the true neighbours
_TRAINED_ON = 64  # rows for each list that are used to place it


@dataclasses.dataclass(frozen=True)
class Approximate:
    """An index of FAISS over one column.

    Attributes:
      kind: its type, as in `faiss.index_factory`.
      recall: share of the true 10 nearest rows that it found, when it was built.
      index: of faiss.
    """

    kind: str
    recall: float
    index: Any

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores f32[Q, k], rows i64[Q, k]) of queries f32[Q, D]; -1 where there are fewer."""
        scores, rows = self.index.search(np.ascontiguousarray(queries), k)
        return scores, rows.astype(np.int64)


def available() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


def check() -> None:
    """Raises InputError unless FAISS is installed."""
    if not available():
        raise InputError(f"--build needs faiss-cpu: {extras.command('search')}")


def read(
    folder: Path, identity: str, columns: Mapping[str, int]
) -> tuple[dict[str, Approximate], tuple[str, ...]]:
    """Column -> index, of those that were built, and warnings.

    Args:
      identity: digest of the export. columns: of embeddings -> D.

    Raises:
      InputError: an index is damaged or of another export.
    """
    path = folder / STATED
    if not path.is_file():
        return {}, ()
    if not available():
        return {}, (
            f"{folder} has an index of FAISS, but faiss-cpu is not installed: all rows are "
            "compared",
        )
    import faiss

    found = {}
    try:
        for column, given in json.loads(path.read_text(encoding="utf-8")).items():
            if column not in columns or given["export"] != identity:
                raise InputError(
                    f"{folder / column}.faiss was built of another export; build it again with "
                    f"python -m mmrl.search --index={folder} --build"
                )
            index = faiss.read_index(str(folder / f"{column}.faiss"), faiss.IO_FLAG_MMAP)
            found[column] = Approximate(given["type"], given["recall"], index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {first_line(error)}") from None
    return found, ()


def default_kind(count: int) -> str:
    """The type of an index over N rows: lists around 4 sqrt(N) centres; few rows, one after other.

    FAISS asks for 30 to 256 rows for each list (its wiki, "Guidelines to choose an index").
    """
    lists = round(4 * count**0.5)
    return f"IVF{lists},Flat" if count >= _TRAINED_ON * lists else "Flat"


def make(kind: str, width: int, sample: np.ndarray) -> Any:
    """An empty index of inner products, trained on rows f32[n, D] of length 1.

    Raises:
      InputError: FAISS knows no such type, or cannot train it on these rows.
    """
    import faiss

    try:
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(sample)
    except RuntimeError as error:
        reason = str(error).rpartition(": ")[2].splitlines()[0]
        raise InputError(
            f"FAISS cannot make an index {kind!r} of {len(sample)} rows ({reason}); expected a "
            "type of faiss.index_factory, such as Flat, IVF1024,Flat or HNSW32"
        ) from None
    return index if isinstance(index, faiss.IndexIVF) else faiss.IndexIDMap2(index)


def add(index: Any, rows: np.ndarray, numbers: np.ndarray) -> None:
    """Adds rows f32[n, D] under their numbers i64[n]."""
    index.add_with_ids(np.ascontiguousarray(rows, np.float32), numbers)


def tune(index: Any, queries: np.ndarray, nearest: np.ndarray) -> float:
    """Lets an index look at more lists until it finds 95 of 100 of the nearest rows.

    Args:
      queries: f32[Q, D]. nearest: i64[Q, k], the true ones.

    Returns:
      The share that it finds.
    """
    import faiss

    lists = index.nlist if isinstance(index, faiss.IndexIVF) else 1
    looked = 1
    while True:
        if isinstance(index, faiss.IndexIVF):
            index.nprobe = min(looked, lists)
        _, found = index.search(queries, nearest.shape[1])
        pairs = zip(found.tolist(), nearest.tolist(), strict=True)
        recall = sum(len({*one} & {*other}) for one, other in pairs) / nearest.size
        if recall >= RECALL or looked >= lists:
            return recall
        looked *= 2


def write(folder: Path, column: str, index: Any, stated: Mapping[str, Any]) -> None:
    """Writes the index of a column, and then what is stated of it."""
    import faiss

    with files.whole(folder / f"{column}.faiss") as fresh:
        faiss.write_index(index, str(fresh))
    path = folder / STATED
    others = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    files.write_json(path, {**others, column: stated})
