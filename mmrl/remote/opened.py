"""The local copies that this process uses: what commands and sources call with an address."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mmrl.remote.mirror import Mirror
from mmrl.remote.place import Place
from mmrl.remote.store import Store, is_address
from mmrl.types import BusyError, InputError, MachineError

__all__ = ["closing", "fetched", "is_address", "located", "reading", "writing", "written"]

_WRITTEN: dict[str, Mirror] = {}  # by address
_READ: dict[str, Mirror] = {}
_FETCHED: dict[str, Path] = {}  # files of corpora, which stay as they are while a command works
_HELD: list[Place] = []  # of corpora, until this process ends


def _say(line: str) -> None:
    print(line, flush=True)


def reading(where: str, address: str, say: Callable[[str], None] = _say) -> Path:
    """A local copy of a folder of a store, as it is now, for this process alone.

    Args:
      where: the flag or argument that names it, for messages.
      say: is told what is fetched.

    Raises:
      InputError: a wrong address, or there is nothing at it.
      MachineError: the store cannot be read, or the disk is too small.
    """
    store = Store(where, address)
    if store.address not in _READ:
        with _placed(Place.own(store.address, store.name)) as place:
            mirror = Mirror(store, place, say)
            mirror.pull()
            if not any(mirror.folder.iterdir()):
                raise InputError(f"{where}={address}: there is nothing at this address")
        _READ[store.address] = mirror
    return _READ[store.address].folder


def writing(where: str, address: str, say: Callable[[str], None] = _say) -> Path:
    """A local copy of a folder of a store, which need not exist yet; changes are uploaded.

    The block of `closing` awaits the last upload.

    Args:
      where, say: as of `reading`.

    Raises:
      BusyError: another process writes the folder.
      InputError, MachineError: as of `reading`.
    """
    store = Store(where, address)
    if store.address not in _WRITTEN:
        with _placed(Place.own(store.address, store.name)) as place:
            mirror = Mirror(store, place, say)
            mirror.write()
        _WRITTEN[store.address] = mirror
        say(f"{store} has its local copy in '{mirror.folder}'")
    return _WRITTEN[store.address].folder


def written(path: Path) -> None:
    """Says that a command writes below a path, which may lie in a copy that `reading` made."""
    for mirror in _READ.values():
        if path.absolute().is_relative_to(mirror.folder.absolute()):
            mirror.add(path)


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """Awaits the last uploads when the block ends, also after an error of it.

    Raises:
      MachineError, BusyError: see `Mirror.close`; after an error of the block, a line on stderr
        says so instead, and the error of the block goes on.
    """
    try:
        yield
    except BaseException:
        for failure in _close(complete=False):
            with contextlib.suppress(OSError, ValueError):
                print(f"error: {failure}", file=sys.stderr, flush=True)
        raise
    for failure in _close(complete=True):
        raise failure


def _close(*, complete: bool) -> list[MachineError | BusyError]:
    """Closes all copies; returns what went wrong."""
    failures: list[MachineError | BusyError] = []
    for mirror in [*_WRITTEN.values(), *_READ.values()]:
        try:
            mirror.close(complete=complete)
        except (MachineError, BusyError) as error:
            failures.append(error)
    _WRITTEN.clear()
    _READ.clear()
    return failures


def fetched(where: str, address: str, say: Callable[[str], None] = _say) -> Path:
    """A local copy of a file or folder of a corpus, which all processes of this machine share.

    Args:
      where, say: as of `reading`.

    Raises:
      BusyError: the copy differs from the store, and another process uses it.
      InputError, MachineError: as of `reading`.
    """
    if address not in _FETCHED:
        store = Store(where, address)
        is_file = store.is_file()
        folder = _shared(store.as_file() if is_file else store, say)
        if not any(folder.iterdir()):
            raise InputError(f"{where}={address}: there is nothing at this address")
        _FETCHED[address] = folder / store.name if is_file else folder
    return _FETCHED[address]


def located(where: str, address: str, *, with_folder: bool) -> Path:
    """A file or folder of a corpus as of `fetched`.

    Args:
      with_folder: of a file, the folder around it is fetched whole, for what lies beside it.
    """
    if with_folder and address not in _FETCHED:
        store = Store(where, address)
        if store.parent and store.is_file():
            return fetched(where, store.parent) / store.name
    return fetched(where, address)


def _shared(store: Store, say: Callable[[str], None]) -> Path:
    """The copy of a corpus, equal to the store."""
    with _placed(Place.common(store.address, store.name, say)) as place:
        mirror = Mirror(store, place, say)
        if place.is_exclusive:
            mirror.pull()
            place.share()
        elif mirror.differing():
            raise BusyError(
                f"{store} changed while another process on this machine uses its local copy in "
                f"'{mirror.folder}'; wait for the end of that process"
            )
    _HELD.append(place)
    return mirror.folder


@contextlib.contextmanager
def _placed(place: Place) -> Iterator[Place]:
    """Releases a place if the block raises."""
    try:
        yield place
    except BaseException:
        place.release()
        raise
