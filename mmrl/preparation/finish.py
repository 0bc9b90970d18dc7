"""The last steps of a preparation: index, rejects, and the manifest, which makes it complete."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmrl import files
from mmrl.data.reading import rejects, shards
from mmrl.data.reading.splits import SPLITS
from mmrl.preparation.assembly import MAX_RECORDS
from mmrl.preparation.inventory import Inventory
from mmrl.preparation.storage import Storage
from mmrl.preparation.workplace import Workplace
from mmrl.types import Reject
from mmrl.version import __version__

# Packages whose version may affect the written bytes.
_PACKAGES = (
    "opencv-python-headless",
    "numpy",
    "pyarrow",
    "array_record",
    "msgpack",
    "pydicom",
    "imagecodecs",
    "pylibjpeg-openjpeg",
)


def make_plan(
    inventory: Inventory, storage: Storage, *, shard_bytes: int, chunk_records: int
) -> dict[str, Any]:
    """The plan: what is equal in all runs of one preparation. It is a part of the manifest."""
    made: dict[str, Any] = {
        "schema_version": shards.SCHEMA_VERSION,
        "mmrl": __version__,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "source": inventory.name,
        "options": dict(inventory.options),
        "image": storage.to_dict(),
        "shards": {
            "bytes": shard_bytes,
            "records": MAX_RECORDS,
            "chunk": chunk_records,
            "writer": shards.WRITER_OPTIONS,
        },
        "input": {"sha256": inventory.sha256, "records": inventory.records},
    }
    if inventory.channels > 1:  # so that a grey corpus made before is not taken for this one
        made["channels"] = inventory.channels
    return made


def finish(
    workplace: Workplace,
    inventory: Inventory,
    plan: Mapping[str, Any],
    refused_later: Sequence[Reject],
) -> dict[str, Any]:
    """Writes the index, the rejects and then the manifest, which is returned."""
    closed = workplace.closed()
    sections = list(dict.fromkeys(name for shard in closed for name in shard["sections"]))
    index = workplace.publish(
        shards.INDEX,
        lambda path: _write_index(path, workplace, len(closed), sections, inventory.optional),
    )
    refused = [*inventory.rejects, *refused_later]
    listed = workplace.publish(shards.REJECTS, lambda path: rejects.write_rejects(path, refused))
    counts = {
        split: {
            what: sum(shard[what] for shard in closed if shard["split"] == split)
            for what in ("records", "images")
        }
        for split in SPLITS
    }
    stated = {
        shard["shard"]: {key: shard[key] for key in ("bytes", "sha256", "records")}
        for shard in closed
        if shard["shard"]
    }
    total = sum(count["records"] for count in counts.values())
    for path, records in ((index, total), (listed, len(refused))):
        digest = files.sha256(path)
        stated[path.name] = {"bytes": path.stat().st_size, "sha256": digest, "records": records}
    manifest = {
        **plan,
        "channels": inventory.channels,
        "facts": dict(inventory.facts),
        "licenses": dict(inventory.licenses),
        "access": dict(inventory.access),
        "counts": counts,
        "missing_images": inventory.missing_images,
        "warnings": list(inventory.warnings),
        "label_names": list(inventory.label_names),
        "sections": sections,
        "rejects": rejects.summarise(refused),
        "files": dict(sorted(stated.items())),
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    workplace.publish(shards.MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    workplace.remove_work()
    return manifest


def _write_index(
    path: Path,
    workplace: Workplace,
    count: int,
    sections: Sequence[str],
    optional: Sequence[str],
) -> None:
    """Writes one row group per shard, so that the rows of one shard are in memory at a time."""
    schema = shards.index_table([], sections, optional).schema
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for number in range(count):
            rows = workplace.rows(number)
            if rows:
                writer.write_table(shards.index_table(rows, sections, optional))
