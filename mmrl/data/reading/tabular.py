"""Reads tables row by row: CSV, TSV, JSONL (each also gzipped) and Parquet.

`open_table` finds out how a table is read, and yields the wanted cells as text. A row that does not
fit the header is yielded with a description of the problem. A file that cannot be read raises
InputError, as does one that could fill the memory, see `text_files`.
"""

import csv
import functools
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mmrl.data.reading import text_files
from mmrl.data.reading.rows import CellError, Row, cell_text
from mmrl.data.reading.text_files import TextFile, bounded
from mmrl.types import InputError, first_line

T = TypeVar("T")

_UNCLOSED = "unexpected end of data"  # message of the csv module
_CHUNK = 1024  # rows of a Parquet file at a time
_MANY_BAD = 10_000  # a table may have this many unreadable rows, whatever their share
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"(?:[^"]|"")*(?:"|$)')
# Excel writes and reads a first line that states the delimiter.
_STATED = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
_ARRAY = re.compile(r"\s*\[\s*(?:[\[{\"]|$)")
_OBJECT = re.compile(r'\s*\{\s*"[^"\n]*"\s*:')
STRIPPED = "blanks around column names are not part of them"  # a note
_TO_LINES = "expected one JSON object per line; convert it: jq -c '.[]' OLD.json > NEW.jsonl"


class Sheet(NamedTuple):
    """A table whose header has been read.

    Attributes:
      path: its file.
      columns: the column names in their order, without blanks around them; of JSONL, the keys of
        all lines. Columns without a name are not among them.
      notes: what was decided for the user, one line each.
      hint: what may be wrong where a column is missing, to be added to a message; or "".
    """

    path: str
    columns: list[str]
    notes: tuple[str, ...]
    hint: str
    format: "_Format"

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        """Yields every row: its number, its cells, and its problem or "".

        Rows are numbered from 1; the header and blank lines are not counted. Rows of a CSV without
        content are counted and left out.

        Args:
          names: the wanted columns, all of which are in `columns`.

        Raises:
          InputError: the file cannot be read further, which includes a quote that is never closed;
            or more than 10,000 rows, and most of the rows so far, do not fit.
        """
        rows = _mostly_good(self.format.rows(names), self.path)
        return _guarded(rows, self.path, self.format.check)


def open_table(path: str, *, encoding: str | None = None, delimiter: str | None = None) -> Sheet:
    """Reads the header of a table.

    The suffix states the format, but content that is certainly Parquet or JSON is read as such.

    Args:
      encoding: of a text; None: that of its byte-order mark, or UTF-8.
      delimiter: the character between the cells of a CSV or TSV. None: the comma or tab that the
        suffix states or, where the header has none, the only one of , ; tab | that it has.

    Raises:
      InputError: an unknown type of file, no such file, or a file that cannot be read.
    """
    suffix = _suffix_of(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such table")
    delimiter = "\t" if delimiter == r"\t" else delimiter  # as a command line has it
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InputError(f"data.delimiter={delimiter!r}; expected one character, such as ; or |")
    file = _once(lambda: text_files.inspect(path, encoding), path)
    format_ = _once(lambda: _format_of(file, suffix, delimiter), path)
    given = _once(format_.names, path, format_.check)
    columns = _stripped(given)
    note = () if columns == given else (STRIPPED,)
    notes = tuple(f"{os.path.basename(path)}: {one}" for one in (*format_.notes, *note))
    return Sheet(path, list(filter(None, columns)), notes, format_.hint, format_)


def columns(path: str) -> list[str]:
    """The column names of a table, see `open_table`."""
    return open_table(path).columns


def rows(path: str, names: Sequence[str]) -> Iterator[Row]:
    """The rows of a table, see `Sheet.rows`."""
    return open_table(path).rows(names)


def lines(path: str) -> Iterator[tuple[int, str, str]]:
    """Yields every line of a text file (also .gz): its number from 1, its text, its problem or "".

    Only line feeds end a line, since captions contain other line breaks of Unicode.

    Raises:
      InputError: no such file, or it cannot be read.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    return _guarded(text_files.lines(path), path)


def _guarded(
    values: Iterator[T], path: str, check: Callable[[], None] = lambda: None
) -> Iterator[T]:
    """Yields the values; exceptions of the readers become InputError.

    Args:
      check: raises the InputError for a text that is not in its encoding.
    """
    try:
        yield from values
    except UnicodeError as error:
        check()
        raise InputError(f"{path}: cannot be decoded: {first_line(error)}") from error
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from error


def _once(read: Callable[[], T], path: str, check: Callable[[], None] = lambda: None) -> T:
    return next(_guarded((read() for _ in range(1)), path, check))


def _mostly_good(rows: Iterator[tuple[int, T, str]], path: str) -> Iterator[tuple[int, T, str]]:
    """Yields the rows; InputError when too many of them do not fit."""
    bad, first = 0, ""
    for number, content, problem in rows:
        if problem:
            bad, first = bad + 1, first or f"row {number}: {problem}"
            if bad > max(_MANY_BAD, number // 2):
                raise InputError(f"{path}: {bad} of {number} rows do not fit, the first is {first}")
        yield number, content, problem


def _stripped(names: Sequence[str]) -> list[str]:
    """The names without blanks around them, unless two would then be equal."""
    short = [name.strip() for name in names]
    named = list(filter(None, short))
    return short if len(set(named)) == len(named) or len(set(names)) < len(names) else list(names)


def _suffix_of(path: str) -> str:
    """The suffix of a table, in lower case; InputError for an unknown one."""
    stem = path[:-3] if path.lower().endswith(".gz") else path
    suffix = os.path.splitext(stem)[1].lower()
    if suffix not in _SUFFIXES or (stem != path and suffix == ".parquet"):
        more = f"; {_TO_LINES}" if suffix == ".json" else ""
        raise InputError(
            f"{path}: a table of type '{suffix}'; choices: {', '.join(_SUFFIXES)}"
            f" (text also .gz){more}"
        )
    return suffix


class _Format(Protocol):
    """Reads one format.

    `check` raises InputError where the text is not in its encoding; `notes` and `hint` are those of
    `Sheet` and are known once `names` has been called.
    """

    notes: tuple[str, ...]
    hint: str

    def names(self) -> list[str]: ...
    def rows(self, names: Sequence[str]) -> Iterator[Row]: ...
    def check(self) -> None: ...


def _format_of(file: TextFile, suffix: str, delimiter: str | None) -> _Format:
    if file.head.startswith(text_files.PARQUET) or suffix == ".parquet":
        if file.packed:
            raise InputError(f"{file.path}: a gzipped Parquet file; unpack it first")
        note = "it is a Parquet file, and is read as such"
        return _Parquet(file.path, () if suffix == ".parquet" else (note,))
    head = file.head[file.skipped :].decode(file.encoding, "ignore")
    if _ARRAY.match(head) and (suffix == ".jsonl" or _OBJECT.match(head.lstrip()[1:])):
        raise InputError(f"{file.path}: it is a JSON array; {_TO_LINES}")
    if suffix == ".jsonl":
        return _Json(file, file.notes)
    if _OBJECT.match(head):
        return _Json(file, (*file.notes, "it has JSON objects, and is read as JSONL"))
    return _Csv(file, suffix, delimiter)


class _Csv:
    """A text with delimiters, quoted as in RFC 4180."""

    def __init__(self, file: TextFile, suffix: str, delimiter: str | None) -> None:
        self._file, self._suffix = file, suffix
        self._delimiter, self._blank_after = delimiter or "", False
        self._begin = 0  # lines before the header
        self._header: list[str] = []
        self.notes, self.hint = file.notes, ""

    def names(self) -> list[str]:
        """The header, "" for a column without a name."""
        self._find_delimiter()
        header = self._read_header()
        if not header:
            raise InputError(f"{self._file.path}: empty; expected a header and at least one row")
        if len(header) > 1 and all(name.startswith(" ") for name in header[1:]):
            self._blank_after = True
            self.notes += ("blanks after delimiters are not part of the cells",)
            header = self._read_header()
        if not any(name.strip() for name in header):
            raise InputError(f"{self._file.path}: the header names no column")
        self._header = [name if name.strip() else "" for name in header]
        return self._header

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        header = _stripped(self._header)
        places = [header.index(name) for name in names]
        named = max(place for place, name in enumerate(header) if name) + 1
        with self._file.text() as file:
            reader = self._reader(file)
            next(reader)
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
                if not problem and not any(map(str.strip, fields)):
                    continue  # Excel writes empty rows below a table
                begin, end = first + self._begin, line + self._begin
                where = f"line {begin}" if begin == end else f"lines {begin} to {end}"
                if problem == _UNCLOSED:  # all following rows are part of it
                    raise InputError(
                        f"{self._file.path} row {number}: a quote is never closed ({where})"
                    )
                if not problem and len(fields) != named:
                    problem = _misfit(fields, named, len(header))
                if problem:
                    yield number, {}, f"{problem} ({where})"
                else:
                    cells = (fields[place] for place in places)
                    yield number, dict(zip(names, cells, strict=True)), ""

    def check(self) -> None:
        self._file.check(lambda file: map("".join, self._reader(file, strict=False)))

    def _reader(self, file: io.TextIOWrapper, *, strict: bool = True) -> Any:
        lines = itertools.islice(bounded(file, self._file.path), self._begin, None)
        return csv.reader(
            lines,
            delimiter=self._delimiter or ",",
            skipinitialspace=self._blank_after,
            strict=strict,
        )

    def _read_header(self) -> list[str]:
        try:
            with self._file.text() as file:
                return next(self._reader(file), [])
        except csv.Error as error:
            raise InputError(
                f"{self._file.path}: the header cannot be read: {error}{self.hint}"
            ) from error

    def _find_delimiter(self) -> None:
        """Sets the delimiter by the first lines, where the user does not state it."""
        usual = "\t" if self._suffix == ".tsv" else ","
        with self._file.text(errors=text_files.MARK) as file:
            lines = bounded(file, self._file.path)
            first = next(lines, "")
            if stated := _STATED.fullmatch(first):
                self._begin = 1
                first = next(lines, "")
        bare = _QUOTED.sub("", first)
        present = [one for one in _DELIMITERS if one in bare]
        if not self._delimiter and stated:
            self._delimiter = stated[1]
            self.notes += (f"cells are divided by {stated[1]!r}, as its first line says",)
        elif not self._delimiter and usual not in present and len(present) == 1:
            (self._delimiter,) = present
            self.notes += (f"cells are divided by {present[0]!r}, as in its header",)
        self._delimiter = self._delimiter or usual
        if others := [one for one in present if one != self._delimiter]:
            self.hint = (
                f"; cells are divided by {self._delimiter!r}, and the header has"
                f" {' and '.join(map(repr, others))}: data.delimiter states another"
            )


def _misfit(fields: Sequence[str], named: int, width: int) -> str:
    """What is wrong with a row of other length than the header has names, or "".

    Blank cells beyond the last name are those of Excel. Others may come from a cell that a
    delimiter in it divided.
    """
    if len(fields) < named:
        return f"{len(fields)} fields, expected {named}"
    for place, field in enumerate(fields[named:], named + 1):
        if field.strip():
            if len(fields) > width:
                return f"{len(fields)} fields, expected {width}"
            return f"{field[:40]!r} in column {place}, which has no name"
    return ""


class _Json:
    """One JSON object per line."""

    hint = ""

    def __init__(self, file: TextFile, notes: tuple[str, ...]) -> None:
        self._file, self.notes = file, notes
        self._key_of: dict[str, str] = {}

    def names(self) -> list[str]:
        """The keys of all lines; a key that is twice in one line is returned twice."""
        names: dict[str, None] = {}
        problem = ""
        values = (
            (number, [], pairs) if isinstance(pairs, str) else (number, pairs, "")
            for number, pairs in enumerate(self._objects(), 1)
        )
        for number, pairs, why in _mostly_good(values, self._file.path):
            problem = problem or (f"row {number}: {why}" if why else "")
            keys = [key for key, _ in pairs]
            if len(set(keys)) < len(keys):
                return keys
            names.update(dict.fromkeys(keys))
        if not names:
            given = f"no line is a JSON object; {problem}" if problem else "empty"
            raise InputError(f"{self._file.path}: {given}; expected one JSON object per line")
        self._key_of = dict(zip(_stripped(list(names)), names, strict=True))
        return list(names)

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        keys = {name: self._key_of[name] for name in names}
        for number, pairs in enumerate(self._objects(), 1):
            if isinstance(pairs, str):
                yield number, {}, pairs
            else:
                yield _texts(number, dict(pairs), keys)

    def check(self) -> None:
        self._file.check(
            lambda file: itertools.chain([""], filter(str.strip, bounded(file, self._file.path)))
        )

    def _objects(self) -> Iterator[list[tuple[str, Any]] | str]:
        """Yields the (key, value) pairs of each line, or its problem."""
        with self._file.text() as file:
            for line in bounded(file, self._file.path):
                if not line.strip():
                    continue
                try:
                    pairs = json.loads(line, object_pairs_hook=tuple)
                except (ValueError, RecursionError) as error:
                    yield f"not JSON: {first_line(error)}"
                    continue
                is_object = isinstance(pairs, tuple)
                yield list(pairs) if is_object else f"{type(pairs).__name__}, expected an object"


class _Parquet:
    """A Parquet file."""

    hint = ""

    def __init__(self, path: str, notes: tuple[str, ...]) -> None:
        self._path, self.notes = path, notes

    @functools.cached_property
    def _given(self) -> list[str]:
        try:
            return list(pq.read_schema(self._path).names)
        except pa.ArrowException as error:
            raise InputError(f"{self._path}: not a Parquet file: {first_line(error)}") from error

    def names(self) -> list[str]:
        return self._given

    def rows(self, names: Sequence[str]) -> Iterator[Row]:
        actual = dict(zip(_stripped(self._given), self._given, strict=True))
        columns = {name: actual[name] for name in names}
        number = 0
        with pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=_CHUNK, columns=list(columns.values())):
                for cells in batch.to_pylist():
                    number += 1
                    yield _texts(number, cells, columns)

    def check(self) -> None:
        """The format states its encoding."""


def _texts(number: int, cells: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """A row of the cells as texts; `columns` maps its names to those of the file."""
    try:
        return number, {name: cell_text(cells.get(at)) for name, at in columns.items()}, ""
    except CellError as error:
        return number, {}, str(error)
