"""Rows with an image and a report each, as tables and TFDS data sets have them.

A source passes its rows to `Rows` one by one. `Rows` checks all of them, keeps those of one split
in compact columns (a few hundred bytes a row beside the text), and builds their records.
"""

import collections
import dataclasses
import datetime
import difflib
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from mmrl.data.reading.paths import Root
from mmrl.data.reading.rejects import UnusableError
from mmrl.data.reading.splits import Fractions, check_fractions, check_split, split_of
from mmrl.data.text import blanks, reports
from mmrl.types import ImageRef, InputError, Record, Reject

T = TypeVar("T")

# One row as read: its number, its cells by column, and what is wrong with it, or "".
Row = tuple[int, Mapping[str, str], str]
Fault = tuple[str, str]  # reason and detail of a Reject

_SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
_PROJECTION_NAMES = {
    "PA": "PA",
    "AP": "AP",
    "FRONTAL": "FRONTAL",
    "LATERAL": "LATERAL",
    "LAT": "LATERAL",
    "LL": "LATERAL",  # left lateral
    "L": "LATERAL",
    "UNKNOWN": "UNKNOWN",
}
VERIFY = ("decode", "header", "exists")
_CHUNK = 1024  # images handed to the thread pool at a time
_LABELS = (1, 0, -1)
_NOT_STATED = -2
_MOST = float(np.finfo(np.float32).max)
_MOST_LISTED = 30  # columns in a message
_MOST_BLANKS = 5  # texts of blank cells in a warning
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_MOST_NAMES = 1000  # a column with more classes is one of numbers, ids or free text


