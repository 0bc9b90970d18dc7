"""Folders of an object store, through fsspec; the only file that imports it.

A failure that may pass, such as a lost connection, is tried again with growing pauses. Credentials
are those that the package of the store finds in its own environment variables and files.
"""

import contextlib
import copy
import datetime
import errno
import importlib
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mmrl import files
from mmrl.types import InputError, MachineError, first_line

PATIENCE = 15.0
"""Seconds for which a command tries again before it gives up."""

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")
# Addresses of something else: encoders on the Hugging Face hub, and pages.
_OTHERS = {"hf", "http", "https"}
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
_LOCAL = {"file", "local"}
_PAUSES = 0.5, 8.0  # seconds: the first pause between two attempts, and the longest
_SHOWN = 200  # characters of an error of the store
# What names the content of an object, the surest first; then its time.
_TAGS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "generation")
_TIMES = ("mtime", "created", "LastModified", "last_modified", "updated", "modified")
_UNAVAILABLE, _NO_PERMISSION = 69, 77  # EX_UNAVAILABLE and EX_NOPERM of sysexits.h
_LASTING = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "NoRegionError",
    "ParamValidationError",
    "DefaultCredentialsError",
}
"""Names of errors of the packages of stores that no second attempt cures."""

T = TypeVar("T")


def is_address(given: Any) -> bool:
    """Whether a value is an address of a store, such as s3://bucket/run.

    hf://OWNER/NAME is an encoder on the Hugging Face hub and no such address.
    """
    match = _ADDRESS.fullmatch(given) if isinstance(given, str) else None
    return match is not None and match[1] not in _OTHERS


class StoreError(MachineError):
    """A store that cannot be reached, or that refused what was asked."""


class Entry(NamedTuple):
    """An object.

    Attributes:
      size: bytes.
      tag: differs where the content differs; "" if the store states none.
      time: when it was written, by the clock of the store, as the store writes it.
    """

    size: int
    tag: str
    time: str


