"""Files that appear whole or not at all, also after a power cut; one writer per folder."""

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from mmrl.types import InputError


def write(path: Path, data: bytes) -> None:
    """Writes beside, to the disk, then renames."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    place(fresh, path)


def place(fresh: Path, path: Path) -> None:
    """Renames a file that is on the disk to its place, for good."""
    fresh.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path, *, shared: bool = False, patience: float = 10.0) -> IO[bytes]:
    """Holds a lock as long as the returned file is open and its process lives.

    Args:
      patience: seconds to wait for others; workers of a run that was killed need a moment to end.

    Raises:
      InputError: another process holds it.
    """
    file = path.open("ab")
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > until:
                file.close()
                raise InputError(
                    f"another process prepares a corpus in '{path.parent.parent}'; wait until it"
                    " has ended"
                ) from None
            time.sleep(0.05)
