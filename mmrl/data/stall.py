"""Finds where the input pipeline hangs: at which stage, on which record, and for how long.

Every thread that makes batches, in this process or in a worker, records each stage that it begins:
time, stage and record, 24 bytes in a memory-mapped file of its own. There are no locks. A reader
may therefore see a new stage with the time of the stage before it.
"""

import contextlib
import mmap
import os
import shutil
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

IDLE, READ, PREPROCESS, AUGMENT, TOKENISE, PERTURB = range(6)
STAGES = ("idle", "read", "preprocess", "augment", "tokenise", "perturb")

_SLOT = struct.Struct("<dqq")  # monotonic seconds, which all processes of a machine share


class Place(NamedTuple):
    """The stage a thread is in, the index of its record, and seconds since the stage began."""

    stage: int
    record: int
    seconds: float


class Board:
    """The current stage of every thread and worker; pickles as the path of its folder."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="mmrl-stages-")
        self._own = threading.local()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._folder, self._own = state["folder"], threading.local()

    def mark(self, stage: int, index: int) -> None:
        """Records that this thread begins a stage on the record `index`."""
        slot = getattr(self._own, "slot", None)
        if slot is None:
            slot = self._own.slot = self._open()
        _SLOT.pack_into(slot, 0, time.monotonic(), stage, index)

    def _open(self) -> mmap.mmap | bytearray:
        name = os.path.join(self._folder, f"{os.getpid()}-{threading.get_native_id()}")
        try:
            with open(name, "w+b") as file:
                file.truncate(_SLOT.size)
                return mmap.mmap(file.fileno(), _SLOT.size)
        except OSError:  # the folder is gone because training is over, or the disk is full
            return bytearray(_SLOT.size)

    def clear(self) -> None:
        """Deletes all entries, also those of threads and workers that have been stopped."""
        for file in Path(self._folder).glob("*"):
            file.unlink(missing_ok=True)

    def places(self) -> list[Place]:
        """The stages of all threads that are not idle, longest first."""
        now, found = time.monotonic(), []
        for file in Path(self._folder).glob("*"):
            with contextlib.suppress(OSError):
                content = file.read_bytes()
                if len(content) == _SLOT.size:
                    began, stage, index = _SLOT.unpack(content)
                    if stage != IDLE:
                        found.append(Place(stage, index, now - began))
        return sorted(found, key=lambda place: -place.seconds)


def ignore(stage: int, index: int) -> None:
    """A `Board.mark` that does nothing."""


@contextlib.contextmanager
def watch(seconds: float, tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` once, in another thread, if the block takes longer than `seconds`."""
    timer = threading.Timer(seconds, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
