"""Opens text files: plain or gzipped, in the encoding that their first bytes or the user states.

A file that could fill the memory raises InputError: one that unpacks to far more than text does,
or that has an extremely long line. So does a byte that is no text in the encoding.
"""

import codecs
import gzip
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmrl.types import InputError

LONGEST_LINE = 2**24  # characters; reports have thousands
# Tables of labels unpack to 10 to 30 times their size; the greatest ratio of gzip is 1032.
MAX_RATIO = 100
_MAX_SMALL = 2**20  # bytes to which a compressed file of any size may unpack
_HEAD = 2**12  # bytes that show what a file is
_GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"

# Byte-order mark -> encoding of what follows. UTF-32 comes first: its mark begins like UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# First bytes -> what such a file is, and what to do about it.
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip file, such as an Excel workbook; save the sheet as 'CSV UTF-8'",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls); save the sheet as 'CSV UTF-8'",
    b"%PDF": "a PDF document",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ\0": "compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"SQLite format 3\0": "an SQLite database; export the table",
}
_PAGES = (b"<!doctype html", b"<html")
MARK = "mmrl.mark"  # handles errors: what is no text becomes the character below
_MARKED = "\udc80"  # no text that is decoded strictly has an unpaired surrogate
codecs.register_error(MARK, lambda error: (_MARKED, error.end))  # type: ignore[attr-defined]


class TextFile(NamedTuple):
    """How a file is read.

    Attributes:
      packed: whether it is gzipped.
      encoding: name of its encoding.
      skipped: bytes of its byte-order mark.
      head: its first bytes, unpacked.
      notes: what was decided for the user, one line each.
    """

    path: str
    packed: bool
    encoding: str
    skipped: int
    head: bytes
    notes: tuple[str, ...]

    def open(self) -> io.BufferedReader:
        """The bytes after the byte-order mark, unpacked."""
        file = _open(self.path, self.packed)
        file.read(self.skipped)
        return file

    def text(self, *, newline: str = "", errors: str = "strict") -> io.TextIOWrapper:
        """The characters; line ends as in the file."""
        return io.TextIOWrapper(self.open(), self.encoding, errors, newline)

    def check(self, rows: Callable[[io.TextIOWrapper], Iterator[str]]) -> None:
        """Raises InputError for the first byte that is no text: its row, place and value.

        Args:
          rows: file -> the text of the header, and of each row.
        """
        bad = self._first_bad()
        if bad is None:
            return
        offset, run = bad
        with self.text(errors=MARK) as file:
            found = (number for number, text in enumerate(rows(file)) if _MARKED in text)
            number = next(found, 0)
        place = f"row {number}" if number else "the header"
        likely = _likely(self.head, run)
        iconv = f" or convert it: iconv -f {likely} -t utf-8" if likely else ""
        raise InputError(
            f"{self.path}: {place} is not {self.encoding.upper()}: byte 0x{run[0]:02X} at offset"
            f" {offset}; "
            + (f"the file is likely {likely}: " if likely else "")
            + f"state its encoding as data.encoding={likely or 'NAME'}{iconv}"
        )

    def _first_bad(self) -> tuple[int, bytes] | None:
        """Offset of the first wrong byte, and it with those beyond ASCII after it; or None."""
        decoder = codecs.getincrementaldecoder(self.encoding)()
        read = self.skipped
        with self.open() as file:
            while True:
                chunk = file.read(2**16)
                read += len(chunk)
                try:
                    decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    data, at = error.object, error.start
                    run = re.match(rb"[\x80-\xff]+", data[at : at + 9])
                    return read - len(data) + at, run[0] if run else data[at : at + 1]
                except UnicodeError:  # of rare codecs, without a place
                    return None
                if not chunk:
                    return None


