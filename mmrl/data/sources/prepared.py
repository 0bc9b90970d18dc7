"""A corpus that `python -m mmrl.prepare` wrote, which training reads fastest.

The index with all text is read once. Pixels are read from ArrayRecord shards, one record at a time,
by any thread or process. `Prepared(split="train", path="corpora/openi")` yields the records that
the source yielded, with the stored images.
"""

import functools
import itertools
import json
import operator
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmrl.data.reading import shards
from mmrl.data.reading.lazy import LazyBoxes
from mmrl.data.reading.splits import check_split
from mmrl.types import Entailment, ImageRef, InputError, Record, Reject

VERIFY = ("size", "sha256")

_ROWS = 1024  # of the index, turned into Python's objects at a time


class _Images:
    """(index, number) -> image. It is sent to every worker, so it is small."""

    def __init__(
        self,
        path: str,
        shard: np.ndarray,
        names: tuple[str, ...],
        position: np.ndarray,
        channels: int,
    ) -> None:
        self._paths = tuple(os.path.join(path, name) for name in names)
        self._shard, self._position, self._channels = shard, position, channels

    def place(self, index: int) -> tuple[str, int]:
        """Path of the shard of record `index`, and its position there."""
        return self._paths[self._shard[index]], int(self._position[index])

    def __call__(self, index: int, number: int = 0) -> np.ndarray:
        return shards.load_image(*self.place(index), number, self._channels)


class Prepared:
    """Records of one split of a prepared corpus; a Source.

    Args:
      split: train, val or test.
      path: the folder that `mmrl.prepare` wrote.
      verify: "size" compares the size of every shard with the manifest; "sha256" also compares
        their digests, which reads all of them.

    Attributes:
      rejects: empty; what was refused is in rejects.jsonl of the folder.
      warnings: how many items were refused.
      manifest: that of the corpus.
      channels: 1 or 3, as the manifest states.
      image: (index, number = 0) -> image `number` of record `index`, without building the record.

    Raises:
      InputError: no complete corpus in the folder, or files that differ from the manifest.
    """

    def __init__(self, *, split: str, path: str, verify: str = "size") -> None:
        check_split(split)
        if verify not in VERIFY:
            raise InputError(f"data.verify '{verify}'; choices: {', '.join(VERIFY)}")
        self.manifest: dict[str, Any] = shards.read_manifest(path)
        shards.check_files(path, self.manifest, verify)
        self.channels: int = self.manifest.get("channels", 1)
        table = pq.read_table(os.path.join(path, shards.INDEX))
        self._rows = table.filter(pc.field("split") == split).combine_chunks()
        self._label_names = tuple(self.manifest["label_names"])
        self._sections = [n for n in self._rows.column_names if n.startswith("section.")]
        shard = self._rows["shard"].combine_chunks().dictionary_encode()
        self.image = _Images(
            path,
            shard.indices.to_numpy(zero_copy_only=False),
            tuple(shard.dictionary.to_pylist()),
            self._rows["position"].to_numpy(),
            self.channels,
        )
        strange = sorted(set(shard.dictionary.to_pylist()) - set(self.manifest["files"]))
        if strange:
            raise InputError(
                f"{path}: {shards.INDEX} names {strange[0]!r}, which the manifest does not list"
            )
        self.rejects: list[Reject] = []
        self.total = len(self._rows)
        refused = sum(self.manifest["rejects"].values())
        self.warnings: list[str] = []
        if refused:
            self.warnings.append(f"{refused:,} items were refused when the corpus was prepared")

    def __len__(self) -> int:
        return self.total

    @property
    def index(self) -> pa.Table:
        """The rows of index.parquet of this split."""
        return self._rows

    def __getitem__(self, index: int) -> Record:
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        position %= len(self)
        (row,) = self._rows.slice(position, 1).to_pylist()
        return self._record(position, row)

    def __iter__(self) -> Iterator[Record]:
        """Yields all records in order, several times as fast as by index."""
        for start in range(0, len(self), _ROWS):
            rows = self._rows.slice(start, _ROWS).to_pylist()
            yield from map(self._record, itertools.count(start), rows)

    def _record(self, position: int, row: Mapping[str, Any]) -> Record:
        place = self.image.place(position)
        vector = row.get("vector")  # no column if no record has one
        sections = {name.removeprefix("section."): row[name] for name in self._sections}
        return Record(
            **{name: row[name] for name in shards.PLAIN_FIELDS},
            aliases=tuple(row["aliases"]),
            sections={name: text for name, text in sections.items() if text is not None},
            images=tuple(
                ImageRef(
                    key,
                    functools.partial(shards.load_image, *place, number, self.channels),
                    row["projections"][number],
                    row["projection_sources"][number],
                    tuple(row["spacings"][number]) or None,
                    row["image_sha256"][number],
                    row["image_phash"][number],
                )
                for number, key in enumerate(row["image_keys"])
            ),
            label_names=self._label_names if row["labels"] else (),
            labels=tuple(row["labels"]),
            boxes=LazyBoxes(functools.partial(shards.load_boxes, *place), row["num_boxes"])
            if row["num_boxes"]
            else (),
            findings=shards.findings_of(row["findings"]),
            sentences=tuple((section, text) for section, text in json.loads(row["sentences"])),
            masks=functools.partial(shards.load_masks, *place) if row["mask_labels"] else None,
            entailment=Entailment(*json.loads(row["entailment"])) if row["entailment"] else None,
            attributes=json.loads(row["attributes"]),
            vector=None if vector is None else tuple(vector),
            provenance=shards.provenance_of(row.get("provenance")),
            bag=functools.partial(shards.load_bag, *place) if row.get("bag") else None,
        )