class Store:
    """A folder of an object store. Keys are paths relative to it, with slashes.

    Args:
      where: the flag or key that names it, for messages.
      address: SCHEME://BUCKET/FOLDER.

    Raises:
      InputError: an address of another form, an unknown scheme, or a package is missing.
    """

    def __init__(self, where: str, address: str) -> None:
        match, given = _ADDRESS.fullmatch(address), f"{where}={address}"
        if match is None:
            raise InputError(f"{given}; expected SCHEME://BUCKET/FOLDER, such as s3://bucket/run")
        scheme, rest = match.groups()
        if "@" in rest.split("/")[0]:  # what follows would repeat a password
            raise InputError(
                f"{where}: the address holds a user or a password; expected {scheme}://BUCKET/"
                "FOLDER, with the credentials in the variables or files of the store"
            )
        if found := re.search(r"::|[*?#\[\]\\]", rest):
            raise InputError(f"{given}: {found[0]!r} is not allowed in an address")
        parts = rest.strip("/").split("/")
        if not parts[0] or any(part in ("", ".", "..") for part in parts):
            raise InputError(f"{given}; expected SCHEME://BUCKET/FOLDER without empty parts and ..")
        self.address = f"{scheme}://{rest.rstrip('/')}"
        self.name = parts[-1]
        self._is_local = scheme in _LOCAL
        fsspec = importlib.import_module("fsspec")  # here, so that --help starts at once
        if scheme not in fsspec.available_protocols():
            raise InputError(f"{given}: unknown scheme {scheme}://; such as s3://, gs://, file://")
        options = {"auto_mkdir": True} if self._is_local else {}
        try:
            self._files: Any = fsspec.filesystem(scheme, **options)
        except ImportError as error:
            package = _PACKAGES.get(scheme, "")
            cure = f"it needs pip install {package}" if package else first_line(error)
            raise InputError(f"{given}: {cure}") from None
        self._root: str = self._files._strip_protocol(self.address).rstrip("/")
        self._only = ""

    def __str__(self) -> str:
        return self.address

    @property
    def parent(self) -> str:
        """The address of the folder around this one; "" for a bucket."""
        scheme, _, rest = self.address.partition("://")
        above = rest.rpartition("/")[0]
        return f"{scheme}://{above}" if above.strip("/") else ""

    def is_file(self) -> bool:
        """Whether the address is that of one object and not of a folder."""
        self._files.invalidate_cache()
        return self._tried("read", lambda: bool(self._files.isfile(self._root)))

    def as_file(self) -> "Store":
        """The folder around the object that this address names, of which it has that one alone."""
        made = copy.copy(self)
        made._root, _, made._only = self._root.rpartition("/")
        return made

    def entries(self, patience: float | None = None) -> dict[str, Entry]:
        """All objects by key; {} where there is nothing.

        Raises:
          InputError: a key that is no path below the folder, so it has no place in a local copy.
          StoreError: the store cannot be read.
        """

        if self._only:
            entry = self.entry(self._only, patience)
            return {} if entry is None else {self._only: entry}

        def find() -> Mapping[str, Mapping[str, Any]]:
            self._files.invalidate_cache()
            try:
                found: Mapping[str, Mapping[str, Any]] = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            return found

        found = {}
        for name, facts in self._tried("read", find, patience).items():
            if facts.get("type") == "directory" or name.endswith("/") or name == self._root:
                continue  # some tools write an empty object for a folder
            found[self._key_of(name)] = _entry(facts)
        folders = {above for key in found for above in _above(key)}
        for key in [key for key in found if key in folders]:
            if found.pop(key).size:
                raise InputError(f"{self}: {key!r} is a file and a folder; a local copy cannot be")
        return found

    def entry(self, key: str, patience: float | None = None) -> Entry | None:
        """One object; None if there is none."""

        def look() -> Entry | None:
            self._files.invalidate_cache()
            try:
                return _entry(self._files.info(self._path(key)))
            except FileNotFoundError:
                return None

        return self._tried("read", look, patience)

    def get(self, key: str, path: Path, patience: float | None = None) -> None:
        """Downloads an object to a file.

        Raises:
          FileNotFoundError: there is no such object, any more.
          StoreError: it cannot be read.
          OSError: the file cannot be written.
        """
        with files.whole(path) as fresh:
            self._tried("read", lambda: self._files.get_file(self._path(key), str(fresh)), patience)

    def put(self, path: Path, key: str, patience: float | None = None) -> None:
        """Uploads a file.

        Raises:
          FileNotFoundError: there is no such file.
          StoreError: it cannot be written.
        """
        if self._is_local:  # other stores show an object once it is whole
            with files.whole(self._path(key)) as fresh:
                shutil.copyfile(path, fresh)
            return

        def upload() -> None:
            try:
                self._files.put_file(str(path), self._path(key))
            except FileNotFoundError as error:
                path.stat()
                raise self._refused("write to", error) from error

        self._tried("write to", upload, patience)

    def read(self, key: str, patience: float | None = None) -> bytes | None:
        """The content of a small object; None if there is none."""

        def fetch() -> bytes | None:
            try:
                content: bytes = self._files.cat_file(self._path(key))
                return content
            except FileNotFoundError:
                return None

        return self._tried("read", fetch, patience)

    def write(self, key: str, content: bytes, patience: float | None = None) -> None:
        """Writes a small object."""

        def send() -> None:
            try:
                self._files.pipe_file(self._path(key), content)
            except FileNotFoundError as error:
                raise self._refused("write to", error) from error

        self._tried("write to", send, patience)

    def create(self, key: str, content: bytes, patience: float | None = None) -> bool:
        """Writes a small object where there is none; returns whether there was none.

        A store without conditional writes replaces one that appears at the same moment.
        """

        def send() -> bool:
            if self._is_local:
                Path(self._path(key)).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._files.pipe_file(self._path(key), content, mode="create")
            except FileExistsError:
                return False
            except FileNotFoundError as error:
                raise self._refused("write to", error) from error
            except (NotImplementedError, TypeError, ValueError):
                if self._files.exists(self._path(key)):
                    return False
                self._files.pipe_file(self._path(key), content)
            return True

        return self._tried("write to", send, patience)

    def remove(self, key: str, patience: float | None = None) -> None:
        """Removes an object, if it is there."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(key))

        self._tried("write to", remove, patience)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _key_of(self, name: str) -> str:
        """The key of an object that the store lists by its whole name.

        Raises:
          InputError: it would lie outside of a local copy.
        """
        key = name.removeprefix(f"{self._root}/")
        parts = key.split("/")
        outside = key == name or any(part in ("", ".", "..") for part in parts)
        if outside or re.search(r"[\\\0\n]", key):
            raise InputError(
                f"{self} holds an object whose name has no place in a folder: {name!r}; remove or "
                "rename it"
            )
        return key

    def _tried(self, doing: str, do: Callable[[], T], patience: float | None = None) -> T:
        """What `do` returns; tried again for `patience` or PATIENCE seconds while it fails."""
        until = time.monotonic() + (PATIENCE if patience is None else patience)
        pause, longest = _PAUSES
        while True:
            try:
                return do()
            except (FileNotFoundError, MachineError, InputError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in files.FULL:
                    raise  # of the local disk
                lasting = isinstance(error, PermissionError | TypeError | ValueError)
                lasting |= type(error).__name__ in _LASTING
                if lasting or time.monotonic() + pause > until:
                    raise self._refused(doing, error) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, longest)

    def _refused(self, doing: str, error: Exception) -> StoreError:
        why = first_line(error) or type(error).__name__
        is_denied = isinstance(error, PermissionError) or getattr(error, "errno", 0) == errno.EACCES
        status = _NO_PERMISSION if is_denied else _UNAVAILABLE
        return StoreError(f"cannot {doing} {self}: {why[:_SHOWN]}", status)


def _entry(facts: Mapping[str, Any]) -> Entry:
    time = next((_text(facts[name]) for name in _TIMES if facts.get(name)), "")
    tag = next((str(facts[name]) for name in _TAGS if facts.get(name)), "")
    if not tag and time:  # of a file, its time and number
        tag = f"{time} {facts.get('ino', '')}".strip()
    return Entry(int(facts.get("size") or 0), tag.strip('"'), time)


def _text(time: Any) -> str:
    """A time, which some stores list as a number and state as an object."""
    return str(time.timestamp() if isinstance(time, datetime.datetime) else time)


def _above(key: str) -> list[str]:
    """The folders that hold a key."""
    parts = key.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