class CellError(ValueError):
    """A cell is neither text nor a number. Its row is refused, the corpus is not."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """The column (or feature) that holds each field.

    Attributes:
      image: path of the image; None: the rows have no images.
      reports: section -> column; without reports, rows are images with labels or vectors.
      labels: one column for each label.
      classes: the one class of each row.
      lists: the labels that are present, several in a cell, divided by `separator`.
      attributes: attribute -> column.
      mask: path of a mask. mask_label: what the mask shows.
      bag: path of a bag of features. time: when the study was, see `seconds`.
      leave_out: column -> cells of rows that are skipped.
    """

    image: str | None
    reports: Mapping[str, str]
    patient: str | None = None
    study: str | None = None
    projection: str | None = None
    id: str | None = None
    split: str | None = None
    license: str | None = None
    labels: tuple[str, ...] = ()
    vector: tuple[str, ...] = ()
    classes: str | None = None
    lists: str | None = None
    separator: str = "|"
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mask: str | None = None
    mask_label: str | None = None
    bag: str | None = None
    time: str | None = None
    leave_out: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def names(self) -> list[str]:
        """Every column in use, once."""
        single = (self.patient, self.study, self.projection, self.id, self.split, self.license)
        named = [*filter(None, (self.image,)), *self.reports.values(), *filter(None, single)]
        named += [*self.labels, *self.vector, *self.more().values(), *self.leave_out]
        return list(dict.fromkeys(named))

    def more(self) -> dict[str, str]:
        """Name -> column of the fields that few tables have and that are kept as text."""
        single = {
            "classes": self.classes,
            "lists": self.lists,
            "mask": self.mask,
            "mask_label": self.mask_label,
            "bag": self.bag,
            "time": self.time,
        }
        attributes = {f"attribute.{name}": column for name, column in self.attributes.items()}
        return {name: column for name, column in single.items() if column} | attributes

    def present(self, field: str, cell: str) -> list[str]:
        """The labels that a cell of `classes` or `lists` names."""
        parts = [cell] if field == "classes" else cell.split(self.separator)
        return [part.strip() for part in parts if part.strip()]

    def check(
        self, present: Sequence[str], where: str, noun: str = "column", hint: str = ""
    ) -> None:
        """Raises InputError unless `present` has every column in use, and no name twice.

        Args:
          hint: is added to the message about a column that is missing.
        """
        twice = sorted({name for name in present if present.count(name) > 1})
        if twice:
            raise InputError(
                f"{where}: {noun} {', '.join(map(repr, twice))} appears more than once;"
                " expected distinct names"
            )
        missing = [name for name in self.names() if name not in present]
        if missing:
            raise InputError(lacks(where, missing, present, noun) + hint)


def lacks(where: str, missing: Sequence[str], present: Sequence[str], noun: str = "column") -> str:
    """The message that columns are missing: their names, those that are like them, and all."""
    listed = ", ".join(map(repr, present[:_MOST_LISTED])) or "none"
    more = f" and {len(present) - _MOST_LISTED:,} more" if len(present) > _MOST_LISTED else ""
    folded = {name.casefold(): name for name in present}
    near = [
        folded[found]
        for name in missing
        for found in difflib.get_close_matches(name.casefold(), folded, n=1)
    ]
    hint = f" (did you mean {', '.join(map(repr, dict.fromkeys(near)))}?)" if near else ""
    return f"{where}: no {noun} {', '.join(map(repr, missing))}{hint}; present: {listed}{more}"


def check_verify(verify: str, num_threads: int) -> None:
    """Raises InputError for an unknown `verify`, or fewer than one thread."""
    if verify not in VERIFY:
        raise InputError(f"data.verify '{verify}'; choices: {', '.join(VERIFY)}")
    if num_threads < 1:
        raise InputError(f"data.num_threads {num_threads}; expected at least 1")


def find_faults(
    fault: Callable[[T], Fault | None], cells: Sequence[T], num_threads: int
) -> list[Fault | None]:
    """Applies `fault` to every image in a thread pool; results are in the order of `cells`."""
    found: list[Fault | None] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(cells), _CHUNK):
            found.extend(pool.map(fault, cells[start : start + _CHUNK]))
    return found


def explained(root: Root, path: str, fault: Fault | None) -> Fault | None:
    """The fault of a file, with what its path probably means where there is no such file."""
    if (
        fault is None
        or not path
        or fault[0] not in ("missing_image", "missing_mask", "missing_bag")
    ):
        return fault
    return fault[0], fault[1] + root.near(path)


def named_columns(columns: Mapping[str, str] | Sequence[str] | str) -> dict[str, str]:
    """Name -> column; a plain name is both."""
    if isinstance(columns, str):
        columns = (columns,)
    return dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}


def section_columns(
    columns: Mapping[str, str] | Sequence[str] | str, others: Sequence[str]
) -> dict[str, str]:
    """Section -> column; a plain name is both.

    Args:
      others: columns of labels and vectors; with them, there may be no column of reports.

    Raises:
      InputError: no column at all.
    """
    mapping = named_columns(columns)
    if not mapping and not others:
        raise InputError("no column for the report given; expected at least one, or labels")
    return mapping


def projection_name(text: str) -> str:
    """The projection by its first word: "AP supine" is AP, "" is UNKNOWN, "oblique" is OTHER."""
    words = re.findall("[A-Z]+", text.upper())
    return _PROJECTION_NAMES.get(words[0], "OTHER") if words else "UNKNOWN"


def seconds(text: str) -> int | None:
    """A time in seconds: a number of them, or a date of ISO 8601, with or without time of day.

    None for a blank text. A date without a time zone is of UTC.

    Raises:
      ValueError: neither of both.
    """
    text = text.strip()
    if not text:
        return None
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        pass
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"time {text!r}; expected seconds, or a date such as 2019-04-30 or 2019-04-30T08:15"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp())


def cell_text(value: Any) -> str:
    """A cell as text, "" for null and NaN; CellError for lists, bytes and the like."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes | Mapping | list | tuple | np.ndarray):
        raise CellError(f"a cell holds {type(value).__name__}; expected text or a number")
    text = str(value)
    if re.search("[\ud800-\udfff]", text):
        raise CellError("a cell holds an unpaired surrogate; expected characters")
    return text


