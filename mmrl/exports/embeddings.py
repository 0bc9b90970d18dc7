"""Embeddings of records as Parquet or npz shards, with a manifest; an export resumes.

A shard appears only when it is complete, and the manifest lists the complete ones. The shards of a
resumed export equal those of one that was never stopped.
"""

import concurrent.futures
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrl import config, files
from mmrl.data.batches.pipeline import Examples
from mmrl.data.corpus import Corpus
from mmrl.data.reading import rejects
from mmrl.evaluators.statistics import Subset
from mmrl.training import checkpoint, run
from mmrl.training.console import Console
from mmrl.types import InputError

FORMATS = ("parquet", "npz")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an export; equal options and inputs give equal shards."""

    split: str
    format: str
    names: tuple[str, ...]
    shard_size: int


def export(
    trained: run.Trained,
    corpora: Mapping[str, Corpus],
    out: Path,
    options: Options,
    manifest: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Embeds every usable record of `corpora`; writes and returns the complete manifest.

    Args:
      manifest: from `begin`, of the same encoders, records and options.
    """
    done = {shard["file"]: shard for shard in manifest["shards"]}
    for split, corpus in corpora.items():
        count = -(-len(corpus) // options.shard_size)
        examples = trained.examples(corpus)
        for number in range(count):
            name = f"{split}-{number:05d}-of-{count:05d}.{options.format}"
            path = out / name
            if name in done and path.exists() and files.sha256(path) == done[name]["sha256"]:
                console.say(f"{name}: already complete")
                continue
            rows = range(number * options.shard_size, len(corpus))[: options.shard_size]
            columns = _columns(trained, examples, split, rows, options)
            _write_shard(path, columns)
            manifest["shapes"] = {one: list(columns[one].shape[1:]) for one in manifest["columns"]}
            done[name] = {"file": name, "records": len(rows), "sha256": files.sha256(path)}
            files.write_json(out / "manifest.json", {**manifest, "shards": list(done.values())})
            console.say(f"{name}: {len(rows)} records")
    manifest |= {"complete": True, "shards": [done[name] for name in sorted(done)]}
    manifest["counts"] = {split: len(corpus) for split, corpus in corpora.items()}
    refused = [reject for corpus in corpora.values() for reject in corpus.rejects]
    manifest["rejected"] = rejects.summarise(refused)
    files.write_json(out / "manifest.json", manifest)
    return manifest


def begin(
    trained: run.Trained, corpora: Mapping[str, Corpus], out: Path, options: Options
) -> dict[str, Any]:
    """Returns a new manifest, or that of an interrupted export, which is then resumed.

    Raises:
      InputError: `out` is not empty and holds no export of the same encoders and records.
    """
    return _open(out, _identity(trained, corpora, options))


def _identity(
    trained: run.Trained, corpora: Mapping[str, Corpus], options: Options
) -> dict[str, Any]:
    """The entries that must be equal for an export to be resumed."""
    examples = {split: trained.examples(corpus) for split, corpus in corpora.items()}
    first = next(iter(examples.values()))
    return {
        "columns": {name.replace(".", "_").replace("@", "_"): name for name in options.names},
        "embedding": {"dtype": "float32", "normalisation": "L2"},
        "grids": {tower: list(grid) for tower, grid in trained.predict.grids.items()},
        "checkpoint": {"step": trained.step, "weights_sha256": trained.weights_sha256()},
        "tokenizers_sha256": {name: one.sha256 for name, one in trained.tokenizers.items()},
        "preprocessing": first.preprocessing,
        "towers": config.plain(trained.config.towers),
        "data": {split: {"name": e.name, "sha256": e.sha256} for split, e in examples.items()},
        **({"source": config.plain(trained.meta["source"])} if trained.step is None else {}),
        "options": config.plain(dataclasses.asdict(options)),
        "versions": checkpoint.versions(),
    }


def _open(out: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of an interrupted export, or a new one."""
    path = out / "manifest.json"
    files.remove_unfinished(out)  # of an export that was killed while it wrote
    if path.exists():
        manifest = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in identity if manifest.get(key) != identity[key]]
        if differing:
            raise InputError(
                f"--out={out} holds another export; it differs in: {', '.join(differing)}. "
                "Choose another folder"
            )
        return manifest
    if out.is_dir() and [p for p in out.iterdir() if p.name != "rejects.jsonl"]:
        raise InputError(
            f"--out={out} is not empty and holds no manifest.json; expected a new or empty folder, "
            "or that of an earlier export"
        )
    out.mkdir(parents=True, exist_ok=True)
    manifest = {**identity, "complete": False, "shards": []}
    files.write_json(path, manifest)
    return manifest


def _columns(
    trained: run.Trained, examples: Examples, split: str, rows: range, options: Options
) -> dict[str, Any]:
    """Column name -> list of str or float32 array, one entry per record."""
    threads = max(1, int(trained.config.data.num_threads))
    records = [examples.record(row) for row in rows]
    # Not predict.encode, which would keep every shard in memory.
    with _Ahead(Subset(examples, rows), threads) as loaded:
        parts = list(trained.predict.stream(trained.state, loaded, options.names))
    columns: dict[str, Any] = {
        "id": [record.id for record in records],
        "patient_id": [record.patient_id for record in records],
        "study_id": [record.study_id for record in records],
        "split": [split] * len(records),
    }
    for name in options.names:
        values = np.concatenate([part[name] for part in parts])
        columns[name.replace(".", "_").replace("@", "_")] = np.asarray(values, np.float32)
    return columns


class _Ahead:
    """Items whose next blocks are loaded by threads while one is encoded.

    Args:
      items: what to load. threads: that load, a block each.
    """

    def __init__(self, items: Subset, threads: int) -> None:
        self._items, self._threads = items, threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._begun: dict[tuple[Any, ...], concurrent.futures.Future[Any]] = {}

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self._items)

    def arrays(
        self, names: Sequence[str], rows: Sequence[int], tower: str = ""
    ) -> Mapping[str, np.ndarray]:
        """See `Predict`, which asks for one block after the other."""
        size, start = len(rows), rows[0]
        begun = self._begun.pop((*names, tower, start), None)
        if begun is None:  # the first block, which opens files that all share
            begun = concurrent.futures.Future()
            begun.set_result(self._items.arrays(list(names), rows, tower))
        for first in range(start + size, len(self), size)[: self._threads]:
            key = (*names, tower, first)
            if key not in self._begun:
                block = range(first, min(first + size, len(self)))
                self._begun[key] = self._pool.submit(self._items.arrays, list(names), block, tower)
        return begun.result()


def _write_shard(path: Path, columns: Mapping[str, Any]) -> None:
    with files.whole(path) as fresh, fresh.open("wb") as file:
        if path.suffix == ".npz":
            # Fixed-width strings, so that readers need no pickle.
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in columns.items()}
            np.savez(file, **arrays)
        else:
            table = pa.table({name: _arrow(values) for name, values in columns.items()})
            pq.write_table(table, file, compression="zstd")


def _arrow(values: Any) -> pa.Array:
    """Strings unchanged; f32[N, ...] as fixed-size lists, with regions flattened in row order."""
    if not isinstance(values, np.ndarray):
        return pa.array(values, pa.string())
    flat = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), pa.float32()), flat.shape[1])
