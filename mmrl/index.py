"""Nearest neighbours among embeddings that `python -m mmrl.export` wrote, read in chunks.

    index = Index.open("embeddings")
    hits = index.nearest(encoder.embed_texts(["Left effusion."]), 10, "image")
    index.ids(hits.rows[0])

Where `python -m mmrl.search --build` has made an index of FAISS, it is used; otherwise all rows are
compared. Scores are cosines. Of equal scores the row that comes first in the export stands first.
"""

import dataclasses
import hashlib
import itertools
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrl import approximate, build
from mmrl.types import InputError

CHUNK = 2**26
"""Bytes of the largest array that a search holds."""

_QUERIES = 1024  # compared with a chunk at a time
_SAMPLE, _ASKED = 2**18, 500  # rows that train an index of FAISS, and that measure its recall


class Hits(NamedTuple):
    """The nearest rows of each query, best first: scores f32[Q, k], rows i64[Q, k].

    Rows are -1, and scores -inf, where fewer than k rows have an embedding.
    """

    scores: np.ndarray
    rows: np.ndarray


def joined(*parts: np.ndarray) -> np.ndarray:
    """Queries of several parts, such as image and text: the mean of embeddings of length 1.

    Args:
      parts: f[Q, D] each; their lengths do not matter.

    Returns:
      f[Q, D].
    """
    return np.mean([x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts], axis=0)


