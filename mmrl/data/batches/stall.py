"""Where a pipeline that does not deliver is stuck: which stage, on which record, for how long.

Every thread that makes batches, in this process or a worker, writes down what it begins: a time, a
stage and a record, 24 bytes in a file of its own that is mapped into memory. Nobody waits for
anybody; who reads while a thread writes may see the time of the stage before.
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
    """What a thread is at: the stage, the index of the record, seconds since it began."""

    stage: int
    record: int
    seconds: float


class Board:
    """What all threads and worker processes are at; pickles as the name of its folder."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="mmrl-stages-")
        self._own = threading.local()
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._folder, self._own = state["folder"], threading.local()

    def mark(self, stage: int, index: int) -> None:
        """This thread begins a stage on the record `index`."""
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
        except OSError:  # the training that would look is over, or its disk is full
            return bytearray(_SLOT.size)

    def clear(self) -> None:
        """Forgets threads and workers that were ended wherever they stood."""
        for file in Path(self._folder).glob("*"):
            file.unlink(missing_ok=True)

    def places(self) -> list[Place]:
        """What every thread is at that is not idle, the longest first."""
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
    """Marks nothing."""


@contextlib.contextmanager
def watch(seconds: float, tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` once, from a thread, if the block takes longer than `seconds`."""
    timer = threading.Timer(seconds, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
