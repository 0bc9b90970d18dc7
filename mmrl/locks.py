"""Locks on folders: one process at a time writes a run or prepares a corpus.

A `Lock` is a file that states its owner, which holds an flock on it and touches it as a sign of
life. The kernel releases an flock when the process ends, however it ends, so an owner on the same
machine that is gone is known at once. Another machine need not see that flock, and some network
file systems have none. There the sign of life decides: a lock that nobody has touched for
`SILENCE` seconds is taken over. Waiting is measured by the monotonic clock, and the age of a sign
of life by a file touched just now in the same folder, so clocks that differ or jump do no harm.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mmrl.types import BusyError, MachineError

NAME = "run.lock"
"""The file of the lock of a run directory, and of the work folder of a preparation."""
PATIENCE = 5.0
"""Seconds to wait for an owner that may be about to end."""
BEAT = 15.0
"""Seconds between two signs of life."""
SILENCE = 120.0
"""Seconds without a sign of life after which an owner on another machine is taken for dead."""

_LOST = 74  # EX_IOERR of sysexits.h, the status of a folder that is gone
# What flock says on a file system without locks.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@dataclasses.dataclass(frozen=True)
class Owner:
    """What a lock states of the process that holds it.

    Attributes:
      token: tells this holder from all others.
      machine: tells its machine, since that was last started, from all others.
      host, pid: of the process. since: local time.
    """

    token: str
    machine: str
    host: str
    pid: int
    since: str

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        host = socket.gethostname()
        return cls(uuid.uuid4().hex, _machine() or host, host, os.getpid(), now)

    @classmethod
    def parse(cls, content: bytes) -> "Owner | None":
        """The owner that the content of a lock states; None if it states none."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def content(self) -> bytes:
        """What a lock states, see `parse`."""
        return (json.dumps(dataclasses.asdict(self)) + "\n").encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Lock:
    """An exclusive lock on a folder. It is held from its construction until `release`.

    Args:
      path: the file of the lock. The folder is created if it is missing, and removed again by
        `release` if nothing else was written to it.
      what: what is locked, as in "the run in 'runs/a'", for messages.
      say: is told, in one line, of waiting for another owner and of a lock that was taken over.

    Raises:
      BusyError: another process holds the lock; names it.
      OSError: the file cannot be created.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path, self._what, self._say = path.absolute(), what, say
        self._owner = Owner.here()
        self._made_folder = not path.parent.exists()
        self._file = self._open()
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sign of life", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that the lock is still held.

        Raises:
          BusyError: another process has taken it over.
          MachineError: its file, or the folder, is gone.
        """
        found = _read(self.path)
        if found is None and not self.path.exists():
            raise MachineError(
                f"{self._what} is gone: '{self.path.parent}' was removed or renamed while this "
                "process used it",
                _LOST,
            )
        if found is not None and found.token != self._owner.token:
            raise BusyError(f"{self._what} was taken over by {found}; this process stops")

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # the file system may be gone, the lock then is as well
            if (found := _read(self.path)) is not None and found.token == self._owner.token:
                self.path.unlink()
            if self._made_folder:
                self.path.parent.rmdir()  # fails if something was written
        self._file.close()

    def _open(self) -> IO[bytes]:
        """The file of the lock, with an flock on it where the file system has locks."""
        until = time.monotonic() + PATIENCE
        while True:
            is_last = time.monotonic() > until
            # Anew each time: an owner that ends may have removed the folder.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b")
            try:
                self._has_flock = _flock(file)
                with contextlib.suppress(FileNotFoundError):
                    # An owner that ends removes the file, and this may be the removed one. In a
                    # mounted bucket, a file may change its number.
                    is_same = os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
                    if is_same or is_last:
                        return file
            except BlockingIOError:
                if is_last:
                    file.close()
                    raise self._busy(_read(self.path)) from None
                time.sleep(0.05)
            except BaseException:
                file.close()
                raise
            file.close()

    def _take(self) -> None:
        earlier = _read(self.path)
        if earlier is not None:
            if earlier.machine != self._owner.machine or not self._has_flock:
                self._await_silence(earlier)
            self._say(f"takes over the lock of {earlier}, which ended without releasing it")
        self._file.truncate(0)
        self._file.write(self._owner.content())
        self._file.flush()
        os.fsync(self._file.fileno())  # other machines see it only then
        if not self._has_flock:
            self._say(
                f"the file system of '{self.path.parent}' has no locks: only signs of life in "
                f"'{self.path.name}' keep two processes apart"
            )
            time.sleep(1.0)  # of two processes that start at once, the last one to write stays
            self.check()

    def _await_silence(self, earlier: Owner) -> None:
        """Waits until an owner that no flock can tell of must be dead.

        Raises:
          BusyError: it gave a sign of life.
        """
        seen = self.path.stat().st_mtime_ns
        wait = wait_for_life((_now(self.path.parent) - seen) / 1e9)
        self._say(
            f"{self._what} is locked by {earlier}; waits up to {wait:.0f} s for a sign of its life"
        )
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(min(1.0, wait / 10))
            if self.path.stat().st_mtime_ns != seen:
                raise self._busy(_read(self.path))

    def _busy(self, owner: Owner | None) -> BusyError:
        by = f"used by {owner}" if owner else "used by another process"
        return BusyError(f"{self._what} is {by}; wait for its end, or choose another folder")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # `check` tells, where it matters
                os.utime(self._file.fileno())


