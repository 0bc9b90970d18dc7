"""One writer per folder: a lock that ends with the process that holds it."""

import fcntl
import time
from pathlib import Path
from typing import IO

from mmrl.types import InputError


def acquire(path: Path, *, shared: bool = False, patience: float = 10.0) -> IO[bytes]:
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
