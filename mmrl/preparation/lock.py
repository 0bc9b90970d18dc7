"""A lock on a folder, which is released when the process that holds it ends."""

import fcntl
import time
from pathlib import Path
from typing import IO

from mmrl.types import InputError


def acquire(path: Path, *, shared: bool = False, patience: float = 10.0) -> IO[bytes]:
    """Acquires a lock. It is held while the returned file is open.

    Args:
      shared: several processes may hold the lock if all acquire it as shared.
      patience: seconds to wait for other processes. Workers need a moment to exit after their run
        was killed.

    Raises:
      InputError: another process holds the lock.
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
                    f"another process prepares a corpus in '{path.parent.parent}'; wait for its end"
                ) from None
            time.sleep(0.05)
