"""Encoded chunks, in order, to closed shards: boundaries depend on content alone."""

from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from mmrl import files
from mmrl.data.reading import shards
from mmrl.preparation.encode import Chunk
from mmrl.preparation.inventory import Inventory, without_places
from mmrl.preparation.workplace import Workplace
from mmrl.types import InputError, Reject

MAX_RECORDS = 65_536  # of a shard; what bounds its rows in memory where records have no image


class Assembly:
    """The shard under way, and those closed before it.

    Args:
      shard_bytes: a shard is closed when its payloads reach this.

    Attributes:
      next: number of the chunk to append next.
      records, images, bytes: done so far, those of earlier runs included.
      rejects: what was refused at encoding so far.
    """

    def __init__(self, workplace: Workplace, inventory: Inventory, shard_bytes: int) -> None:
        self._workplace, self._inventory, self._target = workplace, inventory, shard_bytes
        closed = workplace.closed()
        self._closed = len(closed)
        self._of_split: dict[str, int] = {}
        self.next = self.records = self.images = self.bytes = 0
        self.rejects: list[Reject] = []
        for told in closed:
            if told["shard"]:
                self._of_split[told["split"]] = self._of_split.get(told["split"], 0) + 1
            self.next, self.records = told["stop"], self.records + told["records"]
            self.images, self.bytes = self.images + told["images"], self.bytes + told["bytes"]
            self.rejects += [Reject(*fields) for fields in told["rejects"]]
        self._begin("")

    def _begin(self, split: str) -> None:
        self._split, self._first = split, self.next
        self._rows: list[dict[str, Any]] = []
        self._refused: list[Reject] = []
        self._payload_bytes = 0
        self._writer: Any = None

    @property
    def _fresh(self) -> Path:
        return self._workplace.work / "shard.tmp"

    def append(self, split: str, chunk: Chunk) -> None:
        """Adds chunk number `next`, which is of `split`."""
        if split != self._split:
            self.close()
            self._begin(split)
        name = self._name()
        for payload, row in zip(chunk.payloads, chunk.rows, strict=True):
            if self._writer is None:
                self._writer = array_record_module.ArrayRecordWriter(
                    str(self._fresh), shards.WRITER_OPTIONS
                )
            self._writer.write(payload)
            self._rows.append({**row, "shard": name, "position": len(self._rows)})
            self._payload_bytes += len(payload)
        refused = [without_places(reject, self._inventory.places) for reject in chunk.rejects]
        self._refused += refused
        self.rejects += refused
        self.records += len(chunk.rows)
        self.images += sum(len(row["image_keys"]) for row in chunk.rows)
        self.next += 1
        if self._payload_bytes >= self._target or len(self._rows) >= MAX_RECORDS:
            self.close()
            self._begin(split)

    def close(self) -> None:
        """Brings the shard under way to its place; nothing when no chunk came since the last."""
        if self.next == self._first:
            return
        size, digest = self._finish_file() if self._rows else (0, "")
        told = {
            "split": self._split,
            "shard": self._name() if self._rows else "",
            "first": self._first,
            "stop": self.next,
            "records": len(self._rows),
            "images": sum(len(row["image_keys"]) for row in self._rows),
            "bytes": size,
            "sha256": digest,
            "sections": list(dict.fromkeys(s for row in self._rows for s in row["sections"])),
            "rejects": [[r.id, r.reason, r.detail] for r in self._refused],
        }
        self._workplace.close(self._closed, told, self._rows)
        self._closed += 1
        if self._rows:
            self._of_split[self._split] = self._of_split.get(self._split, 0) + 1
        self.bytes += size

    def _finish_file(self) -> tuple[int, str]:
        """Closes, checks and places the shard; returns its size and digest."""
        self._writer.close()
        reader = array_record_module.ArrayRecordReader(str(self._fresh))
        found = reader.num_records()
        reader.close()
        if found != len(self._rows):
            raise InputError(
                f"{self._fresh} holds {found:,} of {len(self._rows):,} records written; is the"
                " disk full? The same command goes on"
            )
        files.sync(self._fresh)
        size, digest = self._fresh.stat().st_size, shards.file_sha256(self._fresh)
        files.place(self._fresh, self._workplace.output / self._name())
        return size, digest

    def _name(self) -> str:
        return f"{self._split}-{self._of_split.get(self._split, 0):05d}.array_record"
