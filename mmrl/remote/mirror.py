"""A local folder and a folder of a store that are made equal, first one way and then the other.

The store is the truth. At the start the local folder becomes equal to it; while a command works,
what changes is uploaded, in an order that never shows half of a checkpoint: first all small files,
which must not lag behind it, then the files of a step, then its checksums, then steps that were
dropped are removed, their checksums first. A step without checksums is therefore no step.
"""

import concurrent.futures
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from mmrl import files, locks
from mmrl.remote.lease import Lease
from mmrl.remote.place import Place
from mmrl.remote.store import Entry, Store, StoreError
from mmrl.types import BusyError, MachineError

INTERVAL = 5.0
"""Seconds between two looks for changes; more where an upload takes longer."""
LAST_PATIENCE = 120.0
"""Seconds for which the last upload is tried again."""

_LONGEST = 60.0  # seconds between two looks
_THREADS = 8
_STEP = re.compile(r"checkpoints/(\d+)/(.+)")
# The second one is in steps of earlier versions, which have no checksums.
_SEALS = ("checksums.json", "commit_success.txt")
_WRITING = ".orbax-checkpoint-tmp"  # in the name of a step that is being written
_CANNOT_CREATE = 73  # EX_CANTCREAT of sysexits.h

T = TypeVar("T")


class _Stamp(NamedTuple):
    """What tells whether a local file changed: bytes, and time of its change in nanoseconds."""

    size: int
    changed: int


class _Same(NamedTuple):
    """An object and a file that were equal."""

    entry: Entry
    stamp: _Stamp


