"""Any CSV, TSV, JSONL or Parquet table with one image path and one report per row.

Given `pairs.csv` beside a folder `images/`

    image,report,patient_id,view
    images/0.jpg,No focal consolidation.,17,PA
    images/1.jpg,Effusion on the left.,18,AP

`Table(split="train", path="pairs.csv", patient_column="patient_id", view_column="view")` yields
records such as id "table:1", patient "17", sections {"report": "No focal consolidation."}.
"""

import csv
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrl.data import images
from mmrl.data.rows import CellError, Columns, Fault, Row, Rows, cell_text, section_columns
from mmrl.data.splits import Fractions
from mmrl.types import InputError, Record, Reject

VERIFY = ("decode", "header", "exists")

_UNCLOSED = "unexpected end of data"  # the csv module's words
_CHUNK = 1024  # images handed to the thread pool at a time


class Table:
    """Records of one split of a table; a Source.

    Rows are numbered from 1, the header and blank lines not counted. Without `id_column` the
    row's number is its id; without `study_column` each row is a study, "{patient}/{id}"; without
    `patient_column` each row is a patient, and `note` says so. Cells are text: numbers are taken
    as they print, null and NaN as blank. Sections keep their text as it stands; blank ones are
    left out.

    Args:
      split: train, val or test.
      path: the table; its suffix tells the format: .csv, .tsv (both quoted as RFC 4180 says),
        .jsonl or .parquet. Text must be UTF-8, with or without byte-order mark.
      root: folder that the image paths start from; the table's own by default.
      image_column: path of the image, relative to `root`.
      report_columns: section name -> column, or columns that are also the section names.
      patient_column: the leakage unit. No patient crosses a split.
      study_column, view_column, id_column, license_column: see Record.
      split_column: train, val (valid, validate, validation, dev) or test; without it patients
        are divided by hash.
      label_columns: columns of 1, 0, -1 or blank.
      fractions, split_salt: see `split_of`.
      verify: "decode" decodes every image of the split once, "header" reads every file and
        finds those cut short, "exists" asks only whether it is there.
      num_threads: threads that verify.

    Attributes:
      rejects: rows of the split that were refused, by reason: missing_image, unreadable_image,
        empty_report, or bad_row (fields that do not fit the header, a blank id or patient).
      total: rows of the split before rejection.
      note: what the user should know about the split, or "".

    Raises:
      InputError: the table cannot be used at all, or an image path leads outside `root`; this is
        never quarantined, for a table that reaches for other files is not to be trusted.
    """

    def __init__(
        self,
        *,
        split: str,
        path: str,
        root: str | None = None,
        image_column: str = "image",
        report_columns: Mapping[str, str] | Sequence[str] | str = ("report",),
        patient_column: str | None = None,
        study_column: str | None = None,
        view_column: str | None = None,
        id_column: str | None = None,
        split_column: str | None = None,
        label_columns: Sequence[str] | str = (),
        license_column: str | None = None,
        fractions: Fractions = (0.8, 0.1, 0.1),
        split_salt: str = "",
        verify: str = "decode",
        num_threads: int = 2,
    ) -> None:
        columns = Columns(
            image=image_column,
            reports=section_columns(report_columns),
            patient=patient_column,
            study=study_column,
            view=view_column,
            id=id_column,
            split=split_column,
            license=license_column,
            labels=(label_columns,) if isinstance(label_columns, str) else tuple(label_columns),
        )
        check_verify(verify, num_threads)
        reader = _reader_of(path)
        self._path = path
        self._root = os.path.dirname(path) or "." if root is None else root
        if not os.path.isdir(self._root):
            raise InputError(f"{path}: root '{self._root}' is not a folder")
        columns.check(reader.columns(path), path)
        self._rows = Rows(
            self._confined(_guarded(reader.rows(path, columns.names()), path), image_column),
            columns,
            source="table",
            where=path,
            split=split,
            fractions=fractions,
            salt=split_salt,
        )
        self._refuse_links()
        fault = functools.partial(_fault, self._root, verify)
        self._rows.drop(find_faults(fault, self._rows.column("image"), num_threads))
        self.note = patient_note("patient_column", patient_column)
        self.rejects: list[Reject] = self._rows.rejects
        self.total: int = self._rows.total

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._rows.record(index, self._loader)

    def _loader(self, relative: str) -> Callable[[], np.ndarray]:
        return functools.partial(images.load_file, self._root, relative)

    def _confined(self, rows: Iterable[Row], column: str) -> Iterator[Row]:
        """Passes rows on; raises at an image path that by its letters leaves the root."""
        for number, cells, problem in rows:
            relative = cells.get(column, "").strip()
            if os.path.isabs(relative) or os.path.normpath(relative).split(os.sep)[0] == "..":
                raise self._escape(number, relative)
            if "\0" in relative:
                problem = problem or "the image path holds a null character"
            yield number, cells, problem

    def _refuse_links(self) -> None:
        """Raises at an image that a symbolic link takes outside the root."""
        top = os.path.realpath(self._root)
        real_folder = functools.cache(os.path.realpath)
        numbers = self._rows.column("number")
        for number, relative in zip(numbers, self._rows.column("image"), strict=True):
            full = os.path.join(self._root, relative)
            real = os.path.realpath(full) if os.path.islink(full) else None
            real = real or os.path.join(real_folder(os.path.dirname(full)), os.path.basename(full))
            if os.path.commonpath([top, real]) != top:
                raise self._escape(int(number), relative)

    def _escape(self, number: int, relative: str) -> InputError:
        return InputError(
            f"{self._path} row {number}: image path '{relative}' leads outside root"
            f" '{self._root}'; expected a path inside it"
        )


