"""A lock on a folder of a store: one process at a time writes it.

It is an object that states its owner, `run.lock`, written anew every `locks.BEAT` seconds. A
process that finds one waits until it has been silent for `locks.SILENCE` seconds by the clock of
the store, and then takes it over. Where the store has conditional writes, of two processes that
start at once one gets it; elsewhere the last one to write. A mounted bucket shows it as the file
that `mmrl.locks` uses, so a run cannot be written through a mount at the same time.
"""

import contextlib
import datetime
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mmrl import files, locks
from mmrl.remote.store import Store, StoreError
from mmrl.types import BusyError

SETTLE = 1.0
"""Seconds after which a process makes sure that no other one took the lock at the same time."""

_PROBE = ".clock.tmp"


class Lease:
    """Held from its construction until `release`.

    Args:
      record: a local file, in a folder that no other process uses, that remembers the owner. If
        its process was killed, the next one on this machine need not wait.
      lost: is called, with the new owner, by a thread when another process has taken the lock.

    Raises:
      BusyError: another process holds the lock; names it.
      StoreError: the store cannot be written.
    """

    def __init__(
        self,
        store: Store,
        record: Path,
        say: Callable[[str], None],
        lost: Callable[[locks.Owner], None],
    ) -> None:
        self._store, self._record, self._say, self._lost = store, record, say, lost
        self._owner = locks.Owner.here()
        self.taken_by: locks.Owner | None = None
        self._take()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sign of life", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure, as far as the last sign of life tells, that the lock is still held.

        Raises:
          BusyError: another process has taken it over.
        """
        if self.taken_by is not None:
            raise BusyError(f"{self._store} was taken over by {self.taken_by}; this process stops")

    def release(self) -> None:
        """Releases the lock, if the store can be reached."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # it is then silent, and taken over
            if self._held_by() == self._owner:
                self._store.remove(locks.NAME)
        self._record.unlink(missing_ok=True)

    def _take(self) -> None:
        until = time.monotonic() + locks.PATIENCE
        while not self._store.create(locks.NAME, self._owner.content()):
            earlier = self._held_by()
            if earlier is None and self._store.entry(locks.NAME) is None:
                if time.monotonic() > until:
                    raise self._busy(None)
                continue  # its owner has just ended
            if not self._was_here(earlier):
                self._await_silence(earlier)
            self._say(f"takes over the lock of {earlier}, which ended without releasing it")
            self._store.remove(locks.NAME)
        files.write(self._record, self._owner.content())
        time.sleep(SETTLE)
        holder = self._held_by()
        if holder != self._owner:
            raise self._busy(holder)

    def _was_here(self, earlier: locks.Owner | None) -> bool:
        """Whether the owner was a process on this machine that has ended.

        Its record lies beside the local copy, which this process could not use otherwise.
        """
        try:
            found = locks.Owner.parse(self._record.read_bytes())
        except OSError:
            return False
        return found is not None and found == earlier

    def _await_silence(self, earlier: locks.Owner | None) -> None:
        """Waits until the owner must be dead.

        Raises:
          BusyError: it gave a sign of life.
        """
        seen = self._store.entry(locks.NAME)
        wait = locks.wait_for_life(self._age(seen.time if seen else ""))
        self._say(
            f"{self._store} is locked by {earlier or 'another process'}; waits up to {wait:.0f} s "
            "for a sign of its life"
        )
        until = time.monotonic() + wait
        while time.monotonic() < until:
            time.sleep(min(2.0, wait / 10))
            now = self._store.entry(locks.NAME)
            if now is None:
                return
            if seen is None or now.time != seen.time:
                raise self._busy(self._held_by())

    def _age(self, since: str) -> float:
        """Seconds since a time that the store stated, by its own clock; 0 if it cannot be told."""
        self._store.write(_PROBE, b"")
        probe = self._store.entry(_PROBE)
        self._store.remove(_PROBE)
        try:
            then, now = _seconds(since), _seconds(probe.time if probe else "")
        except ValueError:
            return 0.0
        return now - then

    def _held_by(self) -> locks.Owner | None:
        content = self._store.read(locks.NAME)
        return None if content is None else locks.Owner.parse(content)

    def _busy(self, holder: locks.Owner | None) -> BusyError:
        by = str(holder) if holder else "another process"
        return BusyError(f"{self._store} is used by {by}; wait for its end, or choose another")

    def _beat(self) -> None:
        while not self._ended.wait(locks.BEAT):
            with contextlib.suppress(StoreError):  # the uploads say so
                holder = self._held_by()
                if holder is not None and holder != self._owner:
                    self.taken_by = holder
                    self._lost(holder)
                    return
                self._store.write(locks.NAME, self._owner.content(), patience=0)


def _seconds(text: str) -> float:
    """A time as stores state it: seconds since the epoch, or a date."""
    try:
        return float(text)
    except ValueError:
        return datetime.datetime.fromisoformat(text).timestamp()
