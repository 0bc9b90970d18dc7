"""Chunks of records, encoded by processes, in order."""

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

from mmrl import files
from mmrl.data.reading.splits import SPLITS
from mmrl.preparation import lock as locks
from mmrl.preparation.encode import Chunk, encode_chunk
from mmrl.preparation.inventory import Inventory
from mmrl.preparation.storage import Storage
from mmrl.preparation.workplace import Workplace
from mmrl.types import InputError, Record

_AHEAD = 3  # chunks per worker that may wait for an earlier one


class Span(NamedTuple):
    """Records `start` to `stop` of a split."""

    split: str
    start: int
    stop: int


def spans(inventory: Inventory, size: int) -> list[Span]:
    """All records, cut in chunks of `size`, in the order of splits and records."""
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
    """Yields split and content of chunk `first` and of all that follow it.

    A chunk that lies in the work folder already is taken from there. Records travel to the workers
    and pixels stay in them, so that what one holds does not grow with the corpus.

    Args:
      cut: what each chunk holds.
      workers: processes; with 0 this one does the work.

    Raises:
      InputError: a worker died, or the disk is full.
    """

    def task(number: int) -> tuple[str, list[Record], Storage]:
        span = cut[number]
        records = inventory.parts[span.split].records(span.start, span.stop)
        return str(workplace.chunk(number)), records, storage

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
    asked = first
    try:
        for number in range(first, len(cut)):
            while asked < min(len(cut), number + _AHEAD * workers):
                if not workplace.chunk(asked).exists():
                    waiting[asked] = pool.submit(encode_to, *task(asked))
                asked += 1
            if number in waiting:
                waiting.pop(number).result()
            yield read(number)
    except BrokenProcessPool:
        raise InputError(
            "a worker process died: out of memory, or a decoder crashed on a file. The same"
            " command goes on; fewer --workers need less memory"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def encode_to(path: str, records: Sequence[Record], storage: Storage) -> None:
    """Encodes records to one chunk file, which appears whole or not at all."""
    files.write(Path(path), encode_chunk(records, storage).to_bytes())


def _begin(lock: str) -> None:
    """Lets a worker end with its parent, however that ends, and tell of its life by a lock."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends us
    _HELD.append(locks.acquire(Path(lock), shared=True))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_HELD: list[object] = []
