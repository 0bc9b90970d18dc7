"""Encodes chunks of records in worker processes, and yields them in order."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

from mmrl import files, locks
from mmrl.data.reading.splits import SPLITS
from mmrl.preparation.encode import Chunk, encode_chunk
from mmrl.preparation.inventory import Inventory
from mmrl.preparation.storage import Storage
from mmrl.preparation.workplace import Workplace
from mmrl.types import InputError, Record

_AHEAD = 3  # chunks per worker that may be submitted beyond the next one


class Span(NamedTuple):
    """Records `start` to `stop` - 1 of a split."""

    split: str
    start: int
    stop: int


def spans(inventory: Inventory, size: int) -> list[Span]:
    """Divides all records into chunks of `size`, in the order of splits and records."""
    return [
        Span(split, start, min(start + size, len(inventory.parts[split])))
        for split in SPLITS
        if split in inventory.parts
        for start in range(0, len(inventory.parts[split]), size)
    ]


def encoded(
    inventory: Inventory,
    storage: Storage,
    workplace: Workplace,
    cut: Sequence[Span],
    *,
    first: int,
    workers: int,
) -> Generator[tuple[str, Chunk], None, None]:
    """Yields split and content of chunk `first` and of all following chunks.

    A chunk that an earlier run left in the work folder is read from there. Workers receive records
    and write encoded images to files, so the memory of a worker does not depend on the size of the
    corpus.

    Args:
      cut: the records of each chunk.
      workers: number of processes; 0 encodes in this process.

    Raises:
      InputError: a worker died, or the disk is full.
    """

    def task(number: int) -> tuple[str, list[Record], Storage, int]:
        span = cut[number]
        records = inventory.parts[span.split].records(span.start, span.stop)
        return str(workplace.chunk(number)), records, storage, inventory.channels

    def read(number: int) -> tuple[str, Chunk]:
        path = workplace.chunk(number)
        with contextlib.suppress(InputError, FileNotFoundError):
            return cut[number].split, Chunk.from_bytes(path.read_bytes())
        encode_to(*task(number))
        return cut[number].split, Chunk.from_bytes(path.read_bytes())

    if workers == 0:
        yield from map(read, range(first, len(cut)))
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(str(workplace.workers_lock),),
    )
    waiting: dict[int, Future[None]] = {}
    submitted = first
    try:
        for number in range(first, len(cut)):
            while submitted < min(len(cut), number + _AHEAD * workers):
                if not workplace.chunk(submitted).exists():
                    waiting[submitted] = pool.submit(encode_to, *task(submitted))
                submitted += 1
            if number in waiting:
                waiting.pop(number).result()
            yield read(number)
    except BrokenProcessPool:
        raise InputError(
            "a worker process died: out of memory, or a decoder crashed on a file. Start the same"
            " command again: it resumes. Fewer --workers need less memory"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def encode_to(path: str, records: Sequence[Record], storage: Storage, channels: int) -> None:
    """Encodes records to a chunk file."""
    files.write(Path(path), encode_chunk(records, storage, channels).to_bytes())


def _begin(lock: str) -> None:
    """Initialises a worker: it holds a shared lock, and exits when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it, and ends the workers
    _HELD.append(locks.share(Path(lock)))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_HELD: list[object] = []