def check_verify(verify: str, num_threads: int) -> None:
    """Raises InputError for an unknown level of verification or no thread."""
    if verify not in VERIFY:
        raise InputError(f"data.verify '{verify}'; choices: {', '.join(VERIFY)}")
    if num_threads < 1:
        raise InputError(f"data.num_threads {num_threads}; expected at least 1")


def patient_note(option: str, given: str | None) -> str:
    """Says what the lack of a patient column means for the split; "" when there is one."""
    if given is not None:
        return ""
    return (
        f"{option} is not set: every row counts as its own patient, so rows of one person may"
        " fall into different splits"
    )


def find_faults(
    fault: Callable[[str], Fault | None], cells: Sequence[str], num_threads: int
) -> list[Fault | None]:
    """Applies `fault` to every image cell in a thread pool; the order is kept."""
    found: list[Fault | None] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(cells), _CHUNK):
            found.extend(pool.map(fault, cells[start : start + _CHUNK]))
    return found


def _fault(root: str, verify: str, relative: str) -> Fault | None:
    """Returns what is wrong with the image of one row, or None."""
    full = os.path.join(root, relative)
    if not relative or not os.path.isfile(full):
        return "missing_image", f"no file '{full}'" if relative else "the image cell is blank"
    try:
        if verify == "decode":
            images.read(full)
        elif verify == "header":
            images.check_file(full)
    except InputError as error:
        return "unreadable_image", str(error)
    return None


def _guarded(rows: Iterator[Row], path: str) -> Iterator[Row]:
    """Passes rows on; turns what a reader can raise into InputError."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason}") from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _open_text(path: str) -> Any:
    return open(path, encoding="utf-8-sig", newline="")


def _csv_columns(path: str, *, delimiter: str) -> list[str]:
    with _open_text(path) as file:
        try:
            header = next(csv.reader(file, delimiter=delimiter, strict=True), None)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8: {error.reason}") from error
        except csv.Error as error:
            raise InputError(f"{path}: the header cannot be read: {error}") from error
    if not header:
        raise InputError(f"{path}: empty; expected a header and at least one row")
    return header


def _csv_rows(path: str, names: Sequence[str], *, delimiter: str) -> Iterator[Row]:
    with _open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
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
            if problem == _UNCLOSED:  # it swallowed every row after it: too much to quarantine
                raise InputError(f"{path} row {number}: a quote is never closed ({lines})")
            if problem:
                yield number, {}, f"{problem} ({lines})"
            elif len(fields) != len(header):
                yield number, {}, f"{len(fields)} fields, expected {len(header)} ({lines})"
            else:
                cells = (fields[place] for place in places)
                yield number, dict(zip(names, cells, strict=True)), ""


def _json_objects(path: str) -> Iterator[list[tuple[str, Any]] | str]:
    """Yields the (key, value) pairs of each line, or what is wrong with it."""
    with _open_text(path) as file:
        for line in file:
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
    """Returns the keys of all lines; a key twice in one line is returned twice."""
    names: dict[str, None] = {}
    try:
        for pairs in _json_objects(path):
            if isinstance(pairs, str):
                continue
            keys = [key for key, _ in pairs]
            if len(set(keys)) < len(keys):
                return keys
            names.update(dict.fromkeys(keys))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason}") from error
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
    """How to read one format: columns(path), and rows(path, names of the columns wanted)."""

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
    """Returns the reader of a table, by its suffix; InputError for another or no file."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        raise InputError(f"{path}: a table of type '{suffix}'; choices: {', '.join(_READERS)}")
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such table")
    return _READERS[suffix]
