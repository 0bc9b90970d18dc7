"""Reads tables row by row: CSV, TSV, JSONL (each also gzipped) and Parquet.

`columns` returns the header; `rows` yields the wanted cells as text. A row that does not fit the
header is yielded with a description of the problem. A file that cannot be read raises InputError.
So does a file that could fill the memory: one that unpacks to far more than text does, or that has
an extremely long line.
"""

import csv
import functools
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mmrl.data.reading.rows import CellError, Row, cell_text
from mmrl.types import InputError

T = TypeVar("T")

_UNCLOSED = "unexpected end of data"  # message of the csv module
_CHUNK = 1024  # rows of a Parquet file at a time
LONGEST_LINE = 2**24  # characters; reports have thousands
# Tables of labels unpack to 10 to 30 times their size; the greatest ratio of gzip is 1032.
MAX_RATIO = 100
_MAX_SMALL = 2**20  # bytes to which a compressed file of any size may unpack
_MANY_BAD = 10_000  # a table may have this many unreadable rows, whatever their share


def columns(path: str) -> list[str]:
    """The column names of a table, in its order; of JSONL, the keys of all lines.

    Raises:
      InputError: an unknown type of file, no such file, or a file that cannot be read.
    """
    reader = _reader_of(path)
    return next(_guarded((reader.columns(path) for _ in range(1)), path))


def rows(path: str, names: Sequence[str]) -> Iterator[Row]:
    """Yields every row: its number, its cells, and its problem or "".

    Rows are numbered from 1; the header and blank lines are not counted.

    Args:
      names: the wanted columns, all of which are in the header.

    Raises:
      InputError: the file cannot be read further, which includes a quote that is never closed; or
        more than 10,000 rows, and most of the rows so far, do not fit.
    """
    return _guarded(_mostly_good(_reader_of(path).rows(path, names), path), path)


def lines(path: str) -> Iterator[tuple[int, str, str]]:
    """Yields every line of a text file (also .gz): its number from 1, its text, its problem or "".

    Only line feeds end a line, since captions contain other line breaks of Unicode.

    Raises:
      InputError: no such file, or it cannot be read.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    return _guarded(_byte_lines(path), path)


def _guarded(rows: Iterator[T], path: str) -> Iterator[T]:
    """Yields the rows; exceptions of the readers become InputError."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason}") from error
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {_line(error)}") from error


