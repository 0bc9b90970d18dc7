"""Runs a preparation: takes the inventory, checks it, encodes images and writes the corpus."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrl import files
from mmrl.data.reading import rejects, shards
from mmrl.data.reading.splits import SPLITS
from mmrl.preparation import finish, inventory
from mmrl.preparation.assembly import Assembly
from mmrl.preparation.encode import encode_chunk
from mmrl.preparation.inventory import Inventory
from mmrl.preparation.progress import Meter
from mmrl.preparation.storage import Storage
from mmrl.preparation.workers import encoded, spans
from mmrl.preparation.workplace import Workplace, check
from mmrl.types import InputError, Reject

_SAMPLES = 32  # records that are encoded to estimate the size of the corpus
_MARGIN = 1.25  # factor on the estimate, for its error
_FEW = 2000  # for fewer records, starting other processes takes longer than encoding
_GIB, _MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of a preparation.

    Attributes:
      storage: how images are stored.
      shard_bytes: a shard is finished with the chunk that reaches this size.
      chunk_records: number of records that a worker encodes at a time.
      workers: processes that encode; 0 encodes in this process. None: one per core for many
        records, 0 for few.
      max_reject_fraction: share of the records that may be refused or lose an image.
      allow_missing_images: do not count missing images for that share.
    """

    storage: Storage
    shard_bytes: int = 256 * _MIB
    chunk_records: int = 256
    workers: int | None = None
    max_reject_fraction: float = 0.01
    allow_missing_images: bool = False


def prepare(
    source: str,
    options: Mapping[str, Any],
    output: Path,
    settings: Settings,
    *,
    key: bytes | None = None,
    say: Callable[[str], None] = print,
    free: Callable[[Path], int] = files.free_bytes,
) -> dict[str, Any]:
    """Prepares a corpus, or resumes its preparation, and returns the manifest.

    Nothing is done if `output` holds the finished corpus.

    Args:
      source, options: a source in `mmrl.data.sources` and its options.
      output: the output folder.
      key: secret key of the pseudonyms that replace ids; None keeps ids.
      say: prints a line.
      free: folder -> free bytes on its disk.

    Raises:
      InputError: no usable record, too many rejects, another preparation in `output`, too little
        space; as the source.
    """
    found = read(source, options, output, key=key)
    describe(found, say)
    plan = finish.make_plan(
        found,
        settings.storage,
        shard_bytes=settings.shard_bytes,
        chunk_records=settings.chunk_records,
    )
    check(output, plan)
    check_usable(found, output, settings)
    _check_space(found, output, settings, free, say)
    workplace = Workplace(output, plan, say)
    if workplace.complete:
        say(f"{output} is complete: {found.records:,} records, every file of its stated size")
        return shards.read_manifest(output)
    try:
        return _run(found, workplace, plan, settings, say)
    except OSError as error:
        if error.errno not in files.FULL:
            raise
        raise files.outside(
            error,
            f"cannot write to --output={output}",
            "free some space and start the same command again: it resumes",
            where=output,
        ) from None
    finally:
        workplace.leave()


def read(source: str, options: Mapping[str, Any], output: Path, *, key: bytes | None) -> Inventory:
    """Reads all text of a source, see `inventory.take`.

    Raises:
      InputError: as `inventory.take`. If no row of the source can be read, they are listed in
        `output`, unless a key hides what they say.
    """
    with Meter(f"reading {source}", 0) as meter:
        try:
            return inventory.take(source, options, key=key, progress=meter.advance)
        except rejects.UnusableError as error:
            if key is None:
                _list(error.rejects, output)
            raise


def describe(found: Inventory, say: Callable[[str], None]) -> None:
    """Prints counts, licence, rejects and warnings of an inventory."""
    facts = found.facts
    say(f"{found.name}: {facts['title']}, {facts['url']}" if facts else found.name)
    listed = ", ".join(
        f"{name or 'not stated'} ({count:,})" for name, count in list(found.licenses.items())[:8]
    )
    more = f" and {len(found.licenses) - 8} others" if len(found.licenses) > 8 else ""
    say(f"licence: {listed or facts.get('license', '')}{more}")
    access = ", ".join(found.access) or facts.get("access", "")
    if facts:
        access += "; redistribution is"
        access += " permitted" if facts["redistributable"] else " not permitted"
    say(f"access: {access}")
    for split in SPLITS:
        count = len(found.parts[split]) if split in found.parts else 0
        say(f"{split}: {count:,} records, {found.images[split]:,} images")
    texts = ", ".join(f"{name} {count:,}" for name, count in found.texts.items())
    say(f"text: {texts or 'none'}")
    if found.missing_images:
        say(f"missing images: {found.missing_images:,}")
    for reason, count in rejects.summarise(found.rejects).items():
        say(f"refused before images are read: {count:,} {reason}")
    for warning in found.warnings:
        say(f"warning: {warning}")


