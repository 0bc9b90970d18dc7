"""Writes encoded chunks, in order, to shards whose boundaries depend on the content only."""

from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from mmrl import files
from mmrl.data.reading import shards
from mmrl.preparation.encode import Chunk
from mmrl.preparation.inventory import Inventory, without_places
from mmrl.preparation.workplace import Workplace
from mmrl.types import InputError, Reject

MAX_RECORDS = 65_536  # of a shard; bounds its rows in memory, also where records have no image


class Assembly:
    """The shard that is being written, and those that are finished.

    Args:
      shard_bytes: a shard is finished when its payloads reach this size.

    Attributes:
      next: number of the chunk to append next.
      records, images, bytes: of all chunks so far, including those of earlier runs.
      rejects: items that were refused at encoding so far.
    """

    def __init__(self, workplace: Workplace, inventory: Inventory, shard_bytes: int) -> None:
        self._workplace, self._inventory, self._target = workplace, inventory, shard_bytes
        closed = workplace.closed()
        self._closed = len(closed)
        self._of_split: dict[str, int] = {}
        self.next = self.records = self.images = self.bytes = 0
        self.rejects: list[Reject] = []
        for shard in closed:
            if shard["shard"]:
                self._of_split[shard["split"]] = self._of_split.get(shard["split"], 0) + 1
            self.next, self.records = shard["stop"], self.records + shard["records"]
            self.images, self.bytes = self.images + shard["images"], self.bytes + shard["bytes"]
            self.rejects += [Reject(*fields) for fields in shard["rejects"]]
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
        """Appends chunk number `next`, which is of `split`."""
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
        """Finishes the shard that is being written, if any chunk was appended to it."""
        if self.next == self._first:
            return
        size, digest = self._finish_file() if self._rows else (0, "")
        shard = {
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
        self._workplace.close(self._closed, shard, self._rows)
        self._closed += 1
        if self._rows:
            self._of_split[self._split] = self._of_split.get(self._split, 0) + 1
        self.bytes += size

    def _finish_file(self) -> tuple[int, str]:
        """Closes the file of the shard, checks it and moves it to the output: size and digest."""
        self._writer.close()
        reader = array_record_module.ArrayRecordReader(str(self._fresh))
        found = reader.num_records()
        reader.close()
        if found != len(self._rows):
            raise InputError(
                f"{self._fresh} holds {found:,} of {len(self._rows):,} records; is the disk full?"
                " Start the same command again: it resumes"
            )
        files.sync(self._fresh)
        size, digest = self._fresh.stat().st_size, files.sha256(self._fresh)
        files.place(self._fresh, self._workplace.output / self._name())
        return size, digest

    def _name(self) -> str:
        return f"{self._split}-{self._of_split.get(self._split, 0):05d}.array_record"
