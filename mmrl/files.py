"""Files and folders that appear whole or not at all, also after a crash or a power cut."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
    except BaseException:
        fresh.unlink(missing_ok=True)
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