def wait_for_life(age: float) -> float:
    """Seconds to wait for the next sign of life of an owner, before it counts as dead.

    Args:
      age: seconds since its last one. A clock that was set back makes it negative, one that was set
        forward makes it large, so a few beats are awaited at any age.
    """
    return min(max(SILENCE - max(age, 0.0), 3 * BEAT), SILENCE)


def owner(path: Path) -> Owner | None:
    """The process that holds the lock of a file, as far as it can be told without touching it.

    Of another machine the last sign of life decides, by the clocks of both.
    """
    found = _read(path)
    if found is None:
        return None
    try:
        if found.machine != Owner.here().machine:
            return found if time.time() - path.stat().st_mtime < SILENCE else None
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return found
    except OSError as error:
        return found if error.errno in _NO_LOCKS else None
    return None


def share(path: Path) -> IO[bytes]:
    """Takes a lock that several processes may hold; it is held while the file is open.

    `await_free` waits until nobody holds it.
    """
    file = path.open("ab")
    let_share(file)
    return file


def let_share(file: IO[bytes]) -> None:
    """Turns the lock of a file, if there is one, into one that several processes may hold."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_SH)


def take(path: Path) -> IO[bytes] | None:
    """Takes a lock for this process alone; None if another one holds it, or shares it.

    It is held while the file is open. A file system without locks lets every process have it.
    """
    file = path.open("ab")
    try:
        _flock(file)
    except BlockingIOError:
        file.close()
        return None
    return file


def await_free(path: Path, what: str, patience: float = 10.0) -> None:
    """Waits until no process holds the lock of `share`.

    Args:
      what: what is locked, for the message.
      patience: seconds to wait. Workers need a moment to exit after their run was killed.

    Raises:
      BusyError: a process still holds it.
    """
    until = time.monotonic() + patience
    with path.open("ab") as file:
        while True:
            try:
                _flock(file)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BusyError(
                        f"workers of an earlier process still use {what}; wait for their end"
                    ) from None
                time.sleep(0.05)


def _flock(file: IO[bytes]) -> bool:
    """Locks a file or raises BlockingIOError; False where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _machine() -> str:
    """A number that Linux draws when it starts; "" elsewhere. Containers share that of their host.

    Their host names say nothing: two machines may have the same one.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _read(path: Path) -> Owner | None:
    """The owner that a lock states; None if it states none, or is being written."""
    try:
        return Owner.parse(path.read_bytes())
    except OSError:
        return None


def _now(folder: Path) -> int:
    """The time of the file system of `folder`, in nanoseconds since the epoch."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime_ns
