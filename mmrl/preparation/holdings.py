"""The index of a prepared corpus for an audit: columns, splits, texts."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mmrl import sequences
from mmrl.data.reading import shards
from mmrl.data.reading.splits import SPLITS
from mmrl.data.sources.prepared import Prepared
from mmrl.data.text import reports
from mmrl.types import InputError

REPORT = ("findings", "impression")
"""The sections that training reads by default."""


class Holdings:
    """The index of a prepared corpus.

    Args:
      folder: the folder that `mmrl.prepare` wrote.
      sections: the sections of the composed text. By default findings and impression if any record
        has one of them, else all sections of the corpus.

    Attributes:
      name: that of the folder.
      manifest: that of the corpus.
      sections: see above.
      known: all sections of the corpus.

    Raises:
      InputError: no complete corpus in the folder, files that differ from its manifest, no record,
        or a section that it does not have.
    """

    def __init__(self, folder: str, *, sections: Sequence[str] = ()) -> None:
        Prepared(split="train", path=folder)  # compares the files with the manifest
        self.folder = folder
        self.name = Path(os.path.abspath(folder)).name
        self.manifest: dict[str, Any] = shards.read_manifest(folder)
        self._table = pq.read_table(os.path.join(folder, shards.INDEX))
        if not len(self._table):
            raise InputError(f"'{folder}' holds no record, so there is nothing to audit")
        prefix = "section."
        self.known = tuple(
            name.removeprefix(prefix)
            for name in self._table.column_names
            if name.startswith(prefix)
        )
        self.sections = tuple(sequences.each(sections, "sections"))
        unknown = [name for name in self.sections if name not in self.known]
        if unknown:
            raise InputError(
                f"'{folder}' has no section {unknown[0]!r}; choices: {', '.join(self.known)}"
            )
        if not sections:
            report = [name for name in REPORT if name in self.known and any(self.texts(name))]
            self.sections = REPORT if report else self.known

    def __len__(self) -> int:
        return len(self._table)

    @functools.cache  # noqa: B019 - lives as long as the audit
    def column(self, name: str) -> list[Any]:
        """The values of a column, one per record."""
        return self._table[name].to_pylist()

    def has(self, name: str) -> bool:
        """Whether the index has a column: those of `shards.OPTIONAL_FIELDS` may be absent."""
        return name in self._table.column_names

    def flat(self, name: str) -> list[Any]:
        """The values of a list column, one per image; `owner` has their records."""
        return self._table[name].combine_chunks().flatten().to_pylist()

    @functools.cached_property
    def owner(self) -> np.ndarray:
        """i64[images]: the record of each image."""
        return np.repeat(np.arange(len(self)), self.image_counts)

    @functools.cached_property
    def image_counts(self) -> np.ndarray:
        """i64[records]."""
        return np.fromiter(map(len, self.column("image_keys")), np.int64, len(self))

    @functools.cached_property
    def splits(self) -> dict[str, np.ndarray]:
        """Split -> indices of its records, for splits with records, in the order of `SPLITS`."""
        given = np.asarray(self.column("split"))
        found = {split: np.flatnonzero(given == split) for split in SPLITS}
        return {split: rows for split, rows in found.items() if len(rows)}

    @functools.cache  # noqa: B019
    def texts(self, section: str) -> list[str]:
        """The section of each record, "" where it is missing or blank."""
        if section not in self.known:
            return [""] * len(self)
        found = self.column(f"section.{section}")
        return [text if text and not reports.is_blank(text) else "" for text in found]

    @functools.cached_property
    def composed(self) -> list[str]:
        """The text of each record that training reads, "" where there is none."""
        if not self.sections:
            return [""] * len(self)
        columns = [self.texts(name) for name in self.sections]
        return [
            reports.normalise(
                reports.compose(dict(zip(self.sections, parts, strict=True)), self.sections)
            )
            for parts in zip(*columns, strict=True)
        ]

    @functools.cached_property
    def canonical(self) -> list[str]:
        """The composed texts in the form in which they are compared, see `reports.canonical`."""
        return list(map(reports.canonical, self.composed))

    def image(self, row: int, number: int) -> np.ndarray:
        """Image `number` of a record as stored: u8 or u16 [H, W], or [H, W, 3] in colour."""
        return shards.load_image(*self.place(row), number, self.manifest.get("channels", 1))

    def place(self, row: int) -> tuple[str, int]:
        """Shard and position of a record."""
        shard, position = self.column("shard")[row], self.column("position")[row]
        return os.path.join(self.folder, shard), int(position)

    def facts(self) -> Mapping[str, Any]:
        """The facts of the manifest, see `Facts`."""
        return self.manifest.get("facts") or {}
