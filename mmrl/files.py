"""Files and folders that appear whole or not at all, also after a crash or a power cut."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.types import MachineError

# Exit statuses of sysexits.h: EX_CANTCREAT, EX_IOERR, EX_NOPERM.
_CANNOT_CREATE, IO, _NO_PERMISSION = 73, 74, 77
_STATUS = {
    errno.EROFS: _CANNOT_CREATE,
    errno.ENOTDIR: _CANNOT_CREATE,
    errno.EISDIR: _CANNOT_CREATE,
    errno.EEXIST: _CANNOT_CREATE,
    errno.ENAMETOOLONG: _CANNOT_CREATE,
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk that is full, a quota that is used up and a limit on the size of a file."""
_QUOTED = (*FULL, errno.EIO, errno.ESTALE, *_STATUS)


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to; its file takes the place of `path` when the block ends.

    The file is written beside its place, flushed to the disk and renamed. If the block raises,
    `path` stays as it was. Missing parent folders are created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        sync(fresh)
        place(fresh, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        # A full disk is told of an open file, without its name.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new folder to write to, which takes the place of `path` when the block ends.

    If the block raises, nothing is left of it. Missing parent folders are created.

    Raises:
      OSError: `path` is there and not an empty folder.
    """
    target = Path(path)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    fresh.mkdir(parents=True)
    try:
        yield fresh
        sync(fresh)
        place(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def is_unfinished(path: Path) -> bool:
    """Whether a process that was killed may have left this file or folder of `whole`."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left of `whole` in a folder and its subfolders."""
    for path in folder.rglob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes bytes, or text as UTF-8 with lone surrogates replaced; see `whole`."""
    data = content.encode(errors="replace") if isinstance(content, str) else content
    with whole(path) as fresh:
        fresh.write_bytes(data)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes indented JSON; see `whole`."""
    write(path, json.dumps(content, indent=2) + "\n")


def place(fresh: Path, path: Path) -> None:
    """Renames a file or folder that is on the disk to its place, for good."""
    fresh.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike[str]) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def outside(
    error: OSError, doing: str, then: str = "", *, where: Path | None = None
) -> MachineError:
    """What to raise, in one line, where the machine and not the user's input is at fault.

    Args:
      error: what the operating system said.
      doing: what failed, as in "cannot save step 40".
      then: what is kept, and what to do.
      where: the file or folder, if the error names none, as those of open files.
    """
    why = error.strerror or str(error) or type(error).__name__
    named = isinstance(error.filename, str | bytes)
    path = Path(os.fsdecode(error.filename)) if named else where
    if path is not None:
        why += f" ('{path}'"
        if error.errno in FULL:
            why += f", {free_bytes(path) / 1e6:,.1f} MB free"
        why += ")"
    message = f"{doing}: {why}{'; ' if then else ''}{then}"
    return MachineError(" ".join(message.split()), _STATUS.get(error.errno or 0, IO))


def cause(error: BaseException) -> OSError | None:
    """The error of the operating system that an error of a library tells of; None for others.

    Libraries in C++ only quote the words of the operating system.
    """
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno is not None:
            return at
        for number in _QUOTED:
            if os.strerror(number) in str(at):
                return OSError(number, os.strerror(number))
        at = at.__cause__ or at.__context__
    return None


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a file or folder, which need not exist; a quota may leave less."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
