"""Replaces ids by keyed hashes, for corpora whose ids or file names identify people.

With `--key-file`, the ids of records, patients, studies, leakage units and images that a
preparation writes are pseudonyms. The same key gives the same pseudonyms, so that later deliveries
of a hospital can be joined. Without the key, nobody can test which id a pseudonym stands for.
Reports are not changed: they must be de-identified beforehand.
"""

import dataclasses
import functools
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from typing import Any, TypeVar

from mmrl.preparation.encode import DECODE_ERRORS
from mmrl.types import InputError, Record, Reject, Source

T = TypeVar("T")

_KEY_BYTES = (32, 64)  # a shorter key can be guessed; BLAKE2b does not take a longer one
_DISTINCT = 16  # byte values of a key; 32 random bytes practically always have more
_WITHHELD = "withheld: the corpus is pseudonymised"


class UnreadableError(InputError):
    """An image or a mask cannot be read. The message does not name the file."""

    def __init__(self, reason: str) -> None:
        super().__init__(_WITHHELD)
        self.reason = reason


class Pseudonymised:
    """A source whose records and rejects have pseudonyms for ids; a Source.

    Args:
      source: has the original ids, which decide the split of a record, so the key does not.
      key: secret bytes, see `load_key`.

    Attributes:
      rejects: have pseudonyms and no detail, which may quote ids and file names.
      total, missing_images, warnings, facts, channels: those of the source.
    """

    def __init__(self, source: Source, key: bytes) -> None:
        self._source, self._key = source, key
        self.total = source.total
        self.rejects = [self._reject(reject) for reject in source.rejects]
        for name in ("missing_images", "warnings", "facts", "channels"):
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        hidden: dict[str, Any] = {
            "id": self._id(record.id),
            "patient_id": self._hidden(record.patient_id, "patient"),
            "study_id": self._hidden(record.study_id, "study"),
            "leakage_unit": self._hidden(
                record.leakage_unit, "group"
            ),  # "group" stays: it is hashed
            "prior_id": self._id(record.prior_id) if record.prior_id else "",
            "images": tuple(
                dataclasses.replace(
                    image,
                    key=self._hidden(image.key, "image"),
                    load=functools.partial(_load_silently, image.load),
                )
                for image in record.images
            ),
            "masks": record.masks and functools.partial(_load_silently, record.masks),
            "bag": record.bag and functools.partial(_load_silently, record.bag),
        }
        return dataclasses.replace(record, **hidden)

    def _hidden(self, value: str, kind: str) -> str:
        return pseudonym(self._key, value, kind)

    def _id(self, value: str) -> str:
        source, _, native = value.partition(":")
        return f"{source}:{self._hidden(native, 'record')}"

    def _reject(self, reject: Reject) -> Reject:
        return Reject(self._id(reject.id), reject.reason, _WITHHELD)


def _load_silently(load: Callable[[], T]) -> T:
    try:
        return load()
    except DECODE_ERRORS as error:  # the message may name the file
        raise UnreadableError(getattr(error, "reason", "unreadable_image")) from None


def pseudonym(key: bytes, value: str, kind: str) -> str:
    """A pseudonym of an identifier: 32 hexadecimal digits that only holders of the key can link.

    Keyed BLAKE2b (RFC 7693) of the value without padding, with `kind` as its personalisation: equal
    identifiers of a patient and of a study have unrelated pseudonyms.

    Args:
      key: 32 to 64 secret bytes.
      value: the identifier, not blank.
      kind: patient, study, series, instance or the like, at most 16 ASCII characters.

    Raises:
      InputError: a key of another length, a blank value, or a kind that is blank or too long.
    """
    _check_key(key)
    value = value.strip("\0 ")
    if not value:
        raise InputError(f"blank {kind} identifier; expected text to hash")
    if not re.fullmatch("[a-z_]{1,16}", kind):
        raise InputError(f"pseudonym kind {kind!r}; expected 1 to 16 small letters")
    text = value.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16, key=key, person=kind.encode()).hexdigest()


def load_key(path: str | os.PathLike[str]) -> bytes:
    """Reads a key of 32 to 64 bytes, raw or as hexadecimal digits.

    Raises:
      InputError: no such file, a file that all users may read or write, or a key that is too
        short, too long or evidently not random.
    """
    name = os.fspath(path)
    problem, data = "", b""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(4096)
    except OSError as error:
        raise InputError(f"key file {name}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        problem = "not a plain file"
    elif mode & 0o007:
        problem = f"mode {stat.S_IMODE(mode):04o} lets every user in; expected 0600"
    if problem:
        raise InputError(f"key file {name}: {problem}")
    text = data.strip()
    key = bytes.fromhex(text.decode()) if re.fullmatch(rb"(?:[0-9A-Fa-f]{2})+", text) else data
    low, high = _KEY_BYTES
    if not low <= len(key) <= high:
        raise InputError(f"key file {name}: {len(key)} bytes; expected {low} to {high}")
    if len(set(key)) < _DISTINCT:
        raise InputError(f"key file {name}: {len(set(key))} distinct bytes; expected random ones")
    return key


def new_key(path: str | os.PathLike[str]) -> None:
    """Writes a new random key of 32 bytes to a file that only its owner may read.

    Raises:
      InputError: the file exists, or cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_KEY_BYTES[0]) + "\n")
    except OSError as error:
        raise InputError(f"key file {os.fspath(path)}: {error.strerror}") from error


def _check_key(key: bytes) -> None:
    low, high = _KEY_BYTES
    if not low <= len(key) <= high:
        raise InputError(f"a key of {len(key)} bytes; expected {low} to {high}")