@dataclasses.dataclass(frozen=True)
class Index:
    """The embeddings of an export. Rows count through its shards. Threads may share one.

    Attributes:
      folder: of the export. manifest: what it states.
      columns: column of embeddings -> D.
      found: column -> its index of FAISS, where one was built.
      warnings: what a user should know of how this index is searched.
    """

    folder: Path
    manifest: Mapping[str, Any]
    columns: Mapping[str, int]
    found: Mapping[str, approximate.Approximate]
    warnings: tuple[str, ...]

    @classmethod
    def open(cls, folder: str | Path, *, exact: bool = False) -> "Index":
        """Opens an export.

        Args:
          exact: whether an index of FAISS is left alone.

        Raises:
          InputError: no complete export, a shard is missing, or an index of FAISS was built of
            another export.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        columns = {}
        for name, encoding in manifest["columns"].items():
            if encoding.endswith(".embedding"):
                first = next(_blocks(folder / manifest["shards"][0]["file"], name, 1))
                columns[name] = first.shape[1]
        if not columns:
            given = ", ".join(manifest["columns"].values())
            raise InputError(
                f"{folder} holds {given} and no embedding; expected an export of "
                "image.embedding or text.embedding"
            )
        if exact:
            return cls(folder, manifest, columns, {}, ())
        found, warnings = approximate.read(folder, identity(manifest), columns)
        return cls(folder, manifest, columns, found, warnings)

    def __len__(self) -> int:
        return sum(shard["records"] for shard in self.manifest["shards"])

    def check_weights(self, sha256: str, what: str) -> None:
        """Refuses encoders that did not make the embeddings.

        Args:
          sha256: digest of their weights. what: they are, for the message.

        Raises:
          InputError: says whose weights differ.
        """
        stated = self.manifest["checkpoint"]["weights_sha256"]
        if sha256 != stated:
            raise InputError(
                f"{what} has the weights {sha256[:12]}, and --index={self.folder} was made with "
                f"{stated[:12]}; expected the encoder of the index"
            )

    def check_records(self, split: str, sha256: str, what: str) -> None:
        """Refuses records that are not those that were embedded.

        Args:
          sha256: digest of the examples of a split. what: they are, for the message.

        Raises:
          InputError: the export has no such split, or other records.
        """
        if self.manifest["data"].get(split, {}).get("sha256") != sha256:
            raise InputError(
                f"the records of {what} are not those of --index={self.folder}; expected "
                "--config=FILE, the preset that named the data of the export"
            )

    def column(self, which: str = "") -> str:
        """The column of embeddings of a tower, "image" or "text", or of a full name.

        Args:
          which: "": that of images or, without any, the first.

        Raises:
          InputError: there is none; names those that there are.
        """
        if not which:
            which = "image" if "image_embedding" in self.columns else next(iter(self.columns))
        for name in (which, f"{which}_embedding"):
            if name in self.columns:
                return name
        offered = [name.removesuffix("_embedding") for name in self.columns]
        raise InputError(build.unknown(f"embedding of {self.folder}:", which, offered))

    def how(self, which: str) -> str:
        """How `nearest` searches a column."""
        found = self.found.get(self.column(which))
        return "all rows are compared" if found is None else f"FAISS index {found.kind}"

    def nearest(
        self, queries: np.ndarray, k: int, which: str = "image", *, exact: bool = False
    ) -> Hits:
        """The rows whose embeddings are most similar to each query.

        Args:
          queries: f[Q, D]; their lengths do not matter.
          k: rows per query; at most as many as there are.
          which: see `column`.
          exact: whether all rows are compared even where there is an index of FAISS.

        Raises:
          InputError: no such column, queries of another shape or not finite, or k below 1.
        """
        column = self.column(which)
        unit = self._queries(queries, column)
        if k < 1:
            raise InputError(f"k={k}; expected at least 1")
        k = min(k, len(self))
        if not len(unit):
            return Hits(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        found = None if exact else self.found.get(column)
        if found is None:
            return self._exact(unit, k, column)
        scores, rows = found.search(unit.astype(np.float32), k)
        short = (rows < 0).any(axis=1)
        if short.any():  # the index has looked at fewer than k rows
            scores[short], rows[short] = self._exact(unit[short], k, column)
        order = np.lexsort((rows, -scores), axis=1)
        return Hits(*(np.take_along_axis(part, order, axis=1) for part in (scores, rows)))

    def build(self, which: str = "image", kind: str = "") -> dict[str, Any]:
        """Makes an index of FAISS of a column, which `open` then finds.

        It is held in memory meanwhile. Its recall is measured with rows of another column, such as
        the texts, because queries are seldom of the kind that is searched.

        Args:
          kind: of the index, as of `faiss.index_factory`; "": `approximate.default_kind`.

        Returns:
          What is stated of it: type, recall, number of queries, rows.

        Raises:
          InputError: as of `approximate.make`; no row has an embedding.
        """
        column = self.column(which)
        parts = self.chunks(column)
        numbers = np.concatenate(
            [start + np.flatnonzero(_present(block, start, self.folder)) for start, block in parts]
        )
        if not len(numbers):
            raise InputError(f"{self.folder} has no {column}")
        kind = kind or approximate.default_kind(len(numbers))
        sample = self.vectors(numbers[:: -(-len(numbers) // _SAMPLE)], column)
        index = approximate.make(kind, self.columns[column], _unit(sample).astype(np.float32))
        for start, block in self.chunks(column):
            (there,) = np.nonzero(_present(block, start, self.folder))
            approximate.add(index, _unit(block[there]), start + there)
        other = next((one for one in self.columns if one != column), column)
        asked = self.vectors(numbers[:: -(-len(numbers) // _ASKED)], other)
        asked = asked[np.isfinite(asked).all(axis=1)]
        unit = _unit(asked.astype(np.float64))
        nearest = self._exact(unit, min(10, len(numbers)), column).rows
        stated = {
            "type": kind,
            "rows": len(numbers),
            "recall": approximate.tune(index, unit.astype(np.float32), nearest),
            "queries": len(unit),
            "export": identity(self.manifest),
        }
        approximate.write(self.folder, column, index, stated)
        return stated

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of the records of some rows."""
        return self.values("id", rows)

    def values(self, column: str, rows: Sequence[int] | np.ndarray) -> list[str]:
        """A column of texts, such as "split", of some rows."""
        return [str(value) for value in self._pick(column, rows)]

    def vectors(self, rows: Sequence[int] | np.ndarray, which: str = "image") -> np.ndarray:
        """The embeddings of some rows: f32[n, D]."""
        column = self.column(which)
        picked = self._pick(column, rows)
        return np.stack(picked) if picked else np.zeros((0, self.columns[column]), np.float32)

    def row(self, id: str) -> int:
        """The row of a record.

        Raises:
          InputError: no record has this id.
        """
        for start, ids in self._parts("id", _QUERIES * 64):
            (found,) = np.nonzero(ids == id)
            if len(found):
                return start + int(found[0])
        raise InputError(f"{self.folder} has no record with the id {id!r}")

    def chunks(self, which: str = "image") -> Iterator[tuple[int, np.ndarray]]:
        """(first row, embeddings f32[n, D]) of all rows, of at most CHUNK bytes each.

        Raises:
          InputError: a shard is damaged.
        """
        column = self.column(which)
        # In float64, and beside it the scores of `_QUERIES` queries.
        return self._parts(column, max(1, CHUNK // (8 * max(self.columns[column], _QUERIES))))

    def _parts(self, column: str, size: int) -> Iterator[tuple[int, Any]]:
        start = 0
        for shard in self.manifest["shards"]:
            for block in _blocks(self.folder / shard["file"], column, size):
                yield start, block
                start += len(block)

    def _pick(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """The values of a column in some rows; other shards are not read."""
        shards = self.manifest["shards"]
        starts = list(itertools.accumulate((shard["records"] for shard in shards), initial=0))
        wanted = np.asarray(rows, np.int64)
        outside = (wanted < 0) | (wanted >= starts[-1])
        if outside.any():
            raise InputError(
                f"row {wanted[outside][0]} of {self.folder}; expected 0 to {starts[-1] - 1}"
            )
        of_shard = np.searchsorted(starts, wanted, side="right") - 1
        found: list[Any] = [None] * len(wanted)
        for number in np.unique(of_shard).tolist():
            (places,) = np.nonzero(of_shard == number)
            start = starts[number]
            for block in _blocks(self.folder / shards[number]["file"], column, _QUERIES * 4):
                inside = (wanted[places] >= start) & (wanted[places] < start + len(block))
                for place in places[inside].tolist():
                    found[place] = block[wanted[place] - start]
                start += len(block)
        return found

    def _queries(self, queries: np.ndarray, column: str) -> np.ndarray:
        """Queries of length 1, f64[Q, D]."""
        width = self.columns[column]
        given = np.asarray(queries, np.float64)
        if given.ndim != 2 or given.shape[1] != width:
            raise InputError(f"queries of shape {list(given.shape)}; expected [Q, {width}]")
        if not np.isfinite(given).all():
            raise InputError("queries are not finite")
        return _unit(given)

    def _exact(self, unit: np.ndarray, k: int, column: str) -> Hits:
        """The nearest rows, from a comparison with all of them.

        Cosines are computed in float64 and rounded, so that equal rows have equal scores wherever
        they lie in a chunk.
        """
        scores, rows = np.zeros((len(unit), 0), np.float32), np.zeros((len(unit), 0), np.int64)
        for start, block in self.chunks(column):
            there = _present(block, start, self.folder)
            known = _unit(np.where(there[:, None], block, 0).astype(np.float64)).T
            numbers = np.arange(start, start + len(block))
            parts = [
                _best(unit[q : q + _QUERIES] @ known, there, numbers, k)
                for q in range(0, len(unit), _QUERIES)
            ]
            more = [np.concatenate(part) for part in zip(*parts, strict=True)]
            every = np.concatenate([scores, more[0]], 1), np.concatenate([rows, more[1]], 1)
            order = np.argsort(-every[0], axis=1, kind="stable")[:, :k]
            scores, rows = (np.take_along_axis(part, order, axis=1) for part in every)
        return Hits(scores, np.where(np.isneginf(scores), -1, rows))


def identity(manifest: Mapping[str, Any]) -> str:
    """A digest of the rows of an export."""
    stated = json.dumps([manifest["columns"], manifest["shards"]], sort_keys=True)
    return hashlib.sha256(stated.encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        shards, complete = manifest["shards"], manifest["complete"]
        names = [str(shard["file"]) for shard in shards]
        manifest["columns"].items(), [shard["records"] + 0 for shard in shards]
    except OSError as error:
        why = f"{path.name}: {error.strerror}" if folder.exists() else build.no_folder(folder)
        raise InputError(
            f"{folder} holds no embeddings ({why}); expected a folder of python -m mmrl.export"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is no manifest of python -m mmrl.export") from None
    if not complete or not shards:
        raise InputError(f"the export in {folder} is not complete; start it again to complete it")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(f"{path} names the shard {name!r}, which is no file of {folder}")
    return manifest


def _present(block: np.ndarray, start: int, folder: Path) -> np.ndarray:
    """bool[n]: rows that have an embedding; those of records without one hold no numbers."""
    finite = np.isfinite(block)
    there = finite.all(axis=1)
    damaged = finite.any(axis=1) & ~there
    if damaged.any():
        raise InputError(f"{folder}: row {start + int(np.argmax(damaged))} is not finite")
    return there


def _best(
    scores: np.ndarray, there: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query, in order: f32[q, m], i64[q, m]; m is the smaller of k and n."""
    rounded = np.where(there, scores, -np.inf).astype(np.float32)
    kept = min(k, rounded.shape[1])
    least = np.partition(rounded, rounded.shape[1] - kept, axis=1)[:, -kept][:, None]
    chosen = []
    for one, limit in zip(rounded, least, strict=True):
        (above,) = np.nonzero(one >= limit)  # more than k where scores are equal
        chosen.append(above[np.argsort(-one[above], kind="stable")[:kept]])
    order = np.stack(chosen)
    return np.take_along_axis(rounded, order, axis=1), rows[order]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _blocks(path: Path, column: str, size: int) -> Iterator[Any]:
    """A column of a shard in blocks of at most `size` rows: f32[n, D], or texts.

    Raises:
      InputError: the shard is damaged or has no such column.
    """
    try:
        yield from (_npz if path.suffix == ".npz" else _parquet)(path, column, size)
    except (OSError, ValueError, KeyError, pa.ArrowException, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {column} of {path}: {error}") from None


def _parquet(path: Path, column: str, size: int) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=size, columns=[column]):
            values = batch.column(column)
            if not isinstance(values, pa.FixedSizeListArray):
                yield np.asarray(values.to_pylist(), object)
                continue
            width = values.type.list_size
            flat = values.values.slice(values.offset * width, len(values) * width)
            yield np.array(flat.to_numpy(), np.float32).reshape(-1, width)


def _npz(path: Path, column: str, size: int) -> Iterator[Any]:
    """Reads a member of the archive piece by piece; `np.load` would read all of it."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{column}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
        if fortran or dtype.hasobject:
            raise ValueError(f"array of {dtype}")
        width = int(np.prod(shape[1:]))
        for start in range(0, shape[0], size):
            rows = min(size, shape[0] - start)
            data = file.read(rows * width * dtype.itemsize)
            block = np.frombuffer(data, dtype).reshape(rows, *shape[1:])
            yield block.astype(np.float32) if dtype.kind == "f" else block.astype(object)
