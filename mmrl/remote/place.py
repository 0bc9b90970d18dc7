"""Where local copies of stores lie: below a cache folder, each for one process or one set of files.

    CACHE/remote/s3-bucket-run-0123456789ab/0/run            the copy
                                             0/state.json     what both sides were equal in
                                             0/lock           held by the process that uses it

Two processes that use a run get a copy each (0, 1, ...): one of them may remove files that the
other one reads. All processes share the copy of a corpus, which is large and seldom changes.
"""

import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mmrl import locks

_READABLE = 60  # characters of an address in the name of a folder


def cache() -> Path:
    """The folder of MMRL_CACHE, or that of the platform for files that can be fetched again."""
    if given := os.environ.get("MMRL_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/mmrl").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mmrl"


class Place:
    """The place of one local copy. It is held until `release`, or until the process ends.

    Attributes:
      folder: the copy. state: a file beside it.
      is_exclusive: whether no other process uses it.
    """

    def __init__(self, above: Path, name: str, lock: IO[bytes], *, is_exclusive: bool) -> None:
        safe = re.sub(r"[^\w.-]", "-", name).lstrip(".-")
        self.folder, self.state = above / (safe or "folder"), above / "state.json"
        self.owner = above / "owner.json"
        self._lock, self.is_exclusive = lock, is_exclusive
        self.folder.mkdir(exist_ok=True)

    @classmethod
    def own(cls, address: str, name: str) -> "Place":
        """The first place of an address that no other process uses."""
        for number in itertools.count():
            above = _above(address) / str(number)
            above.mkdir(parents=True, exist_ok=True)
            if (lock := locks.take(above / "lock")) is not None:
                return cls(above, name, lock, is_exclusive=True)
        raise AssertionError("unreachable")

    @classmethod
    def common(cls, address: str, name: str, say: Callable[[str], None]) -> "Place":
        """The place that all processes share; exclusive if no other process uses it now."""
        above = _above(address) / "shared"
        above.mkdir(parents=True, exist_ok=True)
        if (lock := locks.take(above / "lock")) is not None:
            return cls(above, name, lock, is_exclusive=True)
        say(f"another process on this machine reads {address}, or fetches it; waits if it fetches")
        return cls(above, name, locks.share(above / "lock"), is_exclusive=False)

    def share(self) -> None:
        """Lets others use the place, too."""
        locks.let_share(self._lock)
        self.is_exclusive = False

    def release(self) -> None:
        """Leaves the place to others."""
        self._lock.close()


def _above(address: str) -> Path:
    readable = re.sub(r"[^\w.]+", "-", address).strip("-.")[-_READABLE:].strip("-.")
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]
    return cache() / "remote" / f"{readable}-{digest}"