class Mirror:
    """A local copy of a folder of a store.

    Args:
      say: prints a line.
    """

    def __init__(self, store: Store, place: Place, say: Callable[[str], None]) -> None:
        self.store, self.place, self.folder = store, place, place.folder
        self._say = say
        self._same = self._remembered()
        self._written = dict(self._same)
        self._lease: Lease | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._below: set[str] = set()

    def pull(self) -> None:
        """Makes the local folder equal to the store; downloads only what differs.

        Raises:
          InputError: see `Store.entries`.
          MachineError: the store cannot be read, or the disk is too small.
        """
        for _ in range(3):
            entries = _whole(self.store.entries())
            self._drop(entries)
            wanted = self.differing(entries)
            if not wanted:
                return
            self._check_disk(wanted)
            try:
                self._download(wanted)
                return
            except FileNotFoundError:  # its writer removed a step meanwhile
                continue
        raise StoreError(f"cannot read {self.store}: its objects vanish while they are read", 69)

    def differing(self, entries: Mapping[str, Entry] | None = None) -> dict[str, Entry]:
        """What the local folder lacks or has otherwise than the store."""
        listed = _whole(self.store.entries()) if entries is None else entries
        found = {}
        for key, entry in listed.items():
            same, stamp = self._same.get(key), _stamp(self.folder / key)
            if same is None or stamp != same.stamp or same.entry[:2] != entry[:2] or not entry.tag:
                found[key] = entry
        return found

    def write(self) -> None:
        """Locks the folder of the store, makes the local one equal, and uploads what changes.

        Raises:
          BusyError: another process writes it.
          InputError, MachineError: as of `pull`.
        """
        self._lease = Lease(self.store, self.place.owner, self._say, self._on_lost)
        try:
            listed = self.store.entries()
            whole = _whole(listed)
            for key in listed.keys() - whole.keys():
                if _STEP.fullmatch(key):  # of a step whose upload was cut short
                    self.store.remove(key)
            self.pull()
        except BaseException:
            self._lease.release()
            raise
        self._thread = threading.Thread(target=self._follow, name="upload", daemon=True)
        self._thread.start()

    def add(self, path: Path) -> None:
        """Uploads what is below a path of a folder that is only read, at the end."""
        self._below.add(path.absolute().relative_to(self.folder.absolute()).as_posix())

    def close(self, *, complete: bool) -> None:
        """Awaits the last upload.

        Args:
          complete: the command ended as it should, so files that it removed are removed from the
            store as well.

        Raises:
          MachineError: something could not be uploaded; says where it is.
          BusyError: another process took the folder over.
        """
        self._ended.set()
        try:
            if self._thread is not None:
                self._thread.join()
            if self._thread is not None or self._below:
                self._end(complete=complete)
        finally:
            if self._lease is not None:
                self._lease.release()
            self.place.release()

    def _end(self, *, complete: bool) -> None:
        if self._lease is not None:
            self._lease.check()
        try:
            count = self.push(LAST_PATIENCE, removing=complete and self._lease is not None)
        except (StoreError, OSError) as error:
            why = str(error) if isinstance(error, StoreError) else f"cannot upload: {error}"
            status = error.status if isinstance(error, StoreError) else files.IO
            raise MachineError(
                f"{why}; what is not in {self.store} is in '{self.folder}': copy it there before "
                "you start the command again, which begins with what the store holds",
                status,
            ) from error
        if count or self._thread is not None:
            self._say(f"uploaded: {self.store}")

    def push(self, patience: float = 0.0, *, removing: bool = False) -> int:
        """Uploads what changed, in the order that the module states.

        Args:
          patience: seconds for which a failure is tried again.
          removing: whether to remove from the store what is gone here, beside steps.

        Returns:
          The number of uploaded files.

        Raises:
          StoreError: the store cannot be written; nothing that comes later in the order was.
          BusyError: another process took the folder over.
        """
        steps = self._steps()  # before the other files, so that those are not older than a step
        local = {key: one for key, one in self._scan() if self._is_chosen(key)}
        others = [key for key in local if not _STEP.fullmatch(key)]
        count = self._upload(others, patience)
        for step in steps if not self._below else ():
            count += self._push_step(step, patience)
        self._check()
        if any(f"checkpoints/{step}/{seal}" in self._same for step in steps for seal in _SEALS):
            self._remove_steps(patience)
        if removing and self.folder.is_dir():
            gone = [
                key
                for key in self._same
                if not _STEP.fullmatch(key) and not (self.folder / key).exists()
            ]
            self._remove(gone, patience)
        self._remember()
        return count

    def _push_step(self, step: int, patience: float) -> int:
        """Uploads a step whose checksums are written; they come last."""
        top = f"checkpoints/{step}/"
        local = dict(self._scan(self.folder / top))
        seals = [key for key in local if key.removeprefix(top) in _SEALS]
        if not seals:
            return 0  # it was dropped meanwhile
        changed = [key for key, stamp in local.items() if not self._is_same(key, stamp)]
        known = [key for key in self._same if key.startswith(top)]
        gone = [key for key in known if key not in local]
        if not changed and not gone:
            return 0
        # An earlier step of this number is none from here on.
        self._remove([key for key in known if key.removeprefix(top) in _SEALS], patience)
        self._remove([key for key in gone if key in self._same], patience)
        count = self._upload([key for key in local if key not in seals], patience)
        if self._steps([step]) and all(_stamp(self.folder / key) == local[key] for key in local):
            count += self._upload(seals, patience)
        self._remember()
        return count

    def _remove_steps(self, patience: float) -> None:
        """Removes steps that are gone here, now that those that took their place are there."""
        known = {int(match[1]) for key in self._same if (match := _STEP.fullmatch(key))}
        for step in sorted(known):
            if (self.folder / "checkpoints" / str(step)).exists():
                continue
            top = f"checkpoints/{step}/"
            keys = [key for key in self._same if key.startswith(top)]
            seals = [key for key in keys if key.removeprefix(top) in _SEALS]
            self._remove(seals, patience)
            self._remove([key for key in keys if key not in seals], patience)

    def _steps(self, of: Collection[int] | None = None) -> list[int]:
        """Local steps that are complete, ascending."""
        folder = self.folder / "checkpoints"
        try:
            names = os.listdir(folder) if of is None else map(str, of)
        except OSError:
            return []
        found = [n for n in names if n.isdecimal()]
        return sorted(int(n) for n in found if any((folder / n / s).exists() for s in _SEALS))

    def _upload(self, keys: Collection[str], patience: float) -> int:
        """Uploads the files that changed; returns their number. Files that are gone are left."""

        def upload(key: str) -> bool:
            self._check()
            path = self.folder / key
            stamp = _stamp(path)
            if stamp is None or self._is_same(key, stamp):
                return False
            try:
                self.store.put(path, key, patience)
            except FileNotFoundError:
                return False
            entry = self.store.entry(key, patience)
            # A file that grew meanwhile has another stamp, and is uploaded again.
            if entry is not None:
                self._same[key] = _Same(entry, stamp)
            return True

        return sum(self._together(upload, keys))

    def _download(self, entries: Mapping[str, Entry]) -> None:
        total = sum(entry.size for entry in entries.values())
        self._say(
            f"fetches {len(entries):,} files, {total / 1e6:,.1f} MB, from {self.store} to "
            f"'{self.folder}'"
        )

        def download(key: str) -> None:
            path = self.folder / key
            self.store.get(key, path)
            stamp = _stamp(path)
            if stamp is None or stamp.size != entries[key].size:
                raise FileNotFoundError(key)  # it was written anew since it was listed
            self._same[key] = _Same(entries[key], stamp)

        try:
            self._together(download, entries)
        finally:
            self._remember()

    def _drop(self, entries: Mapping[str, Entry]) -> None:
        """Removes local files that the store does not have, and folders without files."""
        steps = set()
        for folder, _, names in os.walk(self.folder, topdown=False):
            for name in names:
                path = Path(folder, name)
                key = path.relative_to(self.folder).as_posix()
                if key not in entries:
                    if key not in self._same and (match := _STEP.fullmatch(key)):
                        steps.add(int(match[1]))
                    path.unlink()
            if Path(folder) != self.folder and not os.listdir(folder):
                os.rmdir(folder)
        for step in sorted(steps):
            self._say(f"drops the local copy of checkpoint {step}, which is not in {self.store}")
        self._same = {key: one for key, one in self._same.items() if key in entries}

    def _check_disk(self, entries: Mapping[str, Entry]) -> None:
        needed, free = sum(one.size for one in entries.values()), files.free_bytes(self.folder)
        if needed > free:
            raise MachineError(
                f"{self.store} holds {needed / 1e6:,.1f} MB that are not in '{self.folder}' yet, "
                f"but {free / 1e6:,.1f} MB are free; free some space, or set MMRL_CACHE to a "
                "folder on a larger disk",
                _CANNOT_CREATE,
            )

    def _remove(self, keys: Collection[str], patience: float) -> None:
        def remove(key: str) -> None:
            self._check()
            self.store.remove(key, patience)
            del self._same[key]

        self._together(remove, keys)

    def _together(self, do: Callable[[str], T], keys: Collection[str]) -> list[T]:
        """Does something with each key, several at once; raises the first error."""
        if not keys:
            return []
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            waiting = [pool.submit(do, key) for key in keys]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _scan(self, top: Path | None = None) -> Iterator[tuple[str, _Stamp]]:
        """The files to be uploaded, by key."""
        cache = _compile_cache()
        for folder, below, names in os.walk(top or self.folder):
            here = Path(folder)
            below[:] = [
                name
                for name in below
                if not files.is_unfinished(here / name)
                and _WRITING not in name
                and str((here / name).absolute()) != cache
            ]
            for name in names:
                if name == locks.NAME or files.is_unfinished(here / name):
                    continue
                if (stamp := _stamp(here / name)) is not None:
                    yield (here / name).relative_to(self.folder).as_posix(), stamp

    def _is_chosen(self, key: str) -> bool:
        """Whether a file is to be uploaded; of a folder that is only read, few are."""
        return not self._below or any(
            top == "." or key == top or key.startswith(f"{top}/") for top in self._below
        )

    def _is_same(self, key: str, stamp: _Stamp) -> bool:
        same = self._same.get(key)
        return same is not None and same.stamp == stamp

    def _check(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _follow(self) -> None:
        """Uploads what changes, until the end."""
        pause, failing = INTERVAL, False
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self.push()
            except BusyError:
                return
            except (StoreError, OSError) as error:
                if not failing:
                    self._say(
                        f"{error}; the work goes on in '{self.folder}', and the upload is tried "
                        "again"
                    )
                failing, pause = True, min(2 * pause, _LONGEST)
                continue
            if failing:
                self._say(f"uploads to {self.store} go on")
            failing = False
            pause = min(max(INTERVAL, time.monotonic() - began), _LONGEST)

    def _on_lost(self, holder: locks.Owner) -> None:
        """Another process writes the folder: the run in it finds the lock taken over as well."""
        path = self.folder / locks.NAME
        if path.exists():
            path.write_bytes(holder.content())

    def _remembered(self) -> dict[str, _Same]:
        """What the last process wrote of both sides; {} if it is not whole."""
        try:
            content = json.loads(self.place.state.read_bytes())
            return {
                str(key): _Same(Entry(*one["entry"]), _Stamp(*one["file"]))
                for key, one in content.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _remember(self) -> None:
        """Writes for the next process what both sides were equal in, if that changed."""
        if self._same == self._written:
            return
        content = {key: {"entry": one.entry, "file": one.stamp} for key, one in self._same.items()}
        files.write_json(self.place.state, content)
        self._written = dict(self._same)


def _whole(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """What a local copy has of a folder: no locks, unfinished files and steps without checksums."""
    sealed = {match[1] for key in entries if (match := _STEP.fullmatch(key)) and match[2] in _SEALS}
    return {
        key: entry
        for key, entry in entries.items()
        if key.rpartition("/")[2] != locks.NAME
        and not any(files.is_unfinished(Path(part)) for part in key.split("/"))
        and ((match := _STEP.fullmatch(key)) is None or match[1] in sealed)
    }


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _Stamp(found.st_size, found.st_mtime_ns)


def _compile_cache() -> str:
    """The folder of compiled programs, which may lie in a run directory."""
    jax = sys.modules.get("jax")
    return str(jax.config.jax_compilation_cache_dir or "") if jax is not None else ""