def check_usable(found: Inventory, output: Path, settings: Settings) -> None:
    """Raises InputError for a corpus that cannot be used, and lists its rejects in `output`.

    Raises:
      InputError: no usable record, or too many rejects.
    """
    try:
        if not found.records:
            raise InputError(
                f"{found.name} has no usable record ({found.total:,} found; refused:"
                f" {rejects.explain(found.rejects) or 'none'})"
            )
        found.check_rejects(
            (), settings.max_reject_fraction, allow_missing=settings.allow_missing_images
        )
    except InputError:
        _list(found.rejects, output)
        raise


def _list(refused: Sequence[Reject], output: Path) -> None:
    """Lists rejects in a folder, unless it holds a finished corpus."""
    if refused and not (output / shards.MANIFEST).exists():
        rejects.write_rejects(output / shards.REJECTS, refused)


def _check_rejects(found: Inventory, assembly: Assembly, output: Path, settings: Settings) -> None:
    """Raises InputError for too many rejects, and lists them in `output`."""
    try:
        found.check_rejects(
            assembly.rejects,
            settings.max_reject_fraction,
            allow_missing=settings.allow_missing_images,
        )
    except InputError:
        _list([*found.rejects, *assembly.rejects], output)
        raise


def estimate(found: Inventory, storage: Storage) -> int:
    """Estimates the bytes of the prepared corpus from records spread evenly over it."""
    size = 0.0
    for part in found.parts.values():
        share = max(1, round(_SAMPLES * len(part) / found.records)) if len(part) else 0
        places = np.linspace(0, len(part) - 1, share).astype(int)
        records = [record for at in places for record in part.records(at, at + 1)]
        if records:
            size += (
                len(encode_chunk(records, storage, found.channels).to_bytes())
                / len(records)
                * len(part)
            )
    return round(size)


def _check_space(
    found: Inventory,
    output: Path,
    settings: Settings,
    free: Callable[[Path], int],
    say: Callable[[str], None],
) -> None:
    """Raises InputError if the disk cannot hold all shards and two that are being written."""
    if (output / shards.MANIFEST).exists():
        return
    size = estimate(found, settings.storage)
    needed = round(size * _MARGIN) + 2 * min(size, settings.shard_bytes)
    there = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    left = free(output)
    say(f"about {size / _MIB:,.0f} MiB to write, {left / _GIB:,.1f} GiB free")
    if needed - there > left:
        raise InputError(
            f"--output={output} needs about {(needed - there) / _GIB:,.2f} GiB and its disk has"
            f" {left / _GIB:,.2f} GiB free; free some, or choose another folder or a smaller --size"
        )


def _workers(given: int | None, records: int) -> int:
    if given is not None:
        return given
    return len(os.sched_getaffinity(0)) if records >= _FEW else 0


def _run(
    found: Inventory,
    workplace: Workplace,
    plan: Mapping[str, Any],
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    began = time.monotonic()
    assembly = Assembly(workplace, found, settings.shard_bytes)
    earlier = assembly.records
    if assembly.next:
        say(f"resuming after {assembly.records:,} records in finished shards")
    made = encoded(
        found,
        settings.storage,
        workplace,
        spans(found, settings.chunk_records),
        first=assembly.next,
        workers=_workers(settings.workers, found.records - earlier),
    )
    try:
        with Meter("preparing", found.records, start=earlier) as meter:
            for split, chunk in made:
                assembly.append(split, chunk)
                meter.advance(assembly.records, assembly.bytes)
                if chunk.rejects:
                    _check_rejects(found, assembly, workplace.output, settings)
    finally:
        made.close()
    assembly.close()
    _check_rejects(found, assembly, workplace.output, settings)
    if not assembly.records:
        _list(assembly.rejects, workplace.output)
        raise InputError(
            f"{found.name}: no image could be read, so there is no record; rejected:"
            f" {rejects.explain(assembly.rejects)}; see rejects.jsonl"
        )
    manifest = finish.finish(workplace, found, plan, assembly.rejects)
    seconds = time.monotonic() - began
    size = sum(file["bytes"] for file in manifest["files"].values())
    rate = (assembly.records - earlier) / max(seconds, 1e-9)
    say(
        f"{assembly.records:,} records, {assembly.images:,} images, {size:,} bytes;"
        f" {seconds:,.1f} s, {rate:,.0f} records/s"
    )
    say(f"refused in all: {rejects.in_words(manifest['rejects']) or 'none'}")
    return manifest