def inspect(path: str, encoding: str | None = None) -> TextFile:
    """Finds out how a text file is read.

    Args:
      encoding: name of its encoding; None: that of its byte-order mark, or UTF-8.

    Raises:
      InputError: no such encoding; or what the file holds is certainly no text in it: a workbook,
        an HTML page, UTF-16 without a byte-order mark.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP
    notes = []
    if packed != path.lower().endswith(".gz"):
        notes.append(f"it is {'' if packed else 'not '}gzipped, and is read as such")
    with _open(path, packed) as unpacked:
        head = unpacked.read(_HEAD)
    for magic, what in _OTHER_KINDS.items():
        if head.startswith(magic):
            raise InputError(f"{path}: it is {what}")
    mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
    if head[len(mark) :].lstrip().lower().startswith(_PAGES):
        raise InputError(
            f"{path}: it is an HTML page, such as that of a login; download the file again"
        )
    stated = _codec(encoding) if encoding else ""
    found = _MARKS.get(mark, "utf-8")
    fits = not stated or found.startswith(stated)  # UTF-16 is UTF-16 of either byte order
    if mark and fits and found != "utf-8":
        notes.append(f"it is read as {found.upper()}, as its byte-order mark says")
    likely = "" if mark or stated else _wide(head)
    if likely and not head.startswith(PARQUET):
        raise InputError(
            f"{path}: the header is not UTF-8: byte 0x00 at offset {head.index(0)}; the file is"
            f" likely {likely} without byte-order mark: state its encoding as"
            f" data.encoding={likely} or convert it: iconv -f {likely} -t utf-8"
        )
    used = found if fits else stated
    if used in ("utf-16", "utf-32"):
        raise InputError(
            f"{path}: data.encoding={used}, but it has no byte-order mark; expected {used}-le"
            f" or {used}-be"
        )
    return TextFile(path, packed, used, len(mark) if fits else 0, head, tuple(notes))


def bounded(file: Any, path: str) -> Iterator[Any]:
    """Yields the lines of an open file, text or bytes; InputError when a line is too long."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise InputError(f"{path}: a line of more than {LONGEST_LINE} characters")
        yield line


def lines(path: str) -> Iterator[tuple[int, str, str]]:
    """Yields every line of a text file: its number from 1, its text, its problem or "".

    Only line feeds end a line, since captions contain other line breaks of Unicode.
    """
    found = inspect(path)
    if found.encoding != "utf-8":
        with found.text(newline="\n", errors=MARK) as file:
            for number, line in enumerate(bounded(file, path), 1):
                bad = f"not {found.encoding.upper()}" if _MARKED in line else ""
                yield number, "" if bad else _unended(line), bad
        return
    with found.open() as raw:
        for number, data in enumerate(bounded(raw, path), 1):
            try:
                yield number, _unended(data.decode()), ""
            except UnicodeDecodeError as error:
                yield number, "", f"not UTF-8: {error.reason}"


def _unended(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _open(path: str, packed: bool) -> io.BufferedReader:
    if packed:
        return io.BufferedReader(_Unpacked(path), 2**17)
    return open(path, "rb")


def _codec(name: str) -> str:
    """The canonical name of an encoding; InputError for a name that is none of text."""
    try:
        found = codecs.lookup(name)
        io.TextIOWrapper(io.BytesIO(), name)  # a codec that is none of text raises LookupError
    except (LookupError, ValueError, UnicodeError):
        raise InputError(
            f"data.encoding={name!r} is no encoding of text; expected a name such as utf-8,"
            " utf-16, cp1252 or gb18030"
        ) from None
    return "utf-8" if found.name == "utf-8-sig" else found.name


def _wide(head: bytes) -> str:
    """The encoding of text whose every second byte is zero; "" for other text."""
    sample = head[:64]
    sample = sample[: len(sample) // 2 * 2]
    for encoding, zeros, others in (
        ("utf-16-le", sample[1::2], sample[::2]),
        ("utf-16-be", sample[::2], sample[1::2]),
    ):
        if sample and not any(zeros) and all(others):
            return encoding
    return ""


def _likely(head: bytes, run: bytes) -> str:
    """The encoding that a file may have whose bytes `run` are not UTF-8; "" if it is not clear."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if wide := _wide(head):
        return wide
    # In western Europe, few letters beyond ASCII follow each other.
    short = run[0] >= 0x80 and len(run) <= 3
    return "cp1252" if short and not set(run) & set(b"\x81\x8d\x8f\x90\x9d") else ""


class _Unpacked(io.RawIOBase):
    """The content of a gzip file, up to a limit, since a few kilobytes can unpack to gigabytes.

    The limit grows with the part of the file that has been read, so a bomb is refused early.
    """

    def __init__(self, path: str) -> None:
        self._path, self._unpacked = path, 0
        self._packed = open(path, "rb")  # noqa: SIM115 - close() closes it
        self._file = gzip.GzipFile(fileobj=self._packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read1(len(buffer))
        self._unpacked += len(data)
        if self._unpacked > max(_MAX_SMALL, MAX_RATIO * self._packed.tell()):
            raise InputError(
                f"{self._path}: unpacks to more than {MAX_RATIO} times its size, as no table does"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        self._packed.close()
        super().close()