class Rows:
    """The checked rows of one split.

    Errors that make the whole corpus unusable are found in the rows of every split. A row that is
    too broken to have a patient counts to the split of the readable row before it, or of the first
    readable row, so that exactly one split lists it.

    Args:
      rows: every row of the corpus, in order.
      columns: the column of each field.
      source: name of the source, the prefix of ids.
      where: path or name of the corpus, for messages.
      split: the split to keep.
      fractions, salt: arguments of `split_of`, which decides the split of a patient where
        `columns.split` is None.
      blank: the texts that stand for a blank cell, see `blanks`.

    Attributes:
      total: rows of this split before rejection.
      notes: a line that counts the cells with a text that are read as blank, in a list; or [].
      left_out: column of `columns.leave_out` -> rows of all splits that were skipped.

    Raises:
      InputError: no rows, no readable row, an id that occurs twice, a label other than 1, 0, -1,
        -2 or blank, an unknown split, a patient in two splits, a label that two columns name, or
        more than 1,000 classes.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        columns: Columns,
        *,
        source: str,
        where: str,
        split: str,
        fractions: Fractions,
        salt: str,
        blank: Sequence[str] | str = blanks.BLANK,
    ) -> None:
        division = check_split(split), check_fractions(fractions), salt
        scan = _Scan(columns, source, where, *division, blanks.Blanks(blank))
        for number, cells, problem in rows:
            scan.add(number, cells, problem)
        scan.finish()
        self._columns, self._source, self._split = columns, source, split
        self._text = {name: pa.array(cells, pa.large_string()) for name, cells in scan.text.items()}
        self._label_names = scan.label_names()
        self._labels = np.concatenate(
            [
                np.array(scan.labels, np.int8).reshape(len(scan.labels), len(columns.labels)),
                *(self._one_hot(field, sorted(names)) for field, names in scan.names.items()),
            ],
            axis=1,
        )
        self._vectors = np.array(scan.vectors, np.float32).reshape(
            len(scan.vectors), len(columns.vector)
        )
        self._refused, self.left_out = scan.refused, scan.left_out
        self.notes = scan.notes()
        self.total = len(self) + len(self._refused)

    def __len__(self) -> int:
        return len(self._text["number"])

    @property
    def rejects(self) -> list[Reject]:
        """The refused rows of the split, in the order of the corpus."""
        return [reject for _, reject in sorted(self._refused, key=operator.itemgetter(0))]

    def column(self, name: str) -> list[str]:
        """The cells of number, id, patient, study, projection, image, license, mask and so on."""
        return self._text[name].to_pylist()

    def cell(self, name: str, position: int) -> str:
        """The cell of a row, as `column` has it; "" for a column that the table does not use."""
        return self._text[name][position].as_py() if name in self._text else ""

    def drop(self, faults: Sequence[Fault | None]) -> None:
        """Refuses each row that has a fault; `faults` are parallel to the rows."""
        numbers, natives = self.column("number"), self.column("id")
        for number, native, fault in zip(numbers, natives, faults, strict=True):
            if fault is not None:
                reject = Reject(f"{self._source}:{native}", fault[0], f"row {number}: {fault[1]}")
                self._refused.append((int(number), reject))
        passed = np.array([fault is None for fault in faults], bool)
        self._text = {name: cells.filter(pa.array(passed)) for name, cells in self._text.items()}
        self._labels, self._vectors = self._labels[passed], self._vectors[passed]

    def record(self, index: int, loader: Callable[[str], Callable[[], np.ndarray]]) -> Record:
        """Builds record `index`; `loader` maps the image cell to the `load` of the image."""
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        position %= len(self)
        cell = {name: cells[position].as_py() for name, cells in self._text.items()}
        texts = {section: cell[f"report.{section}"] for section in self._columns.reports}
        return Record(
            id=f"{self._source}:{cell['id']}",
            source=self._source,
            patient_id=cell["patient"],
            study_id=cell["study"],
            leakage_unit=cell["patient"],
            split=self._split,
            images=self._images(cell, loader),
            sections={name: text for name, text in texts.items() if not reports.is_blank(text)},
            label_names=self._label_names,
            labels=tuple(int(value) for value in self._labels[position]),
            license=cell["license"],
            attributes={
                name: text
                for name in self._columns.attributes
                if (text := cell[f"attribute.{name}"])
            },
            vector=self._vector(position),
            time=self._time(cell),
        )

    @functools.cached_property
    def _first(self) -> dict[str, int]:
        """Patient -> the earliest time of a row of it."""
        first: dict[str, int] = {}
        for patient, text in zip(self.column("patient"), self.column("time"), strict=True):
            if (time := seconds(text)) is not None:
                first[patient] = min(time, first.get(patient, time))
        return first

    def _time(self, cell: Mapping[str, str]) -> int | None:
        time = seconds(cell.get("time", ""))
        return None if time is None else time - self._first[cell["patient"]]

    def _images(
        self, cell: Mapping[str, str], loader: Callable[[str], Callable[[], np.ndarray]]
    ) -> tuple[ImageRef, ...]:
        if self._columns.image is None:
            return ()
        image = cell["image"]
        return (ImageRef(image, loader(image), projection_name(cell["projection"])),)

    def _one_hot(self, field: str, names: Sequence[str]) -> np.ndarray:
        """i8[N, C]: 1 where a cell names the label, else 0; -2 throughout where it is blank."""
        place = {name: at for at, name in enumerate(names)}
        table = np.full((len(self), len(names)), _NOT_STATED, np.int8)
        for row, cell in zip(table, self._text.pop(field).to_pylist(), strict=True):
            if found := self._columns.present(field, cell):
                row[:] = 0
                row[[place[name] for name in found]] = 1
        return table

    def _vector(self, position: int) -> tuple[float, ...] | None:
        row = self._vectors[position]
        return None if not row.size or np.isnan(row[0]) else tuple(row.tolist())


class _Scan:
    """One pass over all rows, with the state that is needed for its duration only."""

    def __init__(
        self,
        columns: Columns,
        source: str,
        where: str,
        split: str,
        fractions: Fractions,
        salt: str,
        blank: blanks.Blanks,
    ) -> None:
        self._columns, self._source, self._where = columns, source, where
        self._split, self._fractions, self._salt = split, fractions, salt
        names = ["number", "id", "patient", "study", "projection", "image", "license"]
        names += [f"report.{section}" for section in columns.reports]
        self._more = columns.more()
        self._blank = blank
        numbers = {*columns.vector, *columns.leave_out}
        self._texts = [name for name in columns.names() if name not in numbers]
        self._blanks: collections.Counter[tuple[str, str]] = collections.Counter()
        self.text: dict[str, list[str]] = {name: [] for name in (*names, *self._more)}
        # Label names of all splits, so that every split has the same.
        self.names: dict[str, set[str]] = {
            field: set() for field in ("classes", "lists") if field in self.text
        }
        self.labels: list[list[int]] = []
        self.vectors: list[np.ndarray] = []  # NaN for a row without a vector
        self.refused: list[tuple[int, Reject]] = []
        self.left_out = dict.fromkeys(columns.leave_out, 0)
        self._row_of_id: dict[str, int] = {}
        self._split_of_patient: dict[str, str] = {}
        self._latest = ""  # split of the latest readable row
        self._leading: list[tuple[int, str]] = []  # broken rows before the first readable one

    def add(self, number: int, cells: Mapping[str, str], problem: str) -> None:
        """Checks a row and keeps it if it belongs to the split."""
        for column, unwanted in self._columns.leave_out.items():
            if not problem and cells[column].strip() in unwanted:
                self.left_out[column] += 1
                return
        given = cells
        if not problem:
            cells = self._without_blanks(cells)
        native = self._cell(cells, self._columns.id, str(number))
        patient = self._cell(cells, self._columns.patient, native)
        if not problem and not (native and patient):
            column = (self._columns.patient if native else self._columns.id) or ""
            text = given.get(column, "").strip()
            problem = f"blank {column!r}" + (f": {text!r}" if text else "")
        if problem:
            if not self._latest:
                self._leading.append((number, problem))
            elif self._latest == self._split:
                self._refuse(number, str(number), "bad_row", problem)
            return
        if (earlier := self._row_of_id.setdefault(native, number)) != number:
            raise InputError(
                f"{self._where}: id {native!r} in rows {earlier} and {number}; expected every id"
                " once"
            )
        self._latest = self._place(number, cells, patient)
        stated = [self._label(number, name, cells[name]) for name in self._columns.labels]
        for field, names in self.names.items():
            names.update(self._columns.present(field, cells[self._more[field]]))
            if len(names) > _MOST_NAMES:
                raise InputError(
                    f"{self._where}: {self._more[field]!r} names more than"
                    f" {_MOST_NAMES:,} labels; expected a column of classes"
                )
        if self._latest == self._split:
            for broken, why in self._leading:
                self._refuse(broken, str(broken), "bad_row", why)
            self._keep(number, cells, native, patient, stated)
        self._leading = []

    def finish(self) -> None:
        """Raises InputError if there was no row, or no readable row."""
        if self._leading:
            number, problem = self._leading[0]
            for broken, why in self._leading:
                self._refuse(broken, str(broken), "bad_row", why)
            raise UnusableError(
                f"{self._where}: no readable row; row {number}: {problem}",
                [reject for _, reject in self.refused],
            )
        if not self._latest:
            raise InputError(f"{self._where}: no rows; expected at least one")

    def notes(self) -> list[str]:
        """See `Rows.notes`."""
        if not self._blanks:
            return []
        listed = ", ".join(
            f"{text!r} in {column!r} ({count:,})"
            for (column, text), count in self._blanks.most_common(_MOST_BLANKS)
        )
        more = f" and {len(self._blanks) - _MOST_BLANKS} others"
        return [
            f"cells read as blank: {listed}{more if len(self._blanks) > _MOST_BLANKS else ''};"
            " data.blank states which texts are blank"
        ]

    def _without_blanks(self, cells: Mapping[str, str]) -> Mapping[str, str]:
        """The cells, "" for each that is blank."""
        found = [name for name in self._texts if self._blank(cells.get(name, ""))]
        if not found:
            return cells
        self._blanks.update((name, text) for name in found if (text := cells.get(name, "").strip()))
        return {**cells, **dict.fromkeys(found, "")}

    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of their columns; InputError for one that two columns name."""
        found = [
            *self._columns.labels,
            *(name for own in self.names.values() for name in sorted(own)),
        ]
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise InputError(
                f"{self._where}: the label {twice[0]!r} comes from two columns; expected every"
                " label from one"
            )
        return tuple(found)

    def _cell(self, cells: Mapping[str, str], column: str | None, default: str) -> str:
        return default if column is None else cells.get(column, "").strip()

    def _refuse(self, number: int, native: str, reason: str, detail: str) -> None:
        reject = Reject(f"{self._source}:{native}", reason, f"row {number}: {detail}")
        self.refused.append((number, reject))

    def _place(self, number: int, cells: Mapping[str, str], patient: str) -> str:
        """The split of a row; InputError for a patient in two splits."""
        if self._columns.split is None:
            if patient not in self._split_of_patient:
                split = split_of(patient, self._fractions, salt=self._salt)
                self._split_of_patient[patient] = split
            return self._split_of_patient[patient]
        given = cells[self._columns.split].strip()
        if given.lower() not in _SPLIT_NAMES:
            raise InputError(
                f"{self._where} row {number}: {given!r} in {self._columns.split!r}; expected one"
                f" of: {', '.join(_SPLIT_NAMES)}"
            )
        split = _SPLIT_NAMES[given.lower()]
        if (other := self._split_of_patient.setdefault(patient, split)) != split:
            raise InputError(
                f"{self._where} row {number}: patient {patient!r} is in {other} and in {split};"
                " expected every patient in one split"
            )
        return split

    def _label(self, number: int, name: str, cell: str) -> int:
        text = cell.strip()
        if not text:
            return _NOT_STATED
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if value not in (*_LABELS, _NOT_STATED):
            raise InputError(
                f"{self._where} row {number}: label {cell!r} in {name!r}; expected 1 (present),"
                f" 0 (absent), -1 (uncertain), blank or -2 (not stated){_decimal_point(text)}"
            )
        return int(value)

    def _keep(
        self, number: int, cells: Mapping[str, str], native: str, patient: str, stated: list[int]
    ) -> None:
        columns = self._columns
        texts = [cells[name] for name in columns.reports.values()]
        if texts and all(map(reports.is_blank, texts)):
            empty = ", ".join(map(repr, columns.reports.values()))
            shown = next((f" but {text.strip()[:40]!r}" for text in texts if text.strip()), "")
            self._refuse(number, native, "empty_report", f"nothing in {empty}{shown}")
            return
        if columns.time is not None:
            try:
                seconds(cells[columns.time])
            except ValueError as error:
                self._refuse(number, native, "bad_time", str(error))
                return
        vector, problem = self._vector(cells)
        if problem:
            self._refuse(number, native, "bad_vector", problem)
            return
        kept = (
            str(number),
            native,
            patient,
            self._cell(cells, columns.study, "") or f"{patient}/{native}",
            self._cell(cells, columns.projection, ""),
            self._cell(cells, columns.image, "").strip(),
            self._cell(cells, columns.license, ""),
            *texts,
            *(cells[column].strip() for column in self._more.values()),
        )
        for cells_of, value in zip(self.text.values(), kept, strict=True):
            cells_of.append(value)
        self.labels.append(stated)
        self.vectors.append(vector)

    def _vector(self, cells: Mapping[str, str]) -> tuple[np.ndarray, str]:
        """f32[F], NaN if all cells are blank; and what is wrong with a cell, or ""."""
        vector = np.full(len(self._columns.vector), np.nan, np.float32)
        texts = [cells[name].strip() for name in self._columns.vector]
        if all(map(self._blank, texts)):
            return vector, ""
        for position, (name, text) in enumerate(zip(self._columns.vector, texts, strict=True)):
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not abs(value) <= _MOST:
                expected = f"expected a number, or all columns blank{_decimal_point(text)}"
                return vector, f"{text!r} in {name!r}; {expected}"
            vector[position] = value
        return vector, ""


def _decimal_point(text: str) -> str:
    """What to say of a number with a decimal comma; "" for another text."""
    point = text.replace(",", ".")
    return f"; with a decimal point: {point}" if _DECIMAL_COMMA.fullmatch(text) else ""