def _mostly_good(rows: Iterator[tuple[int, T, str]], path: str) -> Iterator[tuple[int, T, str]]:
    """Yields the rows; InputError when too many of them do not fit."""
    bad, first = 0, ""
    for number, content, problem in rows:
        if problem:
            bad, first = bad + 1, first or f"row {number}: {problem}"
            if bad > max(_MANY_BAD, number // 2):
                raise InputError(f"{path}: {bad} of {number} rows do not fit, the first is {first}")
        yield number, content, problem


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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


def _open_bytes(path: str) -> io.BufferedReader:
    if path.lower().endswith(".gz"):
        return io.BufferedReader(_Unpacked(path), 2**17)
    return open(path, "rb")


def _open_text(path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig", newline="")


def _bounded(file: Any, path: str) -> Iterator[Any]:
    """Yields the lines of an open file, text or bytes; InputError when a line is too long."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise InputError(f"{path}: a line of more than {LONGEST_LINE} characters")
        yield line


def _byte_lines(path: str) -> Iterator[tuple[int, str, str]]:
    with _open_bytes(path) as file:
        for number, line in enumerate(_bounded(file, path), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, "", f"not UTF-8: {error.reason}"
                continue
            yield number, text.removesuffix("\n").removesuffix("\r"), ""


def _csv_columns(path: str, *, delimiter: str) -> list[str]:
    with _open_text(path) as file:
        try:
            header = next(csv.reader(_bounded(file, path), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            raise InputError(f"{path}: the header cannot be read: {error}") from error
    if not header:
        raise InputError(f"{path}: empty; expected a header and at least one row")
    return header


def _csv_rows(path: str, names: Sequence[str], *, delimiter: str) -> Iterator[Row]:
    with _open_text(path) as file:
        reader = csv.reader(_bounded(file, path), delimiter=delimiter, strict=True)
        header = next(reader)
        places = [header.index(name) for name in names]
        number, line = 0, reader.line_num
        while True:
            first, problem, fields = line + 1, "", []
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = str(error)
            line = reader.line_num
            if not fields and not problem:
                continue  # a blank line
            number += 1
            lines = f"line {first}" if first == line else f"lines {first} to {line}"
            if problem == _UNCLOSED:  # all following rows are part of it
                raise InputError(f"{path} row {number}: a quote is never closed ({lines})")
            if problem:
                yield number, {}, f"{problem} ({lines})"
            elif len(fields) != len(header):
                yield number, {}, f"{len(fields)} fields, expected {len(header)} ({lines})"
            else:
                cells = (fields[place] for place in places)
                yield number, dict(zip(names, cells, strict=True)), ""


def _json_objects(path: str) -> Iterator[list[tuple[str, Any]] | str]:
    """Yields the (key, value) pairs of each line, or its problem."""
    with _open_text(path) as file:
        for line in _bounded(file, path):
            if not line.strip():
                continue
            try:
                pairs = json.loads(line, object_pairs_hook=tuple)
            except (ValueError, RecursionError) as error:
                yield f"not JSON: {_line(error)}"
                continue
            is_object = isinstance(pairs, tuple)
            yield list(pairs) if is_object else f"{type(pairs).__name__}, expected an object"


def _json_columns(path: str) -> list[str]:
    """The keys of all lines; a key that is twice in one line is returned twice."""
    names: dict[str, None] = {}
    values = (
        (number, [], pairs) if isinstance(pairs, str) else (number, pairs, "")
        for number, pairs in enumerate(_json_objects(path), 1)
    )
    for _, pairs, _ in _mostly_good(values, path):
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            return keys
        names.update(dict.fromkeys(keys))
    if not names:
        raise InputError(f"{path}: empty; expected one JSON object per line")
    return list(names)


def _json_rows(path: str, names: Sequence[str]) -> Iterator[Row]:
    for number, pairs in enumerate(_json_objects(path), 1):
        if isinstance(pairs, str):
            yield number, {}, pairs
        else:
            yield _texts(number, dict(pairs), names)


def _parquet_columns(path: str) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file: {_line(error)}") from error


def _parquet_rows(path: str, names: Sequence[str]) -> Iterator[Row]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_CHUNK, columns=list(names)):
            for cells in batch.to_pylist():
                number += 1
                yield _texts(number, cells, names)


def _texts(number: int, cells: Mapping[str, Any], names: Sequence[str]) -> Row:
    try:
        return number, {name: cell_text(cells.get(name)) for name in names}, ""
    except CellError as error:
        return number, {}, str(error)


class _Reader(NamedTuple):
    """Reads one format: columns(path) and rows(path, names of the wanted columns)."""

    columns: Callable[[str], list[str]]
    rows: Callable[[str, Sequence[str]], Iterator[Row]]


def _delimited(delimiter: str) -> _Reader:
    return _Reader(
        functools.partial(_csv_columns, delimiter=delimiter),
        functools.partial(_csv_rows, delimiter=delimiter),
    )


_READERS = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _Reader(_json_columns, _json_rows),
    ".parquet": _Reader(_parquet_columns, _parquet_rows),
}


def _reader_of(path: str) -> _Reader:
    """The reader of a table, by its suffix; InputError for an unknown suffix or no file."""
    stem = path[:-3] if path.lower().endswith(".gz") else path
    suffix = os.path.splitext(stem)[1].lower()
    if suffix not in _READERS or (stem != path and suffix == ".parquet"):
        raise InputError(
            f"{path}: a table of type '{suffix}'; choices: {', '.join(_READERS)} (text also .gz)"
        )
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such table")
    return _READERS[suffix]
